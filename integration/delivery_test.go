//go:build unix

package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
)

// storedConfig is a whole configuration with one at_least_once channel: options are those of the channel, publish
// those of relay_publish.
func storedConfig(broker, options, publish string) string {
	text := atLeastOnce(broker, "delivery at_least_once\n"+options)
	text = strings.Replace(text, "id {path.1}\n", "id {path.1}\n"+publish+"\n", 1)
	return strings.Replace(text, "	respond \"no such path\" 404", `	relay_status /status/* pay_mq_channel {
		mid {path.1}
		open
		reply
		body
		cancel
	}
	relay_status /orders/* pay_mq_channel {
		ref {path.1}
		open
	}
	respond "no such path" 404`, 1)
}

// onBothBrokers runs a test with the embedded broker and with Redis.
func onBothBrokers(t *testing.T, test func(t *testing.T, broker string)) {
	t.Helper()
	t.Run("embedded", func(t *testing.T) { test(t, "broker embedded") })
	t.Run("redis", func(t *testing.T) {
		s := redistest.Start(t, "--appendonly", "yes")
		test(t, "broker redis {\n\t\t\taddress "+s.Addr()+"\n\t\t}")
	})
}

// request sends a request with headers "Name: value".
func (n *node) request(method, path, body string, headers ...string) answer {
	n.t.Helper()
	req, err := http.NewRequest(method, "http://"+n.http+path, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	return do(n.t, req)
}

// admin asks the admin endpoint.
func (n *node) adminRequest(method, path string) answer {
	n.t.Helper()
	req, err := http.NewRequest(method, "http://"+n.admin+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return do(n.t, req)
}

func (s *socket) say(format string, args ...any) {
	s.t.Helper()
	if _, err := fmt.Fprintf(s.conn, format+"\n", args...); err != nil {
		s.t.Fatal(err)
	}
}

// messageOf waits for the message with a body that contains text.
func (s *socket) messageOf(text string) map[string]any {
	s.t.Helper()
	return object(s.t, s.awaitLine(text))
}

func want(t *testing.T, what string, a answer, status int, fields map[string]any) {
	t.Helper()
	ok := a.status == status
	for k, v := range fields {
		ok = ok && fmt.Sprint(a.fields[k]) == fmt.Sprint(v)
	}
	if !ok {
		t.Errorf("%s: %d %s; want %d with %v", what, a.status, a.text, status, fields)
	}
}

// state waits until a message is in a state.
func (n *node) state(mid, state string) answer {
	n.t.Helper()
	var a answer
	n.wait("message "+mid+" to be "+state, func() bool {
		a = n.get("/status/" + mid)
		return a.fields["state"] == state
	})
	return a
}

func (a answer) mid() string { mid, _ := a.fields["mid"].(string); return mid }

// I6: one key, one message.
func TestI6_IdempotencyKeys(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, broker string) {
		n := newNode(t)
		n.start(storedConfig(broker, "", ""))
		const key = "Idempotency-Key: k1"
		first := n.request("POST", "/pay/01", "a", key)
		want(t, "first", first, 202, map[string]any{"state": "stored", "duplicate": nil})
		want(t, "again", n.request("POST", "/pay/01", "a", key), 202, map[string]any{"mid": first.mid(), "duplicate": true, "state": "stored"})
		want(t, "another body", n.request("POST", "/pay/01", "b", key), 409, map[string]any{"error": "idempotency_conflict"})
		if other := n.request("POST", "/pay/02", "b", key); other.status != 202 || other.fields["duplicate"] != nil {
			t.Errorf("another destination: %d %s", other.status, other.text)
		}
		s := connectJSON(t, n.tcp, "01")
		s.say(`{"op":"ack","mid":%q}`, s.messageOf(`"body":"a"`)["mid"])
		n.state(first.mid(), "acked")
		want(t, "after the end", n.request("POST", "/pay/01", "a", key), 202, map[string]any{"mid": first.mid(), "duplicate": true})

		// Many at once store one.
		var mu sync.Mutex
		mids := make(map[string]int)
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				a := n.request("POST", "/pay/03", "c", "Idempotency-Key: k3")
				mu.Lock()
				defer mu.Unlock()
				mids[a.mid()]++
			})
		}
		wg.Wait()
		if len(mids) != 1 {
			t.Errorf("20 posts with one key made messages %v", mids)
		}
		want(t, "a long key", n.request("POST", "/pay/01", "a", "Idempotency-Key: "+strings.Repeat("k", 300)), 400, map[string]any{"error": "bad_value"})
	})
}

func TestKeysOfTheSenders(t *testing.T) {
	n := newNode(t)
	n.start(storedConfig("broker embedded", "", "idempotency_key /id\ndedupe_compare /amount\nref /order"))
	post := func(body string) answer { return n.post("/pay/01", "application/json", body) }
	first := post(`{"id":7,"amount":1,"order":"o-1","at":1}`)
	want(t, "first", first, 202, map[string]any{"duplicate": nil})
	want(t, "another time", post(`{"id":7,"amount":1,"order":"o-1","at":2}`), 202, map[string]any{"mid": first.mid(), "duplicate": true})
	want(t, "another amount", post(`{"id":7,"amount":2,"order":"o-1","at":2}`), 409, nil)
	want(t, "no key", post(`{"amount":2,"order":"o-1"}`), 202, map[string]any{"duplicate": nil})
	want(t, "an object for a key", post(`{"id":{}}`), 400, map[string]any{"error": "bad_value"})
	a := n.get("/orders/o-1")
	if list, ok := a.fields["messages"].([]any); !ok || len(list) != 2 {
		t.Errorf("messages of the order: %s", a.text)
	}
	if a := n.get("/orders/none"); a.status != 200 || a.text != "{\"messages\":[]}\n" {
		t.Errorf("messages of no order: %d %s", a.status, a.text)
	}
}

// The back end's own answer comes back to the sender, from whichever node the socket is on.
func TestWaitForTheAnswer(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	config := storedConfig("broker redis {\n\t\t\taddress "+server.Addr()+"\n\t\t}", "max_attempts 1", "max_wait 30s\nstatus_path /status/")
	a, b := newNode(t), newNode(t)
	a.start(config)
	b.start(config)
	s := connectJSON(t, b.tcp, "01")

	wait := func(n *node, body string, headers ...string) chan answer {
		c := make(chan answer, 1)
		go func() {
			c <- n.request("POST", "/pay/01", body, append(headers, "Prefer: respond-async, wait=20")...)
		}()
		return c
	}
	for _, n := range []*node{a, b} {
		c := wait(n, "paid at "+n.http)
		s.say(`{"op":"ack","mid":%q,"reply":{"receipt":7}}`, s.messageOf("paid at " + n.http)["mid"])
		got := <-c
		want(t, "acked", got, 200, map[string]any{"state": "acked"})
		if reply, _ := json.Marshal(got.fields["reply"]); string(reply) != `{"receipt":7}` || got.header.Get("Preference-Applied") != "wait=20" {
			t.Errorf("answer: %s, %v", got.text, got.header)
		}
	}
	c := wait(a, "refused")
	s.say(`{"op":"nack","mid":%q,"terminate":true,"reason":"no such order"}`, s.messageOf("refused")["mid"])
	want(t, "terminated", <-c, 502, map[string]any{"state": "dead", "reason": "terminated", "detail": "no such order"})
	c = wait(a, "late", "Relay-Expires: 1s")
	s.messageOf("late")
	want(t, "expired", <-c, 504, map[string]any{"state": "expired"})

	// Duplicates join a running wait.
	c = wait(a, "twice", "Idempotency-Key: k")
	m := s.messageOf("twice")
	d := wait(b, "twice", "Idempotency-Key: k")
	b.wait("the duplicate", func() bool { return b.metric(`caddy_relay_duplicates_total{channel="pay_mq_channel"}`) == 1 })
	s.say(`{"op":"ack","mid":%q}`, m["mid"])
	want(t, "first", <-c, 200, map[string]any{"state": "acked"})
	want(t, "second", <-d, 200, map[string]any{"state": "acked", "duplicate": true, "mid": m["mid"]})

	// Nobody answers: it is stored.
	got := a.request("POST", "/pay/nobody", "x", "Prefer: wait=1")
	want(t, "nobody", got, 202, map[string]any{"state": "stored"})
	if got.header.Get("Location") != "/status/"+got.mid() {
		t.Errorf("headers: %v", got.header)
	}
}

func TestWaitIsBounded(t *testing.T) {
	n := newNode(t)
	n.start(storedConfig("broker embedded", "", "max_wait 1s"))
	began := time.Now()
	got := n.request("POST", "/pay/01", "x", "Prefer: wait=31536000")
	want(t, "a wait of a year", got, 202, map[string]any{"state": "stored"})
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %s", d)
	}
}

// I7, I2: deadlines, cancelling, and what is known of each message.
func TestI7_DeadlinesAndCancelling(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, broker string) {
		n := newNode(t)
		n.start(storedConfig(broker, "retention 2s\ndedupe 3s", ""))
		for _, bad := range []struct {
			text   string
			status int
		}{{"yesterday", 400}, {"-1s", 400}, {"2001-01-01T00:00:00Z", 422}, {"1000000000", 422}} {
			if a := n.request("POST", "/pay/01", "x", "Relay-Expires: "+bad.text); a.status != bad.status {
				t.Errorf("deadline %q: %d %s", bad.text, a.status, a.text)
			}
		}
		expiring := n.request("POST", "/pay/01", "expiring", "Relay-Expires: 1")
		retained := n.request("POST", "/pay/01", "retained")
		cancelled := n.request("POST", "/pay/01", "cancelled")
		want(t, "cancel", n.request("DELETE", "/status/"+cancelled.mid(), ""), 200, map[string]any{"state": "cancelled"})
		want(t, "cancel again", n.request("DELETE", "/status/"+cancelled.mid(), ""), 200, map[string]any{"state": "cancelled"})
		want(t, "cancel nothing", n.request("DELETE", "/status/nothing", ""), 404, map[string]any{"error": "not_found"})
		want(t, "cancelled", n.get("/status/"+cancelled.mid()), 200, map[string]any{"state": "cancelled", "attempts": 0})
		n.state(expiring.mid(), "expired")
		dead := n.state(retained.mid(), "dead")
		want(t, "retained", dead, 200, map[string]any{"reason": "retention", "body": "retained", "enc": "text"})
		s := connectJSON(t, n.tcp, "01")
		last := n.request("POST", "/pay/01", "last")
		s.messageOf("last")
		if got := s.got(); len(got) != 2 {
			t.Errorf("got %q", got)
		}
		want(t, "in flight", n.get("/status/"+last.mid()), 200, map[string]any{"state": "in_flight", "attempts": 1})
		want(t, "too late", n.request("DELETE", "/status/"+last.mid(), ""), 409, map[string]any{"state": "too_late"})
	})
}

// Dead letters are listed, shown, sent again and dropped, at the admin endpoint only.
func TestDeadLetters(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, broker string) {
		n := newNode(t)
		n.start(storedConfig(broker, "max_dead_letters 3", ""))
		s := connectJSON(t, n.tcp, "01")
		var mids []string
		for i := range 3 {
			body := fmt.Sprintf("letter %d", i)
			mids = append(mids, n.request("POST", "/pay/01", body).mid())
			s.say(`{"op":"nack","mid":%q,"terminate":true,"reason":"because"}`, s.messageOf(body)["mid"])
			n.state(mids[i], "dead")
		}
		want(t, "full", n.request("POST", "/pay/01", "one more"), 429, map[string]any{"error": "dead_letters_full"})
		list := n.adminRequest("GET", "/relay/dead/pay_mq_channel?limit=2")
		letters, _ := list.fields["dead_letters"].([]any)
		if len(letters) != 2 || letters[0].(map[string]any)["mid"] != mids[0] || letters[0].(map[string]any)["detail"] != "because" || list.fields["next"] == nil {
			t.Errorf("list: %d %s", list.status, list.text)
		}
		want(t, "one", n.adminRequest("GET", "/relay/dead/pay_mq_channel/"+mids[1]), 200, map[string]any{"body": "letter 1", "reason": "terminated"})
		want(t, "resend", n.adminRequest("POST", "/relay/dead/pay_mq_channel/"+mids[1]+"/resend?ttl=1h"), 200, map[string]any{"mid": mids[1], "state": "stored"})
		s.await("letter 1 again", func(lines []string) bool { return strings.Count(strings.Join(lines, ""), "letter 1") == 2 })
		s.say(`{"op":"ack","mid":%q}`, mids[1])
		n.state(mids[1], "acked")
		want(t, "drop", n.adminRequest("DELETE", "/relay/dead/pay_mq_channel/"+mids[0]), 200, map[string]any{"state": "erased"})
		n.state(mids[0], "erased")
		for _, bad := range []string{"", "?reason=", "?id=", "?before=", "?reson=terminated", "?reason=tired", "?all&reason=terminated", "?all&limit=1"} {
			want(t, "drop"+bad, n.adminRequest("DELETE", "/relay/dead/pay_mq_channel"+bad), 400, nil)
			want(t, "resend"+bad, n.adminRequest("POST", "/relay/dead/pay_mq_channel/resend"+bad), 400, nil)
		}
		want(t, "list", n.adminRequest("GET", "/relay/dead/pay_mq_channel?reason=tired"), 400, nil)
		want(t, "resend all", n.adminRequest("POST", "/relay/dead/pay_mq_channel/resend?reason=terminated&rate=100"), 200, map[string]any{"resent": 1})
		s.await("letter 2 again", func(lines []string) bool { return strings.Count(strings.Join(lines, ""), "letter 2") == 2 })
		s.say(`{"op":"ack","mid":%q}`, mids[2])
		n.state(mids[2], "acked")
		want(t, "gone", n.adminRequest("GET", "/relay/dead/pay_mq_channel/"+mids[0]), 404, nil)
		want(t, "no channel", n.adminRequest("GET", "/relay/dead/nothing"), 404, nil)
		a := n.adminRequest("GET", "/relay/channels")
		if ch, ok := a.fields["pay_mq_channel"].(map[string]any); !ok || ch["dead_letters"] != 0.0 || ch["pending"] != 0.0 || ch["records"] != 3.0 {
			t.Errorf("channels: %s", a.text)
		}
		if a := n.get("/relay/dead/pay_mq_channel"); a.status != 404 {
			t.Errorf("dead letters on the public side: %d", a.status)
		}
	})
}

// I9, I10: what is full is refused with 429 or 503, and taken again when there is room.
func TestI9_Limits(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, broker string) {
		n := newNode(t)
		n.start(storedConfig(broker, "max_pending 2 1KiB\nmax_records 5", ""))
		n.request("POST", "/pay/01", "a")
		n.request("POST", "/pay/01", "b")
		full := n.request("POST", "/pay/01", "c")
		want(t, "full", full, 429, map[string]any{"error": "mailbox_full"})
		if full.header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		n.request("POST", "/pay/02", strings.Repeat("x", 1000))
		want(t, "bytes", n.request("POST", "/pay/02", strings.Repeat("x", 100)), 429, map[string]any{"error": "mailbox_full"})
		s := connectJSON(t, n.tcp, "01")
		s.say(`{"op":"ack","mid":%q}`, s.messageOf(`"body":"a"`)["mid"])
		n.wait("room", func() bool { return n.request("POST", "/pay/01", "d").status == 202 })
		n.request("POST", "/pay/03", "e")
		var records answer // Redis adds up its partitions once a second, so it may take a few more
		id := 10
		n.wait("the records to be full", func() bool {
			id++
			records = n.request("POST", fmt.Sprint("/pay/", id), "f")
			return records.status != 202
		})
		want(t, "records", records, 503, map[string]any{"error": "records_full"})
	})
}

// Bytes on the way through a store stay as they are; any byte may be posted.
func TestStoredBodiesAreByteExact(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, broker string) {
		n := newNode(t)
		n.start(storedConfig(broker, "", "header X-Sig\nref {http.request.header.X-Ref}"))
		js := connectJSON(t, n.tcp, "01")
		n.request("POST", "/pay/01", "\x00\xff\xfe\r\n|\"", "Content-Type: application/octet-stream", "X-Sig: a, b", "X-Ref: 订单 1")
		m := js.messageOf("octet-stream")
		if m["enc"] != "base64" || m["body"] != "AP/+DQp8Ig==" || m["ref"] != "订单 1" || fmt.Sprint(m["headers"]) != "map[X-Sig:a, b]" {
			t.Errorf("message: %v", m)
		}
		n.request("POST", "/pay/01", `{"a": 1.0, "big":12345678901234567890, "e":1e400}`, "Content-Type: application/json")
		if line := js.awaitLine("big"); !strings.HasSuffix(line, `"body":{"a": 1.0, "big":12345678901234567890, "e":1e400}}`) {
			t.Errorf("message: %s", line)
		}
		want(t, "bad JSON", n.request("POST", "/pay/01", `{"a":`, "Content-Type: application/json"), 400, map[string]any{"error": "bad_json"})
	})
}

// I8: a configuration that would leave messages behind is refused, says which, and the running one goes on.
func TestI8_NothingLeftBehind(t *testing.T) {
	n := newNode(t)
	config := storedConfig("broker embedded", "", "")
	n.start(config)
	if a := n.request("POST", "/pay/01", "stays"); a.status != 202 {
		t.Fatalf("answer: %s", a.text)
	}
	other := filepath.Join(n.dir, "other.db")
	for name, next := range map[string]string{
		"another file":    storedConfig("broker embedded {\n\t\t\tpath "+other+"\n\t\t}", "", ""),
		"at_most_once":    oneChannel("broker embedded"),
		"another channel": strings.ReplaceAll(config, "pay_mq_channel", "other_channel"),
	} {
		err := n.reload(next)
		if err == nil || !strings.Contains(err.Error(), "channel pay_mq_channel has 1 unfinished and 0 dead letters") {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := connectJSON(t, n.tcp, "01")
	s.say(`{"op":"ack","mid":%q}`, s.messageOf("stays")["mid"])
	n.wait("the mailbox to be empty", func() bool { return n.metric(`caddy_relay_pending{channel="pay_mq_channel"}`) == 0 })
	if err := n.reload(storedConfig("broker embedded {\n\t\t\tpath "+other+"\n\t\t}", "", "")); err != nil {
		t.Fatal(err)
	}
	n.request("POST", "/pay/01", "moved")
	s.messageOf("moved")
	if !s.open() {
		t.Error("the socket was dropped")
	}
	if err := n.reload(oneChannel("broker embedded")); err == nil {
		t.Error("a reload left a message in flight behind")
	}
}

// A file that is not a store of this release is refused with its path, and never written to.
func TestStoreThatCannotBeOpened(t *testing.T) {
	n := newNode(t)
	n.start(oneChannel("broker embedded"))
	for name, content := range map[string]string{"text": strings.Repeat("my thesis\n", 1000), "short": "x"} {
		path := filepath.Join(n.dir, name+".db")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		err := n.reload(storedConfig("broker embedded {\n\t\t\tpath "+path+"\n\t\t}", "", ""))
		if err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if now, _ := os.ReadFile(path); string(now) != content {
			t.Errorf("%s: the file was changed", name)
		}
	}
	// Another process has it.
	path := filepath.Join(n.dir, "shared.db")
	config := storedConfig("broker embedded {\n\t\t\tpath "+path+"\n\t\t}", "", "")
	if err := n.reload(config); err != nil {
		t.Fatal(err)
	}
	second := newNode(t)
	second.start(oneChannel("broker embedded"))
	if err := second.reload(config); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("two processes: %v", err)
	}
}

// Nothing that a socket says about messages can do more than end that socket.
func TestI11_BadAcknowledgements(t *testing.T) {
	n := newNode(t)
	n.start(storedConfig("broker embedded", "", ""))
	bad, good := connectJSON(t, n.tcp, "bad"), connectJSON(t, n.tcp, "good")
	for i := range 200 {
		bad.say(`{"op":"nack","mid":"M%d","delay":0}`, i)
	}
	bad.awaitLine("not in flight")
	n.request("POST", "/pay/bad", "x")
	m := bad.messageOf(`"body":"x"`)
	_, _ = io.WriteString(bad.conn, `{"op":"ack","mid":"`+m["mid"].(string)+`","reply":"`+strings.Repeat("x", 10<<20)+`"}`+"\n")
	bad.awaitLine("max_frame")
	a := n.request("POST", "/pay/good", "y")
	good.say(`{"op":"ack","mid":%q}`, good.messageOf(`"body":"y"`)["mid"])
	n.state(a.mid(), "acked")
	if v := n.metric(`caddy_relay_bad_acks_total{channel="pay_mq_channel"}`); v != 200 {
		t.Errorf("%v bad acks counted", v)
	}
	again := connectJSON(t, n.tcp, "bad")
	again.say(`{"op":"ack","mid":%q}`, again.messageOf(`"body":"x"`)["mid"])
	n.state(m["mid"].(string), "acked")
}

// A plain client that pings, and one that answers late, never finish a payment that they did not answer.
func TestPlainClientsFinishWhatTheyAnswer(t *testing.T) {
	onBothBrokers(t, func(t *testing.T, broker string) {
		n := newNode(t)
		n.start(strings.Replace(storedConfig(broker, "ack_timeout 2s", ""), "ack line", "ack line\n\t\t\t\t\tignore ^PING$", 1))
		ping := func(s *socket) {
			for s.open() {
				if _, err := io.WriteString(s.conn, "PING\n"); err != nil {
					return
				}
				pauseFor(200 * time.Millisecond)
			}
		}
		mid := n.request("POST", "/pay/01", "payment 1").mid()
		s := connect(t, n.tcp, "01", nil)
		s.awaitLine("payment 1")
		ping(s) // until the relay has closed it
		if a := n.get("/status/" + mid); a.fields["state"] == "acked" {
			t.Errorf("pings finished a message: %s", a.text)
		}
		_, _ = io.WriteString(s.conn, "OK\n") // too late

		s = connect(t, n.tcp, "01", nil)
		s.awaitLine("payment 1")
		other := n.request("POST", "/pay/01", "payment 2").mid()
		s.say("OK")
		n.state(mid, "acked")
		s.awaitLine("payment 2")
		ping(s)
		_, _ = io.WriteString(s.conn, "OK\n")
		s = connect(t, n.tcp, "01", nil)
		s.awaitLine("payment 2")
		if a := n.get("/status/" + other); a.fields["state"] != "in_flight" || a.fields["attempts"] != 2.0 {
			t.Errorf("payment 2, which nobody answered: %s", a.text)
		}
		s.say("OK")
		n.state(other, "acked")
	})
}

// I8: what is stored while a reload to another store is under way is not left behind: it is refused, or the reload is.
func TestI8_StoredDuringTheReload(t *testing.T) {
	n := newNode(t)
	n.start(storedConfig("broker embedded", "", ""))
	next := strings.Replace(storedConfig("broker redis {\n\t\t\taddress 127.0.0.1:1\n\t\t}", "", ""), "channel pay_mq_channel {",
		"channel live {\n\t\t\tdelivery at_most_once\n\t\t}\n\t\tchannel pay_mq_channel {", 1)
	done := make(chan error, 1)
	go func() { done <- n.reload(next) }()
	accepted := ""
	for err := error(nil); ; {
		select {
		case err = <-done:
			if accepted != "" && err == nil {
				t.Errorf("message %s was accepted and left behind", accepted)
			}
			if accepted == "" {
				t.Error("nothing was accepted during the reload: the test shows nothing")
			}
			return
		default:
			if a := n.request("POST", "/pay/09", "x"); accepted == "" && a.status == http.StatusAccepted {
				accepted = a.mid()
			}
			pauseFor(100 * time.Millisecond)
		}
	}
}
