package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
	"unicode/utf8"
)

// Op is what a text of the JSON protocol is about.
type Op string

// The ops of protocol version 1. OpChallenge is reserved.
const (
	OpHello     Op = "hello"
	OpWelcome   Op = "welcome"
	OpMessage   Op = "message"
	OpAck       Op = "ack"
	OpNack      Op = "nack"
	OpWorking   Op = "working"
	OpPing      Op = "ping"
	OpPong      Op = "pong"
	OpChallenge Op = "challenge"
	OpError     Op = "error"
	OpGoodbye   Op = "goodbye"
)

// Request is what a client says in the JSON protocol:
//
//	{"op":"hello","v":1,"id":"01","token":"…","window":16,"heartbeat":30}
//	{"op":"ack","mid":"…","reply":…}
//	{"op":"nack","mid":"…","delay":30,"reason":"…"}      or "terminate":true
//	{"op":"working","mid":"…"}
//	{"op":"ping"}   {"op":"pong"}   {"op":"goodbye"}
//
// What the client left out, or gave as null, is zero.
type Request struct {
	// Op is never empty, but may be one that is not known here.
	Op Op

	V         int           // version of the protocol
	ID        string        // destination to register under; not checked yet
	Token     string        // proof that the client may
	MAC       string        // the same, as the answer to a challenge
	Window    int           // messages the client takes before it acknowledges one
	Heartbeat int           // seconds of silence after which it wants to be pinged
	MID       string        // the message that ack, nack and working are about
	Reply     []byte        // raw JSON, in the memory of the frame; nil if there is none
	Delay     time.Duration // how long to wait before the message is pushed again
	Reason    string        // why a message was not acknowledged
	Terminate bool          // whether to give the message up
}

// maxNumber bounds what a client can give as a number, so that no arithmetic on it overflows.
const maxNumber = math.MaxInt32

// ParseRequest understands one frame of a client. Members that it does not know are
// ignored; of repeated ones the last counts; names must match exactly.
//
// The error is for the author of the client. It never repeats a value: that may be a
// secret, and as long as a frame.
func ParseRequest(frame []byte) (Request, error) {
	text := trimBOM(frame)
	if !isJSON(text) {
		return Request{}, whyNotJSON(text)
	}
	if !LooksLikeJSON(text) {
		return Request{}, fmt.Errorf("the frame must be a JSON object, not %s", kindOf(bytes.TrimLeft(text, jsonSpace)))
	}
	var r Request
	for name, value := range members(text) {
		if err := r.set(name, value); err != nil {
			return Request{}, fmt.Errorf("%q %w", name, err) // only known names fail, so it is short
		}
	}
	switch r.Op {
	case "":
		return Request{}, errors.New(`there is no "op"`)
	case OpAck, OpNack, OpWorking:
		if r.MID == "" {
			return Request{}, fmt.Errorf(`op %q needs the "mid" of the message`, r.Op)
		}
	}
	return r, nil
}

// set takes one member.
func (r *Request) set(name, value []byte) (err error) {
	if string(name) == "reply" {
		r.Reply = value // null is a reply as good as any
		return nil
	}
	if string(value) == "null" {
		value = nil
	}
	switch string(name) {
	case "op":
		var op string
		op, err = stringOf(value)
		r.Op = Op(op)
	case "v":
		r.V, err = intOf(value)
	case "id":
		r.ID, err = idOf(value)
	case "token":
		r.Token, err = stringOf(value)
	case "mac":
		r.MAC, err = stringOf(value)
	case "window":
		r.Window, err = intOf(value)
	case "heartbeat":
		r.Heartbeat, err = intOf(value)
	case "mid":
		r.MID, err = stringOf(value)
	case "delay":
		var seconds float64
		seconds, err = numberOf(value)
		r.Delay = time.Duration(seconds * float64(time.Second))
	case "reason":
		r.Reason, err = stringOf(value)
	case "terminate":
		r.Terminate, err = boolOf(value)
	}
	return err
}

// whyNotJSON says where text stops being JSON.
func whyNotJSON(text []byte) error {
	if len(bytes.TrimLeft(text, jsonSpace)) == 0 {
		return errors.New("the frame is empty; it must be a JSON object")
	}
	if !utf8.Valid(text) {
		return errors.New("the frame is not valid UTF-8, so it is not JSON")
	}
	var raw json.RawMessage
	err := json.Unmarshal(text, &raw)
	if syntax := (*json.SyntaxError)(nil); errors.As(err, &syntax) {
		return fmt.Errorf("the frame is not valid JSON: byte %d: %w", syntax.Offset, err)
	}
	return errors.New("the frame is not valid JSON")
}

// The functions below read the raw value of a member, which is valid JSON, or nil for null.

func stringOf(value []byte) (string, error) {
	if value != nil && value[0] != '"' {
		return "", fmt.Errorf("must be a string, not %s", kindOf(value))
	}
	if value == nil {
		return "", nil
	}
	return string(unquote(value)), nil
}

// idOf takes a number too, as its digits stand in the text: many programs keep IDs as numbers.
func idOf(value []byte) (string, error) {
	if value != nil && kindOf(value) == aNumber {
		return string(value), nil
	}
	return stringOf(value)
}

func boolOf(value []byte) (bool, error) {
	if value != nil && kindOf(value) != aBoolean {
		return false, fmt.Errorf("must be true or false, not %s", kindOf(value))
	}
	return string(value) == "true", nil
}

// intOf takes 30.0 for 30 as well: languages whose only number is a double may print it so.
func intOf(value []byte) (int, error) {
	n, err := numberOf(value)
	if err == nil && n != math.Trunc(n) {
		err = errors.New("must be a whole number")
	}
	if err != nil {
		return 0, err
	}
	return int(n), nil
}

func numberOf(value []byte) (float64, error) {
	if value == nil {
		return 0, nil
	}
	if kindOf(value) != aNumber {
		return 0, fmt.Errorf("must be a number, not %s", kindOf(value))
	}
	n, err := strconv.ParseFloat(string(value), 64)
	if err != nil || n < 0 || n > maxNumber {
		return 0, fmt.Errorf("must be a number from 0 to %d", maxNumber)
	}
	return n, nil
}

const (
	aNumber  = "a number"
	aBoolean = "a boolean"
)

// kindOf names what a raw value is.
func kindOf(value []byte) string {
	switch value[0] {
	case '"':
		return "a string"
	case '{':
		return "an object"
	case '[':
		return "an array"
	case 't', 'f':
		return aBoolean
	case 'n':
		return "null"
	}
	return aNumber
}
