package wire

import (
	"encoding/json"
	"testing"
)

func TestResponses(t *testing.T) {
	for want, got := range map[string][]byte{
		// The examples of the protocol.
		`{"op":"welcome","v":1,"session":"S","fence":"7","window":16,"heartbeat":30,"max":1048576}`: AppendWelcome(nil,
			Welcome{Session: "S", Fence: "7", Window: 16, Heartbeat: 30, Max: 1048576}),
		`{"op":"welcome","v":1,"session":"S","window":2,"heartbeat":5,"max":65535,"standby":true}`: AppendWelcome(nil,
			Welcome{Session: "S", Window: 2, Heartbeat: 5, Max: 65535, Standby: true}),
		`{"op":"welcome","v":1,"session":"S","window":1,"heartbeat":5,"max":65535}`: AppendWelcome(nil,
			Welcome{Session: "S", Window: 1, Heartbeat: 5, Max: 65535}),
		`{"op":"ping"}`: AppendPing(nil),
		`{"op":"pong"}`: AppendPong(nil),
		`{"op":"error","code":401,"reason":"bad token","temporary":false}`: AppendError(nil,
			Error{Code: 401, Reason: "bad token"}),
		`{"op":"error","code":503,"reason":"<\"a\\b\r\n\u2028中","temporary":true}`: AppendError(nil,
			Error{Code: 503, Reason: "<\"a\\b\r\n\u2028中", Temporary: true}),
		`{"op":"goodbye","code":"shutdown","reconnect":true,"after_ms":1200}`: AppendGoodbye(nil,
			Goodbye{Code: "shutdown", Reconnect: true, AfterMS: 1200}),
		`{"op":"goodbye","code":"taken_over","reconnect":false,"after_ms":0}`: AppendGoodbye(nil,
			Goodbye{Code: "taken_over"}),
	} {
		if string(got) != want {
			t.Errorf("\n got %s\nwant %s", got, want)
		}
		if !json.Valid(got) || hasLineBreak(got) {
			t.Errorf("not JSON on one line: %s", got)
		}
	}
	if got := AppendGoodbye(AppendPing([]byte("x")), Goodbye{}); string(got) !=
		`x{"op":"ping"}{"op":"goodbye","code":"","reconnect":false,"after_ms":0}` {
		t.Errorf("got %s", got)
	}
}
