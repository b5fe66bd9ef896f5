//go:build unix

package integration

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// guarded is a configuration with tokens and small limits.
func guarded() string {
	return strings.NewReplacer(
		"auth none", "auth token {env.RELAY_TOKEN}\n\t\t\t\t\thello_timeout 1s",
		"\topen", "\ttoken {env.RELAY_TOKEN}\n\t\tmax_body 1KiB",
		"id {path.1}", "id {header.X-Id}",
	).Replace(oneChannel(""))
}

const token = "t0ken-of-the-test"

// watched is a node with a healthy socket, to show that bad input disturbs nobody.
type watched struct {
	*node
	healthy *socket
	sent    int
}

func watch(t *testing.T, config string) *watched {
	n := newNode(t)
	n.env = []string{"RELAY_TOKEN=" + token}
	n.start(config)
	w := &watched{node: n, healthy: connect(t, n.tcp, "healthy "+token, nil)}
	n.awaitSessions("pay_mq_channel", 1)
	return w
}

// stillWell checks that the healthy socket gets its messages, all of them, in order.
func (w *watched) stillWell(t *testing.T) {
	t.Helper()
	w.sent++
	r := w.request(t, "healthy", fmt.Sprint("message ", w.sent))
	if a := do(t, r); a.status != http.StatusAccepted {
		t.Errorf("a good post was answered %d %s", a.status, a.text)
	}
	waitFor(t, "the healthy socket's message", func() bool { return len(w.healthy.got()) >= w.sent })
	for i, line := range w.healthy.got() {
		if line != fmt.Sprint("message ", i+1) {
			t.Errorf("the healthy socket got %q as its line %d", line, i+1)
		}
	}
}

func (w *watched) request(t *testing.T, id, body string) *http.Request {
	r, err := http.NewRequest(http.MethodPost, "http://"+w.http+"/pay/x", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Id", id)
	r.Header.Set("Authorization", "Bearer "+token)
	r.Header.Set("Content-Type", "text/plain")
	return r
}

// Each kind of bad request gets its status, a JSON reason, one log line and one count.
func TestBadRequests(t *testing.T) {
	w := watch(t, guarded())
	refusedBefore := func(name string) float64 {
		return w.metric(`caddy_relay_refused_total{channel="pay_mq_channel",error="` + name + `"}`)
	}
	with := func(change func(r *http.Request)) *http.Request {
		r := w.request(t, "01", "x")
		change(r)
		return r
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	cases := []struct {
		name    string
		request *http.Request
		status  int
		reason  string
	}{
		{"empty body", w.request(t, "01", ""), 400, "body_empty"},
		{"too large, announced", w.request(t, "01", strings.Repeat("x", 1025)), 413, "body_too_large"},
		{"too large, in chunks", with(func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(strings.Repeat("x", 4096))), -1
		}), 413, "body_too_large"},
		{"not the JSON it says it is", with(func(r *http.Request) {
			*r = *w.request(t, "01", `{"amount":`)
			r.Header.Set("Content-Type", "application/json")
		}), 400, "bad_json"},
		{"not UTF-8", w.request(t, "01", "\xca\xd5\xbf\xee"), 415, "not_utf8"},
		{"compressed", with(header("Content-Encoding", "gzip")), 415, "encoding_not_supported"},
		{"wrong method", with(func(r *http.Request) { r.Method = http.MethodPut }), 405, "method_not_allowed"},
		{"no ID", w.request(t, "", "x"), 400, "bad_id"},
		{"ID with a space", w.request(t, "0 1", "x"), 400, "bad_id"},
		{"ID with a comma", w.request(t, "01,02", "x"), 400, "bad_id"},
		{"two IDs", with(func(r *http.Request) { r.Header.Add("X-Id", "02") }), 400, "bad_id"},
		{"ID with a control character", w.request(t, "0\t1", "x"), 400, "bad_id"},
		{"ID of 10 kB", w.request(t, strings.Repeat("9", 10000), "x"), 400, "bad_id"},
		{"ID that is not UTF-8", w.request(t, "\xff\xfe", "x"), 400, "bad_id"},
		{"wrong token", with(header("Authorization", "Bearer wrong")), 401, "unauthorized"},
		{"no token", with(func(r *http.Request) { r.Header.Del("Authorization") }), 401, "unauthorized"},
		{"token in another scheme", with(header("Authorization", "Basic "+token)), 401, "unauthorized"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			lines, count := len(w.log.lines("refused to publish")), refusedBefore(c.reason)
			a := do(t, c.request)
			message, _ := a.fields["message"].(string)
			if a.status != c.status || a.fields["error"] != c.reason || message == "" {
				t.Errorf("answer: %d %s", a.status, a.text)
			}
			w.refusedOnce(t, c.reason, lines, count)
			w.stillWell(t)
		})
	}
	t.Run("truncated", func(t *testing.T) {
		lines, count := len(w.log.lines("refused to publish")), refusedBefore("body_incomplete")
		conn, err := net.Dial("tcp", w.http)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprintf(conn, "POST /pay/x HTTP/1.1\r\nHost: x\r\nX-Id: 01\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\nonly this", token)
		_ = conn.(*net.TCPConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != http.StatusBadRequest || !strings.Contains(string(body), "body_incomplete") {
			t.Errorf("answer: %d %s", resp.StatusCode, body)
		}
		w.refusedOnce(t, "body_incomplete", lines, count)
		w.stillWell(t)
	})
	w.logged(t, "refused to publish", len(cases)+1)
}

// logged stops the node, after which no further line can come, and checks that it wrote count lines with
// msg in all and no secret in any.
func (w *watched) logged(t *testing.T, msg string, count int) {
	t.Helper()
	w.stop()
	if found := w.log.lines(msg); len(found) != count {
		t.Errorf("%d log lines %q in all, want %d", len(found), msg, count)
	}
	if strings.Contains(w.log.String(), token) {
		t.Error("the log shows the token")
	}
}

// refusedOnce checks that there is one log line and one count more than before.
func (w *watched) refusedOnce(t *testing.T, reason string, lines int, count float64) {
	t.Helper()
	waitFor(t, "the log line", func() bool { return len(w.log.lines("refused to publish")) > lines })
	found := w.log.lines("refused to publish")
	if len(found) != lines+1 || found[lines]["error"] != reason {
		t.Errorf("%d log lines, the last one %v", len(found)-lines, found[len(found)-1])
	}
	if now := w.metric(`caddy_relay_refused_total{channel="pay_mq_channel",error="` + reason + `"}`); now != count+1 {
		t.Errorf("counted %v, before %v", now, count)
	}
}

// Each kind of bad first frame gets a readable line, one log line and one count.
func TestBadSockets(t *testing.T) {
	w := watch(t, guarded())
	cases := []struct{ name, send, answer, reason string }{
		{"empty", "\n", "error 400", "bad_hello"},
		{"oversized", strings.Repeat("x", 20<<10), "error 413", "frame_too_large"},
		{"binary", "\x00\x01\x02\xff token\n", "error 401", "unauthorized"},
		{"binary with the token", "\x01\xff " + token + "\n", "error 400", "bad_id"},
		{"never finished", "01", "error 408", "hello_timeout"},
		{"ID with a comma", "01,02 " + token + "\n", "error 400", "bad_id"},
		{"ID with a space", `{"op":"hello","v":1,"id":"0 1","token":"` + token + `"}` + "\n", `"code":400`, "bad_id"},
		{"ID of 10 kB", strings.Repeat("9", 10000) + " " + token + "\n", "error 413", "frame_too_large"},
		{"ID of 1 kB", strings.Repeat("9", 1000) + " " + token + "\n", "error 400", "bad_id"},
		{"wrong token", "01 wrong\n", "error 401", "unauthorized"},
		{"no token", "01\n", "error 401", "unauthorized"},
		{"broken JSON", "{\"op\":\n", `"code":400`, "bad_hello"},
		{"HTTP", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP", "bad_hello"},
		{"TLS", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + strings.Repeat("r", 500) + "\n", "TLS", "bad_hello"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			before := w.socketsRefused(c.reason)
			conn, err := net.Dial("tcp", w.tcp)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			if _, err := io.WriteString(conn, c.send); err != nil {
				t.Fatal(err)
			}
			_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
			got, err := io.ReadAll(conn)
			if err != nil || !strings.Contains(string(got), c.answer) || !strings.HasSuffix(string(got), "\n") {
				t.Errorf("read %q, %v; want a line with %q", got, err, c.answer)
			}
			conn.Close()
			w.socketRefusedOnce(t, c.reason, before)
			w.stillWell(t)
		})
	}
	w.logged(t, "socket refused", len(cases))
}

// refusals are what the node logged and counted of refused sockets at some moment.
type refusals struct {
	lines int
	count float64
}

func (w *watched) socketsRefused(reason string) refusals {
	return refusals{len(w.log.lines("socket refused")), w.metric(`caddy_relay_ended_total{reason="` + reason + `"}`)}
}

// socketRefusedOnce checks that there is one log line and one count more than before.
func (w *watched) socketRefusedOnce(t *testing.T, reason string, before refusals) {
	t.Helper()
	waitFor(t, "the log line", func() bool { return len(w.log.lines("socket refused")) > before.lines })
	if found := w.log.lines("socket refused"); len(found) != before.lines+1 || found[before.lines]["reason"] != reason {
		t.Errorf("%d log lines, the last one %v", len(found)-before.lines, found[len(found)-1])
	}
	if now := w.socketsRefused(reason); now.count != before.count+1 {
		t.Errorf("counted %v, before %v", now.count, before.count)
	}
}

// I10: over max_sockets, whoever comes is told so, and who is there stays.
func TestI10_TooManySockets(t *testing.T) {
	w := watch(t, strings.Replace(guarded(), "channel pay_mq_channel", "max_sockets 2\n\t\tchannel pay_mq_channel", 1))
	second := connect(t, w.tcp, "second "+token, nil)
	w.awaitSessions("pay_mq_channel", 2)
	before := w.socketsRefused("too_many_sockets")
	third := connect(t, w.tcp, "third "+token, nil)
	third.awaitLine("error 503")
	third.awaitEnd()
	_ = third.conn.Close()
	w.socketRefusedOnce(t, "too_many_sockets", before)
	w.stillWell(t)
	if !second.open() {
		t.Error("the socket that was there was dropped")
	}
	_ = second.conn.Close()
	// Not the sessions: a place is free only when the connection is gone, too.
	w.wait("a free place", func() bool { return w.metric("caddy_relay_sockets") == 1 })
	connect(t, w.tcp, "fourth "+token, nil)
	w.awaitSessions("pay_mq_channel", 2)
	w.stillWell(t)
	w.logged(t, "socket refused", 1)
}

// A handler for a channel that is not configured is an error in the configuration, before anybody posts.
func TestUnknownChannelIsAnError(t *testing.T) {
	_, err := adapt(newNode(t).expand(strings.Replace(oneChannel(""), "/pay/* pay_mq_channel", "/pay/* other", 1)))
	if err == nil || !strings.Contains(err.Error(), `the relay has no channel "other"`) {
		t.Errorf("err: %v", err)
	}
}
