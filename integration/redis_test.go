//go:build unix

package integration

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
)

// onRedis is a configuration on a Redis server.
func onRedis(s *redistest.Server) string {
	return oneChannel("broker redis {\n\t\t\taddress " + s.Addr() + "\n\t\t}")
}

// proven waits until the node knows that it hears the channel.
func (n *node) proven() {
	n.t.Helper()
	n.wait("the channel to be proven", func() bool {
		return n.metric(`caddy_relay_channel_proven{channel="pay_mq_channel"}`) == 1
	})
}

// twoNodes returns two nodes on one Redis server.
func twoNodes(t *testing.T, s *redistest.Server) (a, b *node) {
	t.Helper()
	a, b = newNode(t), newNode(t)
	a.start(onRedis(s))
	b.start(onRedis(s))
	a.proven()
	b.proven()
	return a, b
}

func TestTwoNodes(t *testing.T) {
	server := redistest.Start(t)
	a, b := twoNodes(t, server)
	onA, onB := connect(t, a.tcp, "01", nil), connectJSON(t, b.tcp, "02")
	alsoB := connect(t, b.tcp, "01", nil)
	a.awaitSessions("pay_mq_channel", 1)
	b.awaitSessions("pay_mq_channel", 2)

	answer := a.curl("/pay/02", "from a to b")
	if answer.status != http.StatusAccepted || answer.fields["redis_receivers"] != 2.0 {
		t.Errorf("answer: %d %s", answer.status, answer.text)
	}
	m := object(t, onB.awaitLine("from a to b"))
	if m["mid"] != answer.fields["mid"] || m["body"] != "from a to b" || m["enc"] != "text" {
		t.Errorf("message: %v, answer: %s", m, answer.text)
	}
	b.curl("/pay/01", "from b to a")
	onA.awaitLine("from b to a")
	alsoB.awaitLine("from b to a")
	b.curl("/pay/*", "to all")
	for _, s := range []*socket{onA, onB, alsoB} {
		s.awaitLine("to all")
	}
}

// Any program may publish {"id":…,"msg":…}; redis-cli is one that is not ours.
func TestForeignPublications(t *testing.T) {
	server := redistest.Start(t)
	n := newNode(t)
	n.start(onRedis(server))
	n.proven()
	plain, js := connect(t, n.tcp, "01", nil), connectJSON(t, n.tcp, "01")
	seven := connect(t, n.tcp, "7", nil)
	n.awaitSessions("pay_mq_channel", 3)
	publish := func(text string) {
		t.Helper()
		if got := server.CLI("PUBLISH", "pay_mq_channel", text); got != "1" {
			t.Errorf("%s reached %s subscribers", text, got)
		}
	}
	publish(`{"id":"01","msg":"hi"}`)
	plain.await("hi", func(l []string) bool { return len(l) == 1 && l[0] == "hi" })
	if m := object(t, js.awaitLine(`"hi"`)); m["enc"] != "text" || m["body"] != "hi" {
		t.Errorf("message: %v", m)
	}
	publish(`{ "msg" : {"amount": 1.0, "note":"<b>"} , "id" : "01" }`)
	plain.awaitLine(`{"amount": 1.0, "note":"<b>"}`)
	js.awaitLine(`"body":{"amount": 1.0, "note":"<b>"}`)
	publish(`{"id":7,"msg":"a number"}`)
	seven.awaitLine("a number")

	for _, bad := range []string{"not JSON", `{"id":"01"}`, `{"msg":"x"}`, `["01","x"]`, `{"ID":"01","msg":"x"}`, `{"id":"0 1","msg":"x"}`} {
		publish(bad)
	}
	n.wait("the bad ones to be counted", func() bool {
		return n.metric(`caddy_relay_skipped_total{channel="pay_mq_channel"}`) == 6
	})
	if lines := n.log.lines("skipped a publication that is not for sockets"); len(lines) != 1 {
		t.Errorf("%d log lines, want one a minute", len(lines))
	}
	publish(`{"id":"01","msg":"still well"}`)
	plain.awaitLine("still well")
	if got := plain.got(); len(got) != 3 {
		t.Errorf("the socket got %q", got)
	}
}

// Redis may be absent at the start, come, go and come back: nobody has to do anything about the node.
func TestI9_RedisAbsentGoneAndBack(t *testing.T) {
	server := redistest.Reserve(t)
	n := newNode(t)
	n.start(onRedis(server))
	s := connect(t, n.tcp, "01", nil)
	n.awaitSessions("pay_mq_channel", 1)
	n.unavailable("while redis is absent")
	lost := "redis is lost; publishers are answered 503 until it is back"
	n.wait("the log line", func() bool { return len(n.log.lines(lost)) > 0 })
	if lines := n.log.lines(lost); len(lines) != 1 || !strings.Contains(fmt.Sprint(lines[0]["error"]), "is redis-server running there?") {
		t.Errorf("log: %v", lines)
	}
	server.Restart()
	n.proven()
	n.accepted("/pay/01", "now")
	s.awaitLine("now")

	server.Kill()
	n.unproven()
	n.unavailable("while redis is gone")
	server.Restart()
	n.proven()
	n.accepted("/pay/01", "again")
	s.awaitLine("again")

	n.stop()
	if got := s.got(); fmt.Sprint(got) != "[now again]" {
		t.Errorf("got %q", got)
	}
	for msg, want := range map[string]int{lost: 2, "redis is back": 2, "refused to publish": 2} {
		if lines := n.log.lines(msg); len(lines) != want {
			t.Errorf("%d log lines %q, want %d", len(lines), msg, want)
		}
	}
}

// unproven waits until the node knows that it may not hear the channel.
func (n *node) unproven() {
	n.t.Helper()
	n.wait("the loss to be noticed", func() bool {
		return n.metric(`caddy_relay_channel_proven{channel="pay_mq_channel"}`) == 0
	})
}

// accepted posts what must be accepted.
func (n *node) accepted(path, body string) {
	n.t.Helper()
	if a := n.curl(path, body); a.status != http.StatusAccepted {
		n.t.Errorf("a good post was answered %d %s", a.status, a.text)
	}
}

// unavailable posts to 01 and checks that the broker is said to be away: in the answer, in one log line
// and in one count, and to the publisher without where Redis is.
func (n *node) unavailable(body string) {
	n.t.Helper()
	refused := func() float64 {
		return n.metric(`caddy_relay_refused_total{channel="pay_mq_channel",error="broker_unavailable"}`)
	}
	lines, count := len(n.log.lines("refused to publish")), refused()
	a := n.curl("/pay/01", body)
	if a.status != http.StatusServiceUnavailable || a.fields["error"] != "broker_unavailable" || a.header.Get("Retry-After") == "" {
		n.t.Errorf("answer: %d %s %v", a.status, a.text, a.header)
	}
	if strings.Contains(a.text, "127.0.0.1") {
		n.t.Errorf("the publisher is told where Redis is: %s", a.text)
	}
	n.wait("the log line", func() bool { return len(n.log.lines("refused to publish")) > lines })
	if found := n.log.lines("refused to publish"); len(found) != lines+1 || found[lines]["error"] != "broker_unavailable" {
		n.t.Errorf("%d log lines, the last one %v", len(found)-lines, found[len(found)-1])
	}
	if now := refused(); now != count+1 {
		n.t.Errorf("counted %v, before %v", now, count)
	}
}

// I9: a server that stands still keeps its connections, so only the probes tell. It takes one interval
// (5s) until the next probe, and the 2s that redis may take for it.
func TestI9_RedisStandsStill(t *testing.T) {
	server := redistest.Start(t)
	n := newNode(t)
	n.start(onRedis(server))
	n.proven()
	s := connect(t, n.tcp, "01", nil)
	n.awaitSessions("pay_mq_channel", 1)
	n.accepted("/pay/01", "before")
	s.awaitLine("before")

	server.Pause()
	paused := time.Now()
	// Nobody knows yet. What was sent to the server and not answered may be published or not.
	a := n.curl("/pay/01", "sent into the silence")
	if a.status != http.StatusServiceUnavailable || a.fields["error"] != "unconfirmed" || a.header.Get("Retry-After") == "" {
		t.Errorf("answer: %d %s %v", a.status, a.text, a.header)
	}
	n.unproven()
	noticed := time.Now()
	n.unavailable("refused")

	server.Resume()
	resumed := time.Now()
	n.proven()
	t.Logf("the silence was noticed after %.2fs; the channel was proven %.2fs after it ended",
		noticed.Sub(paused).Seconds(), time.Since(resumed).Seconds())
	if late := noticed.Sub(paused); late > 15*time.Second {
		t.Errorf("it took %s to notice the silence", late)
	}
	n.accepted("/pay/01", "after")
	s.awaitLine("after")
	if !s.open() {
		t.Error("the socket was dropped")
	}
	// The server may have found the unconfirmed message in its connection when it woke up.
	if got := strings.Join(s.got(), ", "); got != "before, after" && got != "before, sent into the silence, after" {
		t.Errorf("got %s", got)
	}
	for _, msg := range []string{"redis is lost; publishers are answered 503 until it is back", "redis is back"} {
		if lines := n.log.lines(msg); len(lines) != 1 {
			t.Errorf("%d log lines %q, want 1", len(lines), msg)
		}
	}
}

// I9, and what at_most_once may lose: redis-server is killed under load and comes back.
func TestI9_RedisKilledUnderLoad(t *testing.T) {
	server := redistest.Start(t)
	a, b := twoNodes(t, server)
	l := startLoad(t, "pay_mq_channel", 200, a, b)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(ctx, 500) })
	accepted := func(more int64) {
		t.Helper()
		target := l.accepted.Load() + more
		waitFor(t, "posts to be accepted", func() bool { return l.accepted.Load() >= target })
	}
	accepted(1000)
	killed := time.Now()
	server.Kill()
	refused := l.refused.Load()
	waitFor(t, "posts to be refused", func() bool { return l.refused.Load() > refused+200 })
	server.Restart()
	restarted := time.Now()
	a.proven()
	b.proven()
	back := time.Now()
	accepted(1000)
	cancel()
	wg.Wait()
	sum := l.settle()
	later := 0 // accepted by a node that was proven, for one that was not yet
	for _, at := range sum.lostAt {
		if at.After(restarted) {
			later++
		}
	}
	t.Logf("%s; refused %d; delivery resumed %.2fs after redis-server was back; lost around the kill: %d, of them %d while only one node was back",
		sum, l.refused.Load(), back.Sub(restarted).Seconds(), sum.lost, later)
	if sum.doubled+sum.invented+sum.disordered > 0 || l.dropped.Load() > 0 {
		t.Errorf("%s; sockets dropped %d", sum, l.dropped.Load())
	}
	for _, at := range sum.lostAt {
		// What was accepted is under way for moments; and one node may be proven a little
		// before the other one is.
		if at.Before(killed.Add(-time.Second)) || at.After(back.Add(time.Second)) {
			t.Errorf("a message was lost that was accepted %.2fs after the kill", at.Sub(killed).Seconds())
		}
	}
}

// I4: a Redis that has lost all it knew gets the owners told again: sockets stay, and what is posted then arrives.
func TestI4_RedisIsEmptied(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	n := newNode(t)
	n.start(storedConfig("broker redis {\n\t\t\taddress "+server.Addr()+"\n\t\t}", "", ""))
	s := connectJSON(t, n.tcp, "01")
	server.CLI("FLUSHALL")
	mid := n.request(http.MethodPost, "/pay/01", "after").mid()
	s.say(`{"op":"ack","mid":%q}`, s.messageOf(`"body":"after"`)["mid"])
	n.state(mid, "acked")
	if !s.open() {
		t.Error("the socket was closed")
	}
}

// The rights that docs/operations.md gives are enough, for both kinds of channels.
func TestDocumentedRights(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	text, err := os.ReadFile("../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	given := 0
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "ACL SETUSER relay ") {
			server.CLI(strings.Fields(line)...)
			given++
		}
	}
	n := newNode(t)
	n.env = []string{"REDIS_PASSWORD=password"}
	redis := "broker redis {\n\t\t\taddress " + server.Addr() + "\n\t\t\tusername relay\n\t\t\tpassword {env.REDIS_PASSWORD}\n\t\t}"
	n.start(storedConfig(redis, "ack_timeout 5s\nclassic both", ""))
	s := connectJSON(t, n.tcp, "01")
	a := n.request(http.MethodPost, "/pay/01", "stored", "Idempotency-Key: k")
	if a.status != http.StatusAccepted {
		t.Fatalf("answer: %d %s", a.status, a.text)
	}
	mid := a.fields["mid"].(string)
	s.awaitLine("stored")
	s.say(`{"op":"ack","mid":"%s"}`, mid)
	n.state(mid, "acked")
	n.wait("the node to be in charge", func() bool { return n.metric(inCharge) == 1 })
	server.CLI("PUBLISH", "pay_mq_channel", `{"id":"01","msg":"from another program"}`)
	s.awaitLine("from another program")
	if n := n.metric(`caddy_relay_classic_mirrored_total{channel="pay_mq_channel"}`); n != 1 {
		t.Errorf("%v messages were mirrored", n)
	}
	if log := n.log.String(); given != 6 || strings.Contains(log, "NOPERM") {
		t.Errorf("%d lines of rights, and the log says\n%s", given, log)
	}
	other := newNode(t) // the at_most_once channel of the same name
	other.env = n.env
	other.start(oneChannel(redis))
	other.proven()
	other.accepted("/pay/01", "at most once")
}

// I8: a reload brings another password; nobody notices, and the next connection uses it.
func TestI8_PasswordChanges(t *testing.T) {
	server := redistest.Start(t)
	server.CLI("ACL", "SETUSER", "relay", "on", ">first", "resetchannels", "&pay_mq_channel", "&relay:probe:*",
		"+publish", "+subscribe", "+unsubscribe", "+ping", "+hello", "+client|setname")
	config := oneChannel("broker redis {\n\t\t\taddress " + server.Addr() + "\n\t\t\tusername relay\n\t\t\tpassword {env.%s}\n\t\t}")
	n := newNode(t)
	n.env = []string{"FIRST=first", "SECOND=second"}
	n.start(fmt.Sprintf(config, "FIRST"))
	n.proven()
	s := connect(t, n.tcp, "01", nil)
	n.awaitSessions("pay_mq_channel", 1)
	server.CLI("ACL", "SETUSER", "relay", "<first", ">second")
	if err := n.reload(fmt.Sprintf(config, "SECOND")); err != nil {
		t.Fatal(err)
	}
	n.curl("/pay/01", "after the reload")
	s.awaitLine("after the reload")
	server.CLI("CLIENT", "KILL", "USER", "relay") // all of its connections
	n.wait("a post to be accepted again", func() bool { return n.curl("/pay/01", "after the kill").status == http.StatusAccepted })
	s.awaitLine("after the kill")
	if !s.open() {
		t.Error("the socket was dropped")
	}
}
