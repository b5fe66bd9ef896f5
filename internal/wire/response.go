package wire

import "strconv"

// The texts of the server never contain a raw CR or LF, so that they fit in every framing.

// Welcome says that a client is registered:
//
//	{"op":"welcome","v":1,"session":"…","fence":"…","window":16,"heartbeat":30,"max":1048576}
//
// With "standby":true it waits for another socket to end; it is welcomed again, without, when its turn has come.
type Welcome struct {
	Session   string // names the session in logs
	Fence     string // opaque; left out when empty
	Window    int    // messages that may be pushed before one is acknowledged
	Heartbeat int    // seconds of silence after which the server pings
	Max       int    // largest frame that the server pushes, in bytes
	Standby   bool   // another socket has the destination
}

// AppendWelcome appends the text of w.
func AppendWelcome(dst []byte, w Welcome) []byte {
	dst = append(dst, `{"op":"welcome","v":1,"session":`...)
	dst = appendString(dst, w.Session)
	if w.Fence != "" {
		dst = append(dst, `,"fence":`...)
		dst = appendString(dst, w.Fence)
	}
	dst = appendInt(dst, `,"window":`, int64(w.Window))
	dst = appendInt(dst, `,"heartbeat":`, int64(w.Heartbeat))
	dst = appendInt(dst, `,"max":`, int64(w.Max))
	if w.Standby {
		dst = append(dst, `,"standby":true`...)
	}
	return append(dst, '}')
}

// AppendPing appends {"op":"ping"}.
func AppendPing(dst []byte) []byte { return append(dst, `{"op":"ping"}`...) }

// AppendPong appends {"op":"pong"}.
func AppendPong(dst []byte) []byte { return append(dst, `{"op":"pong"}`...) }

// Error says that something a client asked for was not done:
//
//	{"op":"error","code":401,"reason":"…","temporary":false}
type Error struct {
	Code      int    // as in HTTP
	Reason    string // for people; says what to do
	Temporary bool   // whether trying again may help
}

// AppendError appends the text of e.
func AppendError(dst []byte, e Error) []byte {
	dst = appendInt(dst, `{"op":"error","code":`, int64(e.Code))
	dst = append(dst, `,"reason":`...)
	dst = appendString(dst, e.Reason)
	dst = append(dst, `,"temporary":`...)
	dst = strconv.AppendBool(dst, e.Temporary)
	return append(dst, '}')
}

// Goodbye is the last that a server says:
//
//	{"op":"goodbye","code":"shutdown","reconnect":true,"after_ms":1200}
type Goodbye struct {
	Code      string // why, for programs
	Reconnect bool   // whether the client is to come back
	AfterMS   int    // how long it should wait before it does, in milliseconds
}

// AppendGoodbye appends the text of g.
func AppendGoodbye(dst []byte, g Goodbye) []byte {
	dst = append(dst, `{"op":"goodbye","code":`...)
	dst = appendString(dst, g.Code)
	dst = append(dst, `,"reconnect":`...)
	dst = strconv.AppendBool(dst, g.Reconnect)
	dst = appendInt(dst, `,"after_ms":`, int64(g.AfterMS))
	return append(dst, '}')
}

// appendInt appends what stands before a number, and the number.
func appendInt(dst []byte, before string, n int64) []byte {
	return strconv.AppendInt(append(dst, before...), n, 10)
}
