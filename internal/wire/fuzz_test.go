package wire

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func fuzzNext(f *testing.F, framing Framing) {
	f.Add(frames(framing), 500)
	f.Add([]byte("01\r\n\x00\x02ab\x00\x00\x00\x02cd"), 2)
	f.Add([]byte("\xff\xff\xff\xff"), 1<<20)
	f.Add([]byte("\r\r\n"), 0)
	f.Fuzz(func(t *testing.T, buf []byte, limit int) {
		rest := slices.Clip(buf)
		for {
			payload, n, err := framing.Next(rest, limit)
			switch {
			case n < 0 || n > len(rest):
				t.Fatalf("n is %d of %d", n, len(rest))
			case err != nil:
				if !errors.Is(err, ErrFrameTooLarge) || n != 0 {
					t.Fatalf("%d, %v", n, err)
				}
				return
			case n == 0:
				if uint64(len(rest)) > uint64(max(limit, 0))+8 {
					t.Fatalf("%d bytes, and still no frame within the limit %d", len(rest), limit)
				}
				return
			case len(payload) > max(limit, 0):
				t.Fatalf("a payload of %d bytes passes the limit %d", len(payload), limit)
			}
			again, err := framing.Append(nil, payload)
			if err != nil {
				t.Fatalf("payload %q: %v", payload, err)
			}
			taken := rest[:n]
			if framing.SingleLine() && bytes.HasSuffix(taken, []byte("\r\n")) {
				again = append(bytes.TrimSuffix(again, []byte("\n")), "\r\n"...)
			}
			if !bytes.Equal(again, taken) {
				t.Fatalf("%q encodes to %q", taken, again)
			}
			// All but the last byte of a frame is no frame: nothing comes early.
			if _, early, err := framing.Next(rest[:n-1], limit); early != 0 || err != nil {
				t.Fatalf("%q without its last byte: %d, %v", taken, early, err)
			}
			rest = rest[n:]
		}
	})
}

func FuzzNextLine(f *testing.F)    { fuzzNext(f, line) }
func FuzzNextLength2(f *testing.F) { fuzzNext(f, length2) }
func FuzzNextLength4(f *testing.F) { fuzzNext(f, length4) }

func FuzzAppendNext(f *testing.F) {
	f.Add([]byte("01"), []byte(`{"op":"ping"}`))
	f.Add([]byte(""), []byte("a\rb\r"))
	f.Add([]byte("a\nb"), []byte{0, 255})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		for _, framing := range framings {
			var buf []byte
			var sent [][]byte
			for _, payload := range [][]byte{one, two, one} {
				longer, err := framing.Append(buf, payload)
				refuse := framing.SingleLine() && bytes.Contains(payload, []byte("\n")) || len(payload) > framing.MaxPayload()
				if (err != nil) != refuse || err != nil && !errors.Is(err, ErrUnframable) {
					t.Fatalf("%s: %q: %v", framing, payload, err)
				}
				if err == nil {
					sent = append(sent, payload)
				}
				buf = longer
			}
			for _, payload := range sent {
				got, n, err := framing.Next(buf, len(payload))
				if framing.SingleLine() {
					payload = bytes.TrimSuffix(payload, []byte("\r")) // as documented
				}
				if err != nil || n == 0 || !bytes.Equal(got, payload) {
					t.Fatalf("%s: %q comes back as %q, %d, %v", framing, payload, got, n, err)
				}
				buf = buf[n:]
			}
			if len(buf) > 0 {
				t.Fatalf("%s: %q is left", framing, buf)
			}
		}
	})
}

// encoding/json, into a map, is the model: its names are exact and the last of doubled ones counts.
func FuzzParseRequest(f *testing.F) {
	for _, text := range []string{
		`{"op":"hello","v":1,"id":"01","token":"t","window":16,"heartbeat":30}`, `{"op":"hello","id":1e3,"\u0069d":"02"}`,
		` {"op" : "ack", "mid":"m","reply": {"a":[1,"}",{}]} }`, `{"op":"nack","mid":"m","delay":0.5,"terminate":true}`,
		"\ufeff{\"op\":\"ping\"}", `[]`, `{"op":null}`, `{"a":{"op":"ping"}}`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, frame []byte) {
		before := bytes.Clone(frame)
		r, err := ParseRequest(frame)
		if !bytes.Equal(before, frame) {
			t.Fatalf("the frame changed to %q", frame)
		}
		if err != nil {
			if len(err.Error()) > 200 || strings.ContainsAny(err.Error(), "\r\n") {
				t.Fatalf("error text %q", err)
			}
			return
		}
		var model map[string]json.RawMessage
		if err := json.Unmarshal(trimBOM(frame), &model); err != nil {
			t.Fatalf("%q is accepted, but: %v", frame, err)
		}
		for name, got := range map[string]string{"op": string(r.Op), "token": r.Token, "mac": r.MAC, "mid": r.MID, "reason": r.Reason} {
			var want string
			if raw, ok := model[name]; ok && json.Unmarshal(raw, &want) != nil || got != want {
				t.Fatalf("%q: %s is %q, want %q", frame, name, got, want)
			}
		}
		for name, got := range map[string]int{"v": r.V, "window": r.Window, "heartbeat": r.Heartbeat} {
			var want float64
			if raw, ok := model[name]; ok && json.Unmarshal(raw, &want) != nil || got < 0 || float64(got) != want {
				t.Fatalf("%q: %s is %d, want %f", frame, name, got, want)
			}
		}
		if want := model["reply"]; !bytes.Equal(r.Reply, want) {
			t.Fatalf("%q: reply is %q, want %q", frame, r.Reply, want)
		}
		if id := model["id"]; len(id) > 0 && id[0] != '"' && id[0] != 'n' && r.ID != string(id) {
			t.Fatalf("%q: id is %q, want %q", frame, r.ID, id)
		}
		if r.Delay < 0 || r.Op == "" {
			t.Fatalf("%q: %+v", frame, r)
		}
	})
}

// withoutSpace is the model of the only change that a JSON body may undergo.
func withoutSpace(text []byte) []byte {
	var out []byte
	inside, escaped := false, false
	for _, c := range text {
		if !inside && strings.IndexByte(" \t\r\n", c) >= 0 {
			continue
		}
		out = append(out, c)
		switch {
		case escaped:
			escaped = false
		case inside && c == '\\':
			escaped = true
		case c == '"':
			inside = !inside
		}
	}
	return out
}

func FuzzMessageBody(f *testing.F) {
	for _, body := range []string{
		`{"a":1}`, "{\n\"a\" : \"< \\\" \u2028\"}\r\n", "[1.0, 1e400,\n12345678901234567890]", `{"a":1,"a":2}`, "12", `"x"`, "null",
		"text\n", "\xff\xfe", "{\"a\":\"\xff\"}", "", " ",
	} {
		f.Add("application/json", []byte(body), true)
		f.Add("text/plain", []byte(body), false)
	}
	f.Fuzz(func(t *testing.T, contentType string, body []byte, singleLine bool) {
		text := AppendMessage(nil, &Message{MID: "m", Channel: contentType, ContentType: contentType, Body: body}, singleLine)
		if singleLine && hasLineBreak(text) {
			t.Fatalf("a raw line break in %q", text)
		}
		if !utf8.Valid(text) {
			t.Fatalf("not UTF-8: %q", text)
		}
		var got struct {
			Op, MID, Enc string
			Body         json.RawMessage
		}
		if err := json.Unmarshal(text, &got); err != nil || got.Op != "message" || got.MID != "m" {
			t.Fatalf("%q: %v", text, err)
		}
		var back string
		if got.Enc != "" {
			if err := json.Unmarshal(got.Body, &back); err != nil {
				t.Fatal(err)
			}
		}
		switch got.Enc {
		case "text":
			if back != string(body) {
				t.Fatalf("%q comes back as %q", body, back)
			}
		case "base64":
			if decoded, err := base64.StdEncoding.DecodeString(back); err != nil || !bytes.Equal(decoded, body) || utf8.Valid(body) {
				t.Fatalf("%q comes back as %q, %v", body, decoded, err)
			}
		case "":
			want := body
			if singleLine && hasLineBreak(body) {
				want = withoutSpace(body)
			}
			if !bytes.HasSuffix(text, []byte(`,"body":`+string(want)+"}")) {
				t.Fatalf("%q stands as %q", body, text)
			}
		}
		if framed, err := AppendPlain(nil, line, body); err == nil {
			payload := bytes.TrimSuffix(framed, []byte("\n"))
			if !bytes.Equal(payload, body) && !bytes.Equal(payload, withoutSpace(body)) || bytes.Contains(payload, []byte("\n")) {
				t.Fatalf("%q is framed as %q", body, framed)
			}
		}
	})
}

// The functions that see a stranger's first bytes take any.
func FuzzFirstFrame(f *testing.F) {
	f.Add([]byte("01 token"))
	f.Add([]byte("GET / HTTP/1.1\r\n"))
	f.Add([]byte("\x10\x00\x04MQTT"))
	f.Add([]byte("*1\r\n$"))
	f.Add([]byte("\ufeff {"))
	f.Fuzz(func(t *testing.T, first []byte) {
		id, token := ParsePlainHello(first)
		if strings.ContainsAny(id, jsonSpace) || id == "" && token != "" {
			t.Fatalf("%q: %q, %q", first, id, token)
		}
		if len(id)+len(token) > len(first) {
			t.Fatalf("%q: %q, %q", first, id, token)
		}
		_ = Greeting(first)
		_ = LooksLikeJSON(first)
		for _, framing := range framings {
			frame := AppendPlainError(nil, framing, Error{Code: 400, Reason: string(first)})
			if payload, n, err := framing.Next(frame, maxPlainError); err != nil || n != len(frame) || hasLineBreak(payload) {
				t.Fatalf("%s: %q, %v", framing, frame, err)
			}
		}
	})
}
