package wire

import "bytes"

// LooksLikeJSON reports whether the first frame is meant to be a JSON hello: it begins with {
// after white space.
func LooksLikeJSON(frame []byte) bool {
	text := bytes.TrimLeft(trimBOM(frame), jsonSpace)
	return len(text) > 0 && text[0] == '{'
}

// greetings are what other protocols always begin with.
var greetings = []struct{ name, prefix string }{
	{"HTTP", "PRI * HTTP/2.0\r\n"},
	{"PROXY protocol", "PROXY TCP"}, // version 1: PROXY TCP4 <source> <destination> …
	{"PROXY protocol", "PROXY UNKNOWN"},
	{"PROXY protocol", "\r\n\r\n\x00\r\nQUIT\n"}, // version 2
	{"SSH", "SSH-2.0-"},
}

// Greeting returns the name of the foreign protocol that a peer seems to speak, by the first bytes
// it sent, header of the framing included; or "". Then the peer can be told what
// it met, and the operator what knocked, rather than "bad ID".
//
// It prefers to miss one over mistaking for it what may be an ID and a token.
func Greeting(first []byte) string {
	for _, g := range greetings {
		if bytes.HasPrefix(first, []byte(g.prefix)) {
			return g.name
		}
	}
	switch {
	case isTLS(first):
		return "TLS"
	case isMQTT(first):
		return "MQTT"
	case isRESP(first):
		return "RESP (Redis)"
	case isHTTP(first):
		return "HTTP"
	}
	return ""
}

// isTLS looks for the header of the record that holds a ClientHello: type 22, version 3.0 to 3.4. In
// framing length 2 that announces 5635 bytes, which may be a hello, but not one that
// begins with such a byte.
func isTLS(first []byte) bool {
	return len(first) >= 3 && first[0] == 22 && first[1] == 3 && first[2] <= 4
}

// isMQTT looks for CONNECT: type 1, 1 to 4 bytes of length, 2 bytes of length of the protocol's name,
// the name.
func isMQTT(first []byte) bool {
	if len(first) == 0 || first[0] != 0x10 {
		return false
	}
	start := first[:min(len(first), 13)]
	return bytes.Contains(start, []byte("\x00\x04MQTT")) || bytes.Contains(start, []byte("\x00\x06MQIsdp"))
}

// isRESP looks for an array of bulk strings, which every Redis command is: *2 CR LF $. Without the
// dollar it may be the ID *2.
func isRESP(first []byte) bool {
	if len(first) == 0 || first[0] != '*' {
		return false
	}
	rest := bytes.TrimLeft(first[1:], "0123456789")
	return len(rest) < len(first)-1 && bytes.HasPrefix(rest, []byte("\r\n$"))
}

// isHTTP looks for METHOD SP target SP HTTP/1.x; of a line that is not complete yet, for METHOD SP /.
func isHTTP(first []byte) bool {
	target := bytes.TrimLeft(first, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	method := len(first) - len(target)
	if method < 3 || len(target) == 0 || target[0] != ' ' {
		return false
	}
	line, _, complete := bytes.Cut(target, []byte("\n"))
	if !complete {
		return bytes.HasPrefix(target, []byte(" /"))
	}
	version := bytes.LastIndexByte(line, ' ')
	return bytes.HasPrefix(line[version:], []byte(" HTTP/1."))
}
