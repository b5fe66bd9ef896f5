package broker

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"testing"
	"time"
	"unicode/utf8"
)

var payloadSeeds = []string{
	`{"id":"01","msg":{"a":[1,{"b":"}"}]},"relay":{"mid":"m","ts":1}}`, `{"msg":"a\"b","id":7}`, ` { "id" : -1.5e3 , "msg" : null } `,
	`{"ID":1,"\u0069d":"x","msg":"\ud83d\ude00\ud800"}`, `{"id":"1","msg":1,"id":"2"}`, `{"a":{},"b":[],"id":"01","msg":true}`, `[]`, `{`, "",
	"{\"id\":\"\xff\",\"msg\":1}", `{"":"","id":"01","msg":""}`,
}

// members reads the same as encoding/json does with a map, whose names are exact.
func FuzzMembers(f *testing.F) {
	for _, s := range payloadSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		before := bytes.Clone(payload)
		id, msg, relay, err := members(payload)
		if !bytes.Equal(before, payload) {
			t.Fatal("the payload changed")
		}
		var want map[string]json.RawMessage
		valid := utf8.Valid(payload) && json.Unmarshal(payload, &want) == nil && want != nil
		if _, ok := want["id"]; !ok {
			valid = false
		}
		if _, ok := want["msg"]; !ok {
			valid = false
		}
		if (err == nil) != valid {
			t.Fatalf("%q: error %v, and encoding/json makes %q of it", payload, err, want)
		}
		if err != nil {
			if !errors.Is(err, ErrNotForSockets) {
				t.Fatalf("%q: %v", payload, err)
			}
			return
		}
		for name, got := range map[string][]byte{"id": id, "msg": msg, "relay": relay} {
			if !bytes.Equal(got, want[name]) {
				t.Fatalf("%q: %s is %q, want %q", payload, name, got, want[name])
			}
		}
	})
}

// I11: no bytes make Message panic, and whatever it accepts is an ID that a socket can have, or Everyone.
func FuzzI11_Message(f *testing.F) {
	for _, s := range payloadSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		m, err := FromPayload(payload).Message()
		if err != nil {
			if !errors.Is(err, ErrNotForSockets) {
				t.Fatalf("%q: %v", payload, err)
			}
			return
		}
		if m.ID != Everyone && CheckID(m.ID) != nil || m.MID == "" || !utf8.Valid(m.Body) {
			t.Fatalf("%q: %+v", payload, m)
		}
	})
}

// What FromMessage accepts comes back equal.
func FuzzRoundTrip(f *testing.F) {
	f.Add("01", "", "", "application/json", []byte(`{"a":1.0}`), int64(1))
	f.Add("é", "r\"", "s", "text/plain", []byte("a\r\n\u2028<"), int64(-1))
	f.Add("*", "", "", "", []byte(`"quoted"`), int64(0))
	f.Add("1", "", "", "a/b+json", []byte(" \"q\" "), int64(1<<40))
	f.Fuzz(func(t *testing.T, id, ref, source, contentType string, body []byte, ms int64) {
		if CheckID(id) != nil && id != Everyone {
			t.Skip()
		}
		for _, s := range []string{ref, source, contentType} {
			if !utf8.ValidString(s) {
				t.Skip() // they come from configurations and HTTP headers, which are checked there
			}
		}
		m := &Message{MID: "M", ID: id, Ref: ref, Source: source, ContentType: contentType, Body: body, Time: time.UnixMilli(ms)}
		p, err := FromMessage(m)
		if err != nil {
			return
		}
		if !json.Valid(p.Payload()) {
			t.Fatalf("not JSON: %q", p.Payload())
		}
		back, err := FromPayload(p.Payload()).Message()
		if err != nil {
			t.Fatalf("%q: %v", p.Payload(), err)
		}
		want := *m
		if IsJSON(contentType) {
			want.Body = bytes.Trim(body, " \t\r\n")
		}
		if !equal(back, &want) || !maps.Equal(back.Headers, m.Headers) {
			t.Fatalf("got %+v, want %+v", back, &want)
		}
	})
}
