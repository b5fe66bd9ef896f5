package broker

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// members returns the raw values of id, msg and relay of the object in payload; absent
// ones are nil, except that without id or msg it is an error.
//
// Every node does this for every publication of the cluster, so it does not decode
// what it passes over. encoding/json would also take "ID" for "id", which no other
// JSON library does: a payment could go to another destination than its sender reads.
// Of doubled members the last counts, as everywhere else. Broken UTF-8 is refused: decoders put U+FFFD
// for it, each in its own way, and then two IDs may become one.
func members(payload []byte) (id, msg, relay []byte, err error) {
	text := bytes.TrimLeft(payload, " \t\r\n")
	if len(text) == 0 || text[0] != '{' || !json.Valid(text) || !utf8.Valid(text) {
		return nil, nil, nil, ErrNotForSockets
	}
	// From here on the text is known to be one valid object, so no scan can run
	// past its end.
	rest := text[1:]
	for {
		rest = bytes.TrimLeft(rest, " \t\r\n,")
		if rest[0] == '}' {
			break
		}
		n := skipString(rest)
		name := rest[:n]
		rest = bytes.TrimLeft(rest[n:], " \t\r\n:")
		n = skipValue(rest)
		value := rest[:n:n]
		rest = rest[n:]
		switch key(name) {
		case "id":
			id = value
		case "msg":
			msg = value
		case "relay":
			relay = value
		}
	}
	if id == nil {
		return nil, nil, nil, fmt.Errorf("%w: there is no id", ErrNotForSockets)
	}
	if msg == nil {
		return nil, nil, nil, fmt.Errorf("%w: there is no msg", ErrNotForSockets)
	}
	return id, msg, relay, nil
}

// key returns the text of a quoted member name.
func key(quoted []byte) string {
	if bytes.IndexByte(quoted, '\\') < 0 {
		return string(quoted[1 : len(quoted)-1])
	}
	var s string
	_ = json.Unmarshal(quoted, &s) // valid already
	return s
}

// skipString returns the length of the string at the start of text.
func skipString(text []byte) int {
	for i := 1; ; i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
}

// tooDeep reports whether brackets are nested deeper than max in a valid JSON text.
func tooDeep(text []byte, max int) bool {
	if len(text) <= 2*max {
		return false
	}
	depth := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			i += skipString(text[i:]) - 1
		case '{', '[':
			if depth++; depth > max {
				return true
			}
		case '}', ']':
			depth--
		}
	}
	return false
}

// skipValue returns the length of the JSON value at the start of text.
func skipValue(text []byte) int {
	depth := 0
	for i := 0; ; i++ {
		switch text[i] {
		case '"':
			i += skipString(text[i:]) - 1
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 { // the end of the object that holds a bare value
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
}
