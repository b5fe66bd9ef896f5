package wire

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseRequest(t *testing.T) {
	for text, want := range map[string]Request{
		// The examples of the protocol.
		`{"op":"hello","v":1,"id":"01","token":"…","window":16,"heartbeat":30}`: {
			Op: OpHello, V: 1, ID: "01", Token: "…", Window: 16, Heartbeat: 30},
		`{"op":"ack","mid":"m","reply":{"ok":true}}`: {Op: OpAck, MID: "m", Reply: []byte(`{"ok":true}`)},
		`{"op":"nack","mid":"m","delay":30,"reason":"db down"}`: {
			Op: OpNack, MID: "m", Delay: 30 * time.Second, Reason: "db down"},
		`{"op":"nack","mid":"m","terminate":true}`:      {Op: OpNack, MID: "m", Terminate: true},
		`{"op":"working","mid":"m"}`:                    {Op: OpWorking, MID: "m"},
		`{"op":"ping"}`:                                 {Op: OpPing},
		`{"op":"pong"}`:                                 {Op: OpPong},
		`{"op":"goodbye"}`:                              {Op: OpGoodbye},
		`{"op":"hello","v":1,"id":"01","mac":"00ff"}`:   {Op: OpHello, V: 1, ID: "01", MAC: "00ff"},
		`{"op":"later","of":{"version":[2]},"v":2}`:     {Op: "later", V: 2},
		`{"op":"hello","client":{"id":"02"},"id":"01"}`: {Op: OpHello, ID: "01"},

		// An ID may be a number, as its digits stand.
		`{"op":"hello","id":1}`:                    {Op: OpHello, ID: "1"},
		`{"op":"hello","id":1.50}`:                 {Op: OpHello, ID: "1.50"},
		`{"op":"hello","id":12345678901234567890}`: {Op: OpHello, ID: "12345678901234567890"},
		`{"op":"hello","id":1e400}`:                {Op: OpHello, ID: "1e400"},

		// Names match exactly, which encoding/json would not do.
		`{"op":"hello","ID":"02","Id":"03","OP":"x"}`: {Op: OpHello},
		`{"op":"hello","id":"01","ID":"02"}`:          {Op: OpHello, ID: "01"},
		`{"op":"hello","\u0069d":"01"}`:               {Op: OpHello, ID: "01"},
		`{"op":"hello","ıd":"02","ſ":"x"}`:            {Op: OpHello},

		// The last of doubled members counts; null is as good as absent, but for reply.
		`{"op":"hello","id":"01","id":"02"}`:                        {Op: OpHello, ID: "02"},
		`{"op":"hello","v":null,"id":null,"token":null}`:            {Op: OpHello},
		`{"op":"nack","mid":"m","delay":null,"terminate":null}`:     {Op: OpNack, MID: "m"},
		`{"op":"ack","mid":"m","reply":null}`:                       {Op: OpAck, MID: "m", Reply: []byte(`null`)},
		`{"op":"ack","mid":"m","reply": {"b": [1 , "}" ], "a":1} }`: {Op: OpAck, MID: "m", Reply: []byte(`{"b": [1 , "}" ], "a":1}`)},
		`{"op":"ack","mid":"m","reply":1.0}`:                        {Op: OpAck, MID: "m", Reply: []byte(`1.0`)},

		// Spelling and space of numbers and strings.
		` { "op" : "hello" , "window" : 16.0 , "heartbeat" : 3e1 } `: {Op: OpHello, Window: 16, Heartbeat: 30},
		"{\r\n\t\"op\":\"hello\",\"v\":-0\r\n}\r":                    {Op: OpHello},
		`{"op":"nack","mid":"m","delay":0.25}`:                       {Op: OpNack, MID: "m", Delay: 250 * time.Millisecond},
		`{"op":"nack","mid":"m","delay":2147483647}`:                 {Op: OpNack, MID: "m", Delay: 2147483647 * time.Second},
		`{"op":"nack","mid":"m","delay":1e-400}`:                     {Op: OpNack, MID: "m"},
		`{"op":"hello","token":"\"\\\/\n\u4e2d\ud83d\ude00"}`:        {Op: OpHello, Token: "\"\\/\n中😀"},
		"\ufeff" + `{"op":"ping"}`:                                   {Op: OpPing},
	} {
		got, err := ParseRequest([]byte(text))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s\n got %+v, %v\nwant %+v", text, got, err, want)
		}
	}
}

func TestParseRequestErrors(t *testing.T) {
	const number = " must be a number from 0 to 2147483647"
	for text, want := range map[string]string{
		"":                                   "the frame is empty; it must be a JSON object",
		" \r\n":                              "the frame is empty; it must be a JSON object",
		"01":                                 "the frame is not valid JSON: byte 2: invalid character '1' after top-level value",
		"[]":                                 "the frame must be a JSON object, not an array",
		`"hello"`:                            "the frame must be a JSON object, not a string",
		" null":                              "the frame must be a JSON object, not null",
		"7":                                  "the frame must be a JSON object, not a number",
		"{}":                                 `there is no "op"`,
		`{"op":""}`:                          `there is no "op"`,
		`{"op":null}`:                        `there is no "op"`,
		`{"OP":"ping"}`:                      `there is no "op"`,
		`{"op":"ping"`:                       "the frame is not valid JSON: byte 12: unexpected end of JSON input",
		`{"op":"ping"}}`:                     "the frame is not valid JSON: byte 14: invalid character '}' after top-level value",
		`{"op":'ping'}`:                      `the frame is not valid JSON: byte 7: invalid character '\'' looking for beginning of value`,
		"{\"op\":\"p\xff\"}":                 "the frame is not valid UTF-8, so it is not JSON",
		"\x16\x03\x01":                       `the frame is not valid JSON: byte 1: invalid character '\x16' looking for beginning of value`,
		`{"op":1}`:                           `"op" must be a string, not a number`,
		`{"op":"hello","v":"1"}`:             `"v" must be a number, not a string`,
		`{"op":"hello","v":1.5}`:             `"v" must be a whole number`,
		`{"op":"hello","id":true}`:           `"id" must be a string, not a boolean`,
		`{"op":"hello","id":["01"]}`:         `"id" must be a string, not an array`,
		`{"op":"hello","token":424242}`:      `"token" must be a string, not a number`,
		`{"op":"hello","window":-1}`:         `"window"` + number,
		`{"op":"hello","window":2147483648}`: `"window"` + number,
		`{"op":"hello","window":9223372036854775808}`: `"window"` + number,
		`{"op":"hello","heartbeat":1e400}`:            `"heartbeat"` + number,
		`{"op":"nack","mid":"m","delay":-0.5}`:        `"delay"` + number,
		`{"op":"nack","mid":"m","delay":1e300}`:       `"delay"` + number,
		`{"op":"nack","mid":"m","terminate":1}`:       `"terminate" must be true or false, not a number`,
		`{"op":"nack","mid":"m","reason":{}}`:         `"reason" must be a string, not an object`,
		`{"op":"ack","mid":12345678901234567890}`:     `"mid" must be a string, not a number`,
		`{"op":"ack"}`:              `op "ack" needs the "mid" of the message`,
		`{"op":"nack","mid":null}`:  `op "nack" needs the "mid" of the message`,
		`{"op":"working","mid":""}`: `op "working" needs the "mid" of the message`,
	} {
		got, err := ParseRequest([]byte(text))
		if err == nil || err.Error() != want {
			t.Errorf("%s\n got %v\nwant %s", text, err, want)
		}
		if !reflect.DeepEqual(got, Request{}) {
			t.Errorf("%s: %+v comes with the error", text, got)
		}
	}
}

// Nesting costs no stack, and what it leads to is an error.
func TestI11_DeepNesting(t *testing.T) {
	for _, unit := range []string{"[", `{"a":`, "{\"op\":[\""} {
		if _, err := ParseRequest([]byte(strings.Repeat(unit, 100_000))); err == nil {
			t.Errorf("%d times %s is not an error", 100_000, unit)
		}
	}
	text := `{"op":"ack","mid":"m","reply":` + strings.Repeat("[", 5000) + strings.Repeat("]", 5000) + "}"
	if r, err := ParseRequest([]byte(text)); err != nil || len(r.Reply) != 10_000 {
		t.Errorf("a reply of %d bytes, %v", len(r.Reply), err)
	}
}

// An error text goes into a frame of at most 65535 bytes and into a log line.
func TestI10_ErrorsAreShort(t *testing.T) {
	long := strings.Repeat("s3cret", 10_000)
	for _, text := range []string{
		long, `"` + long + `"`, `{"op":"hello","v":"` + long + `"}`, `{"` + long + `":1}`,
		`{"op":"hello","v":` + strings.Repeat("9", 60_000) + `}`, `{"op":"ping"}` + long,
	} {
		if _, err := ParseRequest([]byte(text)); err == nil || len(err.Error()) > 200 || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%.40s…: error is %v", text, err)
		}
	}
}
