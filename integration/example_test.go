//go:build unix

package integration

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
)

// example returns Caddyfile.example with the node's addresses in place of its own.
func (n *node) example() string {
	n.t.Helper()
	text, err := os.ReadFile("../Caddyfile.example")
	if err != nil {
		n.t.Fatal(err)
	}
	example := string(text)
	for _, part := range []struct{ old, new string }{
		{"{\n\trelay {", "{\n\t" + header + "\trelay {"},
		{"127.0.0.1:9000", "{TCP}"}, {"127.0.0.1:9001", "{TCP2}"}, {"http://:8080", "http://:{HTTP}"},
	} {
		if strings.Count(example, part.old) != 1 {
			n.t.Fatalf("Caddyfile.example should have %q once", part.old)
		}
		example = strings.Replace(example, part.old, part.new, 1)
	}
	return example
}

func TestExample(t *testing.T) {
	n := newNode(t)
	n.start(n.example())

	n.storedExample()
	plain := connect(t, n.tcp2, "01", nil)
	js := connectJSON(t, n.tcp2, "01")
	other := connect(t, n.tcp2, "02", nil)
	n.awaitSessions("notice_channel", 3)

	a := n.curl("/notice/01", `{"amount":1}`)
	if a.status != http.StatusAccepted || a.fields["state"] != "published" || a.fields["id"] != "01" ||
		a.fields["channel"] != "notice_channel" || len(a.fields["mid"].(string)) < 22 {
		t.Errorf("answer: %d %s", a.status, a.text)
	}
	if _, there := a.fields["redis_receivers"]; there {
		t.Error("redis_receivers on the embedded broker")
	}
	plain.awaitLine(`{"amount":1}`)
	m := object(t, js.awaitLine(`"message"`))
	if m["mid"] != a.fields["mid"] || m["channel"] != "notice_channel" || m["attempt"] != 1.0 {
		t.Errorf("message: %v", m)
	}
	if body, ok := m["body"].(map[string]any); !ok || body["amount"] != 1.0 {
		t.Errorf("body: %v", m["body"])
	}

	if a := n.curl("/notice/*", "to all"); a.status != http.StatusAccepted {
		t.Errorf("answer: %d %s", a.status, a.text)
	}
	for _, s := range []*socket{plain, js, other} {
		s.awaitLine("to all")
	}
	if got := other.got(); len(got) != 1 {
		t.Errorf("the socket of another ID got %q", got)
	}
	if a := n.curl("/elsewhere/01", "x"); a.status != http.StatusNotFound {
		t.Errorf("a path that nobody serves was answered %d", a.status)
	}
}

// storedExample tries the example's at_least_once channel: a plain socket and one that speaks JSON get what curl
// posts, before they come and after, and the status path says so.
func (n *node) storedExample() {
	t := n.t
	before := n.curl("/pay/02", `{"amount":0}`)
	plain := connect(t, n.tcp, "01", nil)
	js := connectJSON(t, n.tcp, "02")
	n.awaitSessions("pay_mq_channel", 2)
	m := object(t, js.awaitLine(`"message"`))
	if m["mid"] != before.fields["mid"] || m["attempt"] != 1.0 || m["fence"] == nil {
		t.Errorf("message: %v", m)
	}
	if _, err := fmt.Fprintf(js.conn, `{"op":"ack","mid":%q,"reply":{"ok":true}}`+"\n", m["mid"]); err != nil {
		t.Fatal(err)
	}
	a := n.curl("/pay/01", `{"amount":1}`)
	if a.status != http.StatusAccepted || a.fields["state"] != "stored" || a.fields["durability"] != "fsync" ||
		a.fields["channel"] != "pay_mq_channel" || a.header.Get("Location") != "/status/"+a.fields["mid"].(string) {
		t.Errorf("answer: %d %s", a.status, a.text)
	}
	plain.awaitLine(`{"amount":1}`)
	for _, x := range []struct {
		answer answer
		state  string
	}{{before, "acked"}, {a, "written"}} {
		var got answer
		waitFor(t, "the message to be "+x.state, func() bool {
			got = n.get("/status/" + x.answer.fields["mid"].(string))
			return got.fields["state"] == x.state
		})
		if got.status != http.StatusOK || got.fields["attempts"] != 1.0 || got.fields["channel"] != "pay_mq_channel" {
			t.Errorf("status: %s", got.text)
		}
	}
	if a := n.curl("/pay/*", "to all"); a.status != http.StatusUnprocessableEntity || a.fields["error"] != "broadcast_not_stored" {
		t.Errorf("answer to a broadcast: %d %s", a.status, a.text)
	}
}

// Bytes on the way from the request to the socket stay as they are.
func TestBodiesAreByteExact(t *testing.T) {
	n := newNode(t)
	n.start(oneChannel("broker embedded"))
	plain := connect(t, n.tcp, "01", nil)
	js := connectJSON(t, n.tcp, "01")
	n.awaitSessions("pay_mq_channel", 2)
	for _, c := range []struct{ contentType, body, plain, js string }{
		{"application/json", `{"a": 1.0, "b":"<&>", "big":12345678901234567890, "e":1e400}`,
			`{"a": 1.0, "b":"<&>", "big":12345678901234567890, "e":1e400}`,
			`"body":{"a": 1.0, "b":"<&>", "big":12345678901234567890, "e":1e400}}`},
		{"application/json", "{\n  \"a\": \"x y\"\n}", `{"a":"x y"}`, `"body":{"a":"x y"}}`},
		{"application/json", `"a string"`, `"a string"`, `"body":"a string"}`},
		{"text/plain", "20191231000001", "20191231000001", `"enc":"text","body":"20191231000001"}`},
		{"text/plain; charset=utf-8", "收款 <1>", "收款 <1>", `"enc":"text","body":"收款 <1>"}`},
	} {
		before, beforeJS := len(plain.got()), len(js.got())
		if a := n.post("/pay/01", c.contentType, c.body); a.status != http.StatusAccepted {
			t.Fatalf("answer: %d %s", a.status, a.text)
		}
		plain.await("the plain body", func(lines []string) bool { return len(lines) == before+1 })
		js.await("the message", func(lines []string) bool { return len(lines) == beforeJS+1 })
		if got := plain.got()[before]; got != c.plain {
			t.Errorf("plain: got %q, want %q", got, c.plain)
		}
		if got := js.got()[beforeJS]; !strings.HasSuffix(got, c.js) {
			t.Errorf("json: got %q, want it to end in %q", got, c.js)
		}
	}
}
