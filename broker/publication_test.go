package broker

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"
)

var accepted = time.UnixMilli(1_700_000_000_123)

// The bytes that other programs read: id and msg first, the body as it was posted.
func TestPayload(t *testing.T) {
	for _, c := range []struct{ name, contentType, body, msg string }{
		{"object", "application/json", `{"amount":1.0,"note":"<&>","n":12345678901234567890}`, ``},
		{"spaces inside", "application/json", "{ \"a\" :\r\n\t1 }", ``},
		{"doubled names", "application/json", `{"a":1,"a":2}`, ``},
		{"escapes", "application/json", `{"s":"\u003c\/\u00e9\ud83d\ude00"}`, ``},
		{"exponents", "application/json; charset=utf-8", `[1e400,-0,1E+2,0.10]`, ``},
		{"string", "application/json", `"hi"`, ``},
		{"null", "application/vnd.pay+json", `null`, ``},
		{"separators", "application/json", "\"\u2028\"", ``},
		{"text", "text/plain", `a "quoted" <b>`, `"a \"quoted\" <b>"`},
		{"lines", "text/plain", "a\r\nb\t\x00", `"a\r\nb\t\u0000"`},
		{"JSON without its type", "", `{"a":1}`, `"{\"a\":1}"`},
		{"form", "application/x-www-form-urlencoded", "a=1&b=é", `"a=1&b=é"`},
		{"empty", "text/plain", "", `""`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.msg == "" {
				c.msg = c.body
			}
			m := &Message{MID: "M", Channel: "c", ID: `0"1<`, Time: accepted, ContentType: c.contentType, Body: []byte(c.body)}
			p, err := FromMessage(m)
			if err != nil {
				t.Fatal(err)
			}
			want := `{"id":"0\"1<","msg":` + c.msg + `,"relay":{"mid":"M","ts":1700000000123`
			if !strings.HasPrefix(string(p.Payload()), want) {
				t.Errorf("payload\n%s\nwant\n%s…", p.Payload(), want)
			}
			var shape struct {
				ID  string
				Msg json.RawMessage
			}
			if err := json.Unmarshal(p.Payload(), &shape); err != nil || shape.ID != m.ID {
				t.Errorf("another program reads %q, %v", shape.ID, err)
			}
			if again := p.Payload(); &again[0] != &p.Payload()[0] {
				t.Error("the payload was made twice")
			}
			back, err := FromPayload(p.Payload()).Message()
			if err != nil {
				t.Fatal(err)
			}
			m.Channel = ""
			if !equal(back, m) {
				t.Errorf("came back as\n%+v\nwant\n%+v", back, m)
			}
		})
	}
}

func equal(a, b *Message) bool {
	return a.MID == b.MID && a.Channel == b.Channel && a.ID == b.ID && a.Ref == b.Ref && a.Source == b.Source &&
		a.ContentType == b.ContentType && bytes.Equal(a.Body, b.Body) && a.Time.Equal(b.Time) && maps.Equal(a.Headers, b.Headers)
}

func TestPayloadCarriesTheRest(t *testing.T) {
	m := &Message{
		MID: NewMID(), ID: Everyone, Ref: `a"b`, Source: "route", Headers: map[string]string{"X-Sign": "<é>"},
		ContentType: "application/json", Body: []byte(" {\"a\":1}\n"), Time: accepted,
	}
	p, err := FromMessage(m)
	if err != nil {
		t.Fatal(err)
	}
	if own, err := p.Message(); err != nil || own != m {
		t.Errorf("its own message is %p, %v, want %p", own, err, m)
	}
	back, err := FromPayload(p.Payload()).Message()
	if err != nil {
		t.Fatal(err)
	}
	m.Body = []byte(`{"a":1}`) // white space around a JSON text is not of it
	if !equal(back, m) {
		t.Errorf("came back as\n%+v\nwant\n%+v", back, m)
	}
}

func TestCheckBody(t *testing.T) {
	nested := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for _, c := range []struct{ contentType, body, want string }{
		{"application/json", `{"a":1`, "not valid JSON"},
		{"application/json", ``, "not valid JSON"},
		{"application/json", `{} {}`, "not valid JSON"},
		{"application/json", `01`, "not valid JSON"},
		{"text/x+json; charset=utf-8", `hi`, "not valid JSON"},
		{"application/json", "\"\xff\"", "UTF-8"},
		{"text/plain", "\xff", "UTF-8"},
		{"", "\xc3", "UTF-8"},
		{"application/json", nested(9001), "nested deeper than 9000"},
		{"application/json", nested(9000), ""},
		{"application/json", `{"s":"` + strings.Repeat("[", 20000) + `\""}`, ""},
		{"application/json", "[" + strings.Repeat("[],", 20000) + "[]]", ""},
		{"text/plain", nested(20000), ""},
	} {
		m := &Message{ID: "01", ContentType: c.contentType, Body: []byte(c.body)}
		p, err := FromMessage(m)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s %.20q: %v, want %q", c.contentType, c.body, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s %.20q: %v", c.contentType, c.body, err)
			continue
		}
		// What is accepted can be read by whoever hears it.
		if back, err := FromPayload(p.Payload()).Message(); err != nil || string(back.Body) != c.body {
			t.Errorf("%s %.20q did not come back: %v", c.contentType, c.body, err)
		}
	}
}

func TestIsJSON(t *testing.T) {
	for contentType, want := range map[string]bool{
		"application/json": true, "Application/JSON": true, "application/json;charset=utf-8": true, " application/json ": true,
		"application/problem+json": true, "image/svg+xml": false, "text/plain": false, "": false, "application/jsonp": false,
		"json": false, "application/x-ndjson": false, "text/json": false,
	} {
		if IsJSON(contentType) != want {
			t.Errorf("IsJSON(%q) is %v", contentType, !want)
		}
	}
}

// What programs publish that know nothing of the relay.
func TestForeignPayload(t *testing.T) {
	for _, c := range []struct{ payload, id, body, contentType string }{
		{`{"id":"01","msg":"hi"}`, "01", "hi", ""},
		{`{"id":"01","msg":{"a":1.0, "b" : "<" }}`, "01", `{"a":1.0, "b" : "<" }`, "application/json"},
		{`{"msg":[1,2],"id":7}`, "7", "[1,2]", "application/json"},
		{`{"id":12345678901234567890,"msg":null}`, "12345678901234567890", "null", "application/json"},
		{`{"id":1.0,"msg":true}`, "1.0", "true", "application/json"},
		{`{"id":-1e5,"msg":0}`, "-1e5", "0", "application/json"},
		{" \r\n\t{ \"id\" : \"01\" ,\n\"msg\" : \"a\\nb\" }\n ", "01", "a\nb", ""},
		{`{"a":{"id":"x","msg":"y"},"id":"01","b":["}",{"id":1}],"msg":"m","c":"\"id\":\"z\""}`, "01", "m", ""},
		{`{"ID":"x","id":"01","Id":"y","MSG":1,"msg":"m","Msg":2}`, "01", "m", ""},
		{`{"id":"x","msg":1,"id":"01","msg":2}`, "01", "2", "application/json"},
		{`{"\u0069d":"01","m\u0073g":"m"}`, "01", "m", ""},
		{`{"id\\":1,"id":"01","msg":"m"}`, "01", "m", ""},
		{`{"id":"*","msg":"all"}`, "*", "all", ""},
		{`{"id":"\u652f","msg":"\ud83d\ude00"}`, "支", "😀", ""},
		{`{"id":"01","msg":"m","relay":"not ours"}`, "01", "m", ""},
		{`{"id":"01","msg":"m","relay":{"mid":7,"ref":"x"}}`, "01", "m", ""},
		{`{"id":"01","msg":"m","relay":{"ref":"no mid"}}`, "01", "m", ""},
		{`{"id":"01","msg":"m","relay":null}`, "01", "m", ""},
		{`{"id":"01","msg":{}}`, "01", "{}", "application/json"},
		{`{"id":"01","msg":""}`, "01", "", ""},
	} {
		before := time.Now()
		m, err := FromPayload([]byte(c.payload)).Message()
		if err != nil {
			t.Errorf("%s: %v", c.payload, err)
			continue
		}
		if m.ID != c.id || string(m.Body) != c.body || m.ContentType != c.contentType || m.Ref != "" {
			t.Errorf("%s: got %+v with the body %s", c.payload, m, m.Body)
		}
		if m.MID == "" || m.Time.Before(before) || m.Time.After(time.Now()) {
			t.Errorf("%s: got the MID %q and the time %v", c.payload, m.MID, m.Time)
		}
	}
}

func TestNotForSockets(t *testing.T) {
	for _, payload := range []string{
		"", " ", "hi", "01", `"id"`, "null", `[]`, `[{"id":"01","msg":1}]`, `{}`, `{"id":"01"}`, `{"msg":"m"}`,
		`{"id":"01","msg":}`, `{"id":"01","msg":1`, `{"id":"01","msg":1}}`, `{"id":"01","msg":1} x`, `{'id':'01','msg':1}`,
		`{"id":"01" "msg":1}`, `{"id":"01","msg":1,}`, `{"id":01,"msg":1}`,
		`{"id":null,"msg":1}`, `{"id":true,"msg":1}`, `{"id":{},"msg":1}`, `{"id":["01"],"msg":1}`, `{"id":"","msg":1}`,
		`{"id":"a b","msg":1}`, `{"id":"a\u0000","msg":1}`, `{"id":"\ud800","msg":1}`,
		`{"id":"` + strings.Repeat("x", 10_000) + `","msg":1}`, `{"id":` + strings.Repeat("1", 129) + `,"msg":1}`,
		"{\"id\":\"a\xff\",\"msg\":1}", "{\"id\":\"01\",\"msg\":\"\xff\"}", "\xef\xbb\xbf{\"id\":\"01\",\"msg\":1}",
		`{"ID":"01","msg":1}`, `{"id":"01","Msg":1}`, `{"id":"01","msg":1,"id":null}`,
		strings.Repeat(`{"id":"01","msg":`, 20_000),
	} {
		p := FromPayload([]byte(payload))
		m, err := p.Message()
		if !errors.Is(err, ErrNotForSockets) {
			t.Errorf("%.60q: %v, %v", payload, m, err)
		}
		if _, again := p.Message(); !errors.Is(again, ErrNotForSockets) {
			t.Errorf("%.60q: asked again: %v", payload, again)
		}
		if string(p.Payload()) != payload {
			t.Errorf("%.60q: the payload changed", payload)
		}
	}
}

// A publication is converted once: each conversion of a foreign one would make another MID.
func TestMessageIsTheSameWheneverAsked(t *testing.T) {
	p := FromPayload([]byte(`{"id":"01","msg":"hi"}`))
	one, err := p.Message()
	if err != nil {
		t.Fatal(err)
	}
	if two, _ := p.Message(); two != one {
		t.Error("two messages of one publication")
	}
}

func TestParseID(t *testing.T) {
	for text, want := range map[string]string{
		`"01"`: "01", `7`: "7", `-7`: "-7", `1.50`: "1.50", `"*"`: "*", `"a\"b"`: `a"b`, `1e9`: "1e9",
	} {
		if id, err := ParseID([]byte(text)); err != nil || id != want {
			t.Errorf("ParseID(%s): %q, %v, want %q", text, id, err, want)
		}
	}
	for _, text := range []string{"", "null", "true", "{}", "[]", `"`, `""`, `"a b"`, `"a,b"`, `"\ud800"`, "x"} {
		if id, err := ParseID([]byte(text)); err == nil {
			t.Errorf("ParseID(%s): %q, want an error", text, id)
		}
	}
}

// What was stored says so to other relays, and reads the same to other programs.
func TestStoredPublication(t *testing.T) {
	m := &Message{MID: "M", ID: "01", Time: accepted, ContentType: "text/plain", Body: []byte("hi")}
	plain, err := FromMessage(m)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := FromStored(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		p    *Publication
		want bool
	}{
		{plain, false},
		{stored, true},
		{FromPayload(plain.Payload()), false},
		{FromPayload(stored.Payload()), true},
		{FromPayload([]byte(`{"id":"01","msg":1}`)), false},
		{FromPayload([]byte(`{"id":"01","msg":1,"relay":{"stored":true}}`)), false}, // not a relay's: it has no mid
		{FromPayload([]byte(`not JSON`)), false},
	} {
		if c.p.Stored() != c.want {
			t.Errorf("%s: %v", c.p.Payload(), !c.want)
		}
	}
	if !bytes.HasPrefix(stored.Payload(), []byte(`{"id":"01","msg":"hi","relay":{`)) {
		t.Errorf("%s", stored.Payload())
	}
	if _, err := FromStored(&Message{Body: []byte{0xff}}); err == nil {
		t.Error("bytes that are no text were published")
	}
}
