package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

func TestMessageBytes(t *testing.T) {
	full := &Message{
		MID: "M", Channel: "pay_mq_channel", Attempt: 2, Fence: "7", TS: 1764547200123, Ref: "order-1", Source: "alipay",
		Headers:     map[string]string{"X-B": "2", "X-A": "<\"1\">\n"},
		ContentType: "application/json", Body: []byte(`{"amount":1}`),
	}
	for want, m := range map[string]*Message{
		`{"op":"message","mid":"M","channel":"pay_mq_channel","attempt":2,"fence":"7","ts":1764547200123,"ref":"order-1",` +
			`"source":"alipay","headers":{"X-A":"<\"1\">\n","X-B":"2"},"content_type":"application/json","body":{"amount":1}}`: full,
		`{"op":"message","mid":"M","channel":"c","attempt":1,"ts":0,"enc":"text","body":""}`: {MID: "M", Channel: "c", Attempt: 1},
	} {
		for _, singleLine := range []bool{true, false} {
			if got := AppendMessage([]byte("before"), m, singleLine); string(got) != "before"+want {
				t.Errorf("\n got %s\nwant before%s", got, want)
			}
		}
	}

	// As many headers as anybody may configure, in order.
	many := &Message{Headers: map[string]string{}}
	var want []string
	for i := range 40 {
		name := fmt.Sprintf("X-%02d", i)
		many.Headers[name] = "v"
		want = append(want, `"`+name+`":"v"`)
	}
	if got := AppendMessage(nil, many, true); !bytes.Contains(got, []byte(`"headers":{`+strings.Join(want, ",")+`}`)) {
		t.Errorf("got %s", got)
	}
}

const (
	jsonType = "application/json"
	textType = "text/plain; charset=utf-8"
	formType = "application/x-www-form-urlencoded"
)

// What stands behind "content_type", for each body.
func TestMessageBody(t *testing.T) {
	for _, c := range []struct{ contentType, body, want string }{
		// JSON goes as it stands: no escaping, no rounding, nothing reordered or dropped.
		{jsonType, `{"a":1}`, `"body":{"a":1}`},
		{jsonType, `{"b":"<&>","a":"\u003c\/\u2028"}`, `"body":{"b":"<&>","a":"\u003c\/\u2028"}`},
		{jsonType, "{\"a\":\"\u2028\x7f\"}", "\"body\":{\"a\":\"\u2028\x7f\"}"},
		{jsonType, `{"a":1,"a":2,"A":3}`, `"body":{"a":1,"a":2,"A":3}`},
		{jsonType, `[1.0,1e400,-0,12345678901234567890,0.1000]`, `"body":[1.0,1e400,-0,12345678901234567890,0.1000]`},
		{jsonType, ` {"a" : [ ] }` + "\t", `"body": {"a" : [ ] }` + "\t"},
		{jsonType, `"text"`, `"body":"text"`},
		{jsonType, `12345678901234567890`, `"body":12345678901234567890`},
		{jsonType, `null`, `"body":null`},
		{"application/json; charset=utf-8", `1`, `"body":1`},
		{"Application/JSON", `1`, `"body":1`},
		{"application/cloudevents+json", `1`, `"body":1`},
		{formType, `{"a":1}`, `"body":{"a":1}`}, // curl -d without a type
		{textType, ` [1]`, `"body": [1]`},
		{"", `{}`, `"body":{}`},

		// What is valid JSON by accident stays text.
		{textType, `12345678901234567890`, `"enc":"text","body":"12345678901234567890"`},
		{textType, `true`, `"enc":"text","body":"true"`},
		{"", `"quoted"`, `"enc":"text","body":"\"quoted\""`},
		{"application/json-seq", `1`, `"enc":"text","body":"1"`},
		{"application/json; charset", `1`, `"enc":"text","body":"1"`}, // broker.IsJSON says no, too

		// What is not valid JSON is text, whatever its type says.
		{jsonType, ``, `"enc":"text","body":""`},
		{jsonType, ` `, `"enc":"text","body":" "`},
		{jsonType, `{"a":1`, `"enc":"text","body":"{\"a\":1"`},
		{jsonType, `{"a":1}{"b":2}`, `"enc":"text","body":"{\"a\":1}{\"b\":2}"`},
		{jsonType, "\ufeff{}", "\"enc\":\"text\",\"body\":\"\ufeff{}\""},
		{formType, "a=1&b=<2>\r\n", `"enc":"text","body":"a=1&b=<2>\r\n"`},
		{textType, "\x00\x1f\x7f\b\f\t\"\\/中\u2028\u2029\ufffd😀",
			`"enc":"text","body":"\u0000\u001f` + "\x7f" + `\b\f\t\"\\/中\u2028\u2029` + "\ufffd😀\""},

		// Bytes.
		{"", "\xff", `"enc":"base64","body":"/w=="`},
		{textType, "GBK \xd6\xd0", `"enc":"base64","body":"R0JLINbQ"`},
		{jsonType, "{\"a\":\"\xd6\xd0\"}", `"enc":"base64","body":"eyJhIjoi1tAifQ=="`}, // json.Valid says yes
		{jsonType, "{\"a\":\"\xed\xa0\x80\"}", `"enc":"base64","body":"eyJhIjoi7aCAIn0="`},
	} {
		for _, singleLine := range []bool{true, false} {
			got := appendBody([]byte(","), &Message{ContentType: c.contentType, Body: []byte(c.body)}, singleLine)
			if string(got) != ",,"+c.want {
				t.Errorf("%s %q:\n got %s\nwant ,,%s", c.contentType, c.body, got, c.want)
			}
			if !json.Valid([]byte(`{"":0` + string(got[1:]) + `}`)) {
				t.Errorf("%s %q: not JSON: %s", c.contentType, c.body, got)
			}
		}
	}
}

// Only white space outside strings may go, and only where a line end would end the frame.
func TestMessageBodyLines(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{"{\n  \"a\": 1.0,\r\n  \"b\": [1e400, 12345678901234567890]\n}\n", `{"a":1.0,"b":[1e400,12345678901234567890]}`},
		{"{\"a\": \"< > & ' \\n \\\" \\\\\",\n\"\\u003c\": \"\\u2028\"}", `{"a":"< > & ' \n \" \\","\u003c":"\u2028"}`},
		{"{\"\u2028\":\n\"\u2029 \x7f\"}", "{\"\u2028\":\"\u2029 \x7f\"}"},
		{"{\"a\":1,\n\"a\":2, \"A\":3}", `{"a":1,"a":2,"A":3}`},
		{"\r[ ]", `[]`},
		{"[1 ,\t2]\n", `[1,2]`},
		{"[1 ,\t2]", "[1 ,\t2]"},
	} {
		m := &Message{ContentType: jsonType, Body: []byte(c.body)}
		if got := string(appendBody(nil, m, true)); got != `,"body":`+c.want {
			t.Errorf("%q:\n got %s\nwant %s", c.body, got, c.want)
		}
		if got := string(appendBody(nil, m, false)); got != `,"body":`+c.body {
			t.Errorf("%q: changed although it need not be one line: %s", c.body, got)
		}
		if string(m.Body) != c.body {
			t.Errorf("the message itself changed: %q", m.Body)
		}
	}
}
