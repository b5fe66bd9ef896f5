package hub

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const channelName = "pay"

// peer is the client's end of a session.
type peer struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
	end  chan End
}

// dial makes a session on h, over a connection in memory: its clock is synctest's.
func dial(t *testing.T, h *Hub, e Endpoint) *peer {
	t.Helper()
	if e.Channel == "" {
		e.Channel = channelName
	}
	client, server := net.Pipe()
	return serve(t, h, e, client, server)
}

// dialTCP makes a session on h over real TCP.
func dialTCP(t *testing.T, h *Hub, e Endpoint) *peer {
	t.Helper()
	if e.Channel == "" {
		e.Channel = channelName
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	client, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return serve(t, h, e, client, server)
}

func serve(t *testing.T, h *Hub, e Endpoint, client, server net.Conn) *peer {
	p := &peer{t: t, conn: client, r: bufio.NewReader(client), end: make(chan End, 1)}
	go func() {
		end := h.Serve(server, e.WithDefaults())
		server.Close()
		p.end <- end
	}()
	t.Cleanup(func() { client.Close() })
	return p
}

func (p *peer) send(text string) {
	p.t.Helper()
	p.conn.SetWriteDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(p.conn, text); err != nil {
		p.t.Fatalf("sending %q: %v", text, err)
	}
}

func (p *peer) line() string {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(5 * time.Minute))
	text, err := p.r.ReadString('\n')
	if err != nil {
		p.t.Fatalf("reading a line: %v (got %q)", err, text)
	}
	return strings.TrimSuffix(text, "\n")
}

func (p *peer) object() map[string]any {
	p.t.Helper()
	text := p.line()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		p.t.Fatalf("not JSON: %q", text)
	}
	return v
}

// eof reads to the end and returns what came.
func (p *peer) eof() string {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(5 * time.Minute))
	text, err := io.ReadAll(p.r)
	if err != nil {
		p.t.Fatalf("reading to the end: %v", err)
	}
	return string(text)
}

// over closes the client's end if it is not closed, and returns how the session ended.
func (p *peer) over() End {
	p.t.Helper()
	p.conn.Close()
	select {
	case end := <-p.end:
		return end
	case <-time.After(time.Minute):
		p.t.Fatal("the session did not end")
		panic("unreachable")
	}
}

// registered waits until n sessions are registered under id.
func registered(t *testing.T, h *Hub, id string, n int) {
	t.Helper()
	until(t, fmt.Sprintf("%d sessions under %q", n, id), func() bool {
		found := 0
		for s := range h.All {
			if s.ID() == id {
				found++
			}
		}
		return found == n
	})
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
		<-tick.C
	}
}

func message(id, body string) *broker.Message {
	return &broker.Message{
		MID: "m-" + body, Channel: channelName, ID: id, ContentType: "text/plain",
		Body: []byte(body), Time: time.UnixMilli(1700000000123),
	}
}

func TestPlainSocketGetsBodies(t *testing.T) {
	h := New()
	p := dialTCP(t, h, Endpoint{})
	p.send("01\n")
	registered(t, h, "01", 1)
	for i := range 3 {
		if n := h.Deliver(message("01", fmt.Sprint("body ", i))); n != 1 {
			t.Fatalf("delivered to %d sessions", n)
		}
	}
	for i := range 3 {
		if got, want := p.line(), fmt.Sprint("body ", i); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	if end := p.over(); end.Reason != ClientClosed || end.Pushed != 3 || !end.Registered || end.ID != "01" || end.Protocol != Plain {
		t.Errorf("end: %+v", end)
	}
	if h.Deliver(message("01", "late")) != 0 {
		t.Error("delivered to a session that is over")
	}
	if st := h.Stats(); st.Sockets != 0 || st.Channels[channelName].Pushed != 3 || st.Ended[ClientClosed] != 1 {
		t.Errorf("stats: %+v", st)
	}
}

func TestJSONSocket(t *testing.T) {
	h := New()
	entered := make(chan string, 1)
	p := dialTCP(t, h, Endpoint{OnEnter: func(s *Session) { entered <- s.ID() + " " + s.Protocol().String() }})
	p.send(`{"op":"hello","v":1,"id":"01","window":4,"heartbeat":60}` + "\n")
	if who := <-entered; who != "01 json" {
		t.Errorf("entered: %q", who)
	}
	w := p.object()
	if w["op"] != "welcome" || w["v"] != 1.0 || w["heartbeat"] != 60.0 || w["window"] != 4.0 || w["max"] != 1048576.0 {
		t.Fatalf("welcome: %v", w)
	}
	// Whoever has read the welcome misses nothing.
	if n := h.Deliver(message("01", "hi")); n != 1 {
		t.Fatalf("delivered to %d sessions", n)
	}
	want := `{"op":"message","mid":"m-hi","channel":"pay","attempt":1,"ts":1700000000123,"content_type":"text/plain","enc":"text","body":"hi"}`
	if got := p.line(); got != want && !equalJSON(got, want) {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	p.send(`{"op":"ping"}` + "\n" + `{"op":"ack","mid":"m-hi"}` + "\n" + `{"op":"dance"}` + "\n")
	if o := p.object(); o["op"] != "pong" {
		t.Errorf("answer to ping: %v", o)
	}
	if o := p.object(); o["op"] != "error" || o["code"] != 400.0 {
		t.Errorf("answer to an unknown op: %v", o)
	}
	p.send(`{"op":"goodbye"}` + "\n")
	if end := p.over(); end.Reason != ClientGoodbye || end.Protocol != JSON || end.Ignored != 1 {
		t.Errorf("end: %+v", end)
	}
}

func equalJSON(a, b string) bool {
	var x, y any
	return json.Unmarshal([]byte(a), &x) == nil && json.Unmarshal([]byte(b), &y) == nil && fmt.Sprint(x) == fmt.Sprint(y)
}

func TestLengthFraming(t *testing.T) {
	f, err := wire.ParseFraming("length", "2")
	if err != nil {
		t.Fatal(err)
	}
	h := New()
	p := dialTCP(t, h, Endpoint{Framing: f})
	p.send("\x00\x0201")
	registered(t, h, "01", 1)
	h.Deliver(message("01", "a\nb"))
	buf := make([]byte, 5)
	if _, err := io.ReadFull(p.r, buf); err != nil || string(buf) != "\x00\x03a\nb" {
		t.Errorf("got %q, %v", buf, err)
	}
	p.over()
}

func TestSeveralSocketsAndEveryone(t *testing.T) {
	h := New()
	a, b, c := dialTCP(t, h, Endpoint{}), dialTCP(t, h, Endpoint{Protocol: JSON}), dialTCP(t, h, Endpoint{})
	other := dialTCP(t, h, Endpoint{Channel: "other"})
	a.send("01\n")
	b.send(`{"op":"hello","v":1,"id":"01"}` + "\n")
	c.send("02\n")
	other.send("01\n")
	registered(t, h, "01", 3)
	registered(t, h, "02", 1)
	if n := h.Deliver(message("01", "one")); n != 2 {
		t.Errorf("delivered to %d sessions, want the 2 of the channel", n)
	}
	if n := h.Deliver(message(broker.Everyone, "all")); n != 3 {
		t.Errorf("delivered to %d sessions, want all 3 of the channel", n)
	}
	if a.line() != "one" || a.line() != "all" || c.line() != "all" {
		t.Error("a plain socket got something else")
	}
	if b.object()["op"] != "welcome" || b.object()["body"] != "one" || b.object()["body"] != "all" {
		t.Error("the JSON socket got something else")
	}
	for _, p := range []*peer{a, b, c, other} {
		p.over()
	}
	if st := h.Stats(); st.Channels[channelName].Sessions != 0 {
		t.Errorf("sessions left: %+v", st)
	}
}

// The bad input of a first frame: each gets a readable line, is counted by reason, and disturbs nobody.
func TestRefusals(t *testing.T) {
	l4, _ := wire.ParseFraming("length", "4")
	refuseAll := func(_, _ string) error { return errors.New("no") }
	for _, c := range []struct {
		name, sent, answer string
		e                  Endpoint
		want               Reason
	}{
		{name: "empty", sent: "\n", answer: "error 400", want: BadHello},
		{name: "oversized", sent: strings.Repeat("x", 9000), answer: "error 413", want: FrameTooLarge},
		{name: "oversized by length", sent: "\xff\xff\xff\xff", answer: "error 413", want: FrameTooLarge, e: Endpoint{Framing: l4}},
		{name: "binary", sent: "\x00\xff\xfe\x01\n", answer: "error 400", want: BadID},
		{name: "comma", sent: "01,02\n", answer: "error 400", want: BadID},
		{name: "control character", sent: "0\x011\n", answer: "error 400", want: BadID},
		{name: "everyone", sent: "*\n", answer: "error 400", want: BadID},
		{name: "8 kB of ID", sent: strings.Repeat("9", 8000) + "\n", answer: "error 400", want: BadID},
		{name: "JSON where the ID has spaces", sent: `{"op":"hello","v":1,"id":"0 1"}` + "\n", answer: `{"op":"error","code":400`, want: BadID},
		{name: "broken JSON", sent: `{"op":"hello"` + "\n", answer: `{"op":"error","code":400`, want: BadHello},
		{name: "not a hello", sent: `{"op":"ack","mid":"1"}` + "\n", answer: `{"op":"error","code":400`, want: BadHello},
		{name: "future version", sent: `{"op":"hello","v":2,"id":"01"}` + "\n", answer: `{"op":"error","code":400`, want: BadHello},
		{name: "wrong token", sent: "01 secret\n", answer: "error 401", want: Unauthorized, e: Endpoint{Authorize: refuseAll}},
		{name: "HTTP", sent: "GET / HTTP/1.1\r\nHost: x\r\n\r\n", answer: "HTTP", want: BadHello},
		{name: "not served", sent: "01\n", answer: "error 404", want: NotServed, e: Endpoint{Admit: func(net.Addr) *Refusal {
			return &Refusal{Reason: NotServed, Code: 404, Text: "gone"}
		}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := New()
			p := dialTCP(t, h, c.e)
			p.send(c.sent)
			p.conn.(*net.TCPConn).CloseWrite()
			if got := p.eof(); !strings.Contains(got, c.answer) {
				t.Errorf("the peer read %q, want %q in it", got, c.answer)
			}
			end := p.over()
			if end.Reason != c.want || end.Err == nil || end.Registered {
				t.Errorf("end: %v (%v), want %v and an error for the log", end.Reason, end.Err, c.want)
			}
			if strings.Contains(fmt.Sprint(end.Err), "secret") {
				t.Errorf("the log would show the token: %v", end.Err)
			}
			if st := h.Stats(channelName); st.Ended[c.want] != 1 || st.Channels[channelName].Sessions != 0 {
				t.Errorf("stats: %+v", st)
			}
		})
	}
}

func TestTokenLetsIn(t *testing.T) {
	h := New()
	p := dialTCP(t, h, Endpoint{Authorize: func(id, token string) error {
		if id != "01" || token != "s3cret" {
			return errors.New("no")
		}
		return nil
	}})
	p.send("01 s3cret\n")
	registered(t, h, "01", 1)
	p.over()
}

func TestI10_TooManySockets(t *testing.T) {
	h := New()
	h.SetMaxSockets(1)
	first := dialTCP(t, h, Endpoint{})
	first.send("01\n")
	registered(t, h, "01", 1)
	second := dialTCP(t, h, Endpoint{})
	if got := second.eof(); !strings.Contains(got, "error 503") {
		t.Errorf("got %q", got)
	}
	if end := second.over(); end.Reason != TooManySockets {
		t.Errorf("end: %v", end.Reason)
	}
	first.over()
}

// Peers that keep their refused connections open keep nobody out, and have a bound of their own.
func TestI10_TurnedAwaySocketsTakeNoPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		h.SetMaxSockets(1)
		first := dial(t, h, Endpoint{})
		first.send("01\n")
		synctest.Wait()
		var refused []*peer
		for range 2 * maxTurnedAway { // none of them reads or closes
			refused = append(refused, dial(t, h, Endpoint{}))
		}
		synctest.Wait()
		ended := h.Stats().Ended[TooManySockets]
		if ended != maxTurnedAway {
			t.Errorf("%d were closed at once, want those over the bound, %d", ended, maxTurnedAway)
		}
		first.over()
		next := dial(t, h, Endpoint{})
		next.send("02\n")
		synctest.Wait()
		if n := h.Deliver(message("02", "x")); n != 1 {
			t.Error("the place that became free was not given")
		}
		if got := next.line(); got != "x" {
			t.Errorf("got %q", got)
		}
		next.over()
		for _, p := range refused {
			p.over()
		}
		if st := h.Stats(); st.Sockets != 0 {
			t.Errorf("sockets: %d", st.Sockets)
		}
	})
}

func TestHelloTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		p := dial(t, h, Endpoint{HelloTimeout: 10 * time.Second})
		var dribble sync.WaitGroup
		dribble.Go(func() { // one byte at a time, never an end: each byte must not buy more time
			tick := time.NewTicker(time.Second)
			defer tick.Stop()
			for range tick.C {
				if _, err := p.conn.Write([]byte("x")); err != nil {
					return
				}
			}
		})
		start := time.Now()
		if got := p.eof(); !strings.Contains(got, "error 408") {
			t.Errorf("got %q", got)
		}
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("refused after %s", took)
		}
		if end := p.over(); end.Reason != HelloTimeout {
			t.Errorf("end: %v", end.Reason)
		}
		dribble.Wait()
	})
}

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		p := dial(t, h, Endpoint{})
		p.send(`{"op":"hello","v":1,"id":"01","heartbeat":30}` + "\n")
		p.object()
		for range 3 { // answered pings keep the session
			if o := p.object(); o["op"] != "ping" {
				t.Fatalf("want a ping, got %v", o)
			}
			p.send(`{"op":"pong"}` + "\n")
		}
		start := time.Now()
		if o := p.object(); o["op"] != "ping" {
			t.Fatalf("want a ping, got %v", o)
		}
		if wait := time.Since(start); wait < 26*time.Second || wait > 30*time.Second {
			t.Errorf("pinged after %s of silence", wait)
		}
		if got := p.eof(); !strings.Contains(got, `"code":408`) {
			t.Errorf("got %q", got)
		}
		if took := time.Since(start); took > 41*time.Second {
			t.Errorf("given up after %s", took)
		}
		if end := p.over(); end.Reason != HeartbeatLost {
			t.Errorf("end: %v", end.Reason)
		}
	})
}

func TestHalfAFrameSurvivesAPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		p := dial(t, h, Endpoint{})
		p.send(`{"op":"hello","v":1,"id":"01"}` + "\n")
		p.object()
		p.send(`{"op":"pi`)
		if o := p.object(); o["op"] != "ping" {
			t.Fatalf("want a ping, got %v", o)
		}
		p.send(`ng"}` + "\n")
		if o := p.object(); o["op"] != "pong" {
			t.Fatalf("want a pong, got %v", o)
		}
		p.over()
	})
}

func TestI10_SlowSocketIsClosedAndOthersAreNotDelayed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		slow := dial(t, h, Endpoint{QueueMessages: 10})
		slow.send("01\n")
		quick := dial(t, h, Endpoint{})
		quick.send("01\n")
		synctest.Wait()
		got := make(chan string, 100)
		go func() {
			for {
				line, err := quick.r.ReadString('\n')
				if err != nil {
					return
				}
				got <- strings.TrimSpace(line)
			}
		}()
		for i := range 20 { // slow never reads
			h.Deliver(message("01", fmt.Sprint(i)))
			synctest.Wait()
		}
		if len(got) != 20 {
			t.Errorf("the quick socket got %d of 20", len(got))
		}
		end := <-slow.end
		if end.Reason != SlowSocket || end.Err == nil {
			t.Errorf("end: %v (%v)", end.Reason, end.Err)
		}
		// One write was under way, and failed; nothing was read.
		if end.Pushed != 0 || end.Dropped == 0 {
			t.Errorf("pushed %d, dropped %d", end.Pushed, end.Dropped)
		}
		if d := h.Stats().Channels[channelName].Dropped[DropSlowSocket]; d != end.Dropped {
			t.Errorf("dropped %d by the channel's count, %d by the session's", d, end.Dropped)
		}
		quick.over()
	})
}

func TestI10_QueueBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		p := dial(t, h, Endpoint{QueueBytes: 1000})
		p.send("01\n")
		synctest.Wait()
		for range 3 {
			h.Deliver(message("01", strings.Repeat("x", 400)))
		}
		if end := <-p.end; end.Reason != SlowSocket {
			t.Errorf("end: %v", end.Reason)
		}
	})
}

func TestWriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		p := dial(t, h, Endpoint{WriteTimeout: 7 * time.Second})
		p.send("01\n")
		synctest.Wait()
		start := time.Now()
		h.Deliver(message("01", "nobody reads this"))
		end := <-p.end
		if end.Reason != WriteFailed || end.Dropped != 1 || time.Since(start) != 7*time.Second {
			t.Errorf("end after %s: %+v", time.Since(start), end)
		}
	})
}

func TestUnframableAndTooLargeAreDroppedAndTold(t *testing.T) {
	h := New()
	var mu sync.Mutex
	var told []string
	p := dialTCP(t, h, Endpoint{MaxMessage: 20, OnDrop: func(id string, r string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, id+" "+r)
	}})
	p.send("01\n")
	registered(t, h, "01", 1)
	h.Deliver(message("01", "a\nb"))
	h.Deliver(message("01", "c\nd"))
	h.Deliver(message("01", strings.Repeat("x", 21)))
	h.Deliver(message("01", "fits"))
	if got := p.line(); got != "fits" {
		t.Errorf("got %q", got)
	}
	p.over()
	c := h.Stats().Channels[channelName]
	if c.Dropped[DropUnframable] != 2 || c.Dropped[DropTooLarge] != 1 || c.Pushed != 1 {
		t.Errorf("stats: %+v", c)
	}
	if fmt.Sprint(told) != "[01 unframable]" {
		t.Errorf("told %v, want one line for the session", told)
	}
}

func TestI8_DismissSaysGoodbyeAfterWhatIsQueued(t *testing.T) {
	h := New()
	j, p, stays := dialTCP(t, h, Endpoint{}), dialTCP(t, h, Endpoint{}), dialTCP(t, h, Endpoint{Channel: "other"})
	j.send(`{"op":"hello","v":1,"id":"01"}` + "\n")
	j.object()
	p.send("01\n")
	stays.send("01\n")
	registered(t, h, "01", 3)
	h.Deliver(message("01", "last"))
	n := h.Dismiss(ListenerRemoved, 0, func(s *Session) bool { return s.Endpoint().Channel == channelName })
	if n != 2 {
		t.Errorf("dismissed %d", n)
	}
	if o := j.object(); o["body"] != "last" {
		t.Errorf("got %v", o)
	}
	if o := j.object(); o["op"] != "goodbye" || o["code"] != "listener_removed" || o["reconnect"] != true {
		t.Errorf("got %v", o)
	}
	if got := p.eof(); got != "last\n" {
		t.Errorf("the plain socket read %q, want the message and nothing that looks like one", got)
	}
	for _, x := range []*peer{j, p} {
		if end := x.over(); end.Reason != ListenerRemoved || end.Pushed != 1 {
			t.Errorf("end: %+v", end)
		}
	}
	if h.Deliver(message("01", "x")) != 0 {
		t.Error("a dismissed session took a message")
	}
	stays.over()
}

func TestI8_ReloadBetweenAdmitAndEnter(t *testing.T) {
	h := New()
	asked := 0
	p := dialTCP(t, h, Endpoint{Admit: func(net.Addr) *Refusal {
		if asked++; asked > 1 {
			return &Refusal{Reason: NotServed, Code: 404, Text: "gone"}
		}
		return nil
	}})
	p.send(`{"op":"hello","v":1,"id":"01"}` + "\n")
	if o := p.object(); o["op"] != "welcome" {
		t.Errorf("got %v", o)
	}
	if o := p.object(); o["op"] != "goodbye" {
		t.Errorf("got %v", o)
	}
	if end := p.over(); end.Reason != NotServed {
		t.Errorf("end: %v", end.Reason)
	}
}

func TestDrain(t *testing.T) {
	h := New()
	p := dialTCP(t, h, Endpoint{})
	p.send(`{"op":"hello","v":1,"id":"01"}` + "\n")
	p.object()
	done := make(chan struct{})
	go func() { h.Drain(context.Background(), time.Second, 0); close(done) }()
	if o := p.object(); o["op"] != "goodbye" || o["code"] != "shutdown" || o["after_ms"].(float64) > 1000 {
		t.Errorf("got %v", o)
	}
	p.conn.Close()
	<-done
	late := dialTCP(t, h, Endpoint{})
	late.send("02\n")
	if got := late.eof(); !strings.Contains(got, "error 503") {
		t.Errorf("got %q", got)
	}
	late.over()
	p.over()
}

func TestDrainIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := New()
		p := dial(t, h, Endpoint{WriteTimeout: time.Hour})
		p.send(`{"op":"hello","v":1,"id":"01"}` + "\n")
		p.object()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		start := time.Now()
		h.Drain(ctx, 0, 0) // the peer does not even read its goodbye
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("drained in %s", took)
		}
		if end := <-p.end; end.Reason != Shutdown {
			t.Errorf("end: %v", end.Reason)
		}
	})
}

// panicking is a connection with a bug.
type panicking struct{ net.Conn }

func (panicking) Read([]byte) (int, error) { panic("a bug") }

func TestI11_PanicEndsOneSession(t *testing.T) {
	h := New()
	good := dialTCP(t, h, Endpoint{})
	good.send("01\n")
	registered(t, h, "01", 1)
	client, server := net.Pipe()
	defer client.Close()
	defer server.Close()
	end := h.Serve(panicking{server}, Endpoint{Channel: channelName}.WithDefaults())
	if end.Reason != Panicked || !strings.Contains(end.Err.Error(), "a bug") || !strings.Contains(end.Err.Error(), "hub_test.go") {
		t.Errorf("end: %v: %v", end.Reason, end.Err)
	}
	h.Deliver(message("01", "still here"))
	if got := good.line(); got != "still here" {
		t.Errorf("got %q", got)
	}
	good.over()
}

// I3: what one caller delivers to one destination is pushed in order, whatever others do; and nothing
// is lost or doubled. Without the lock in push this fails at once under -race.
func TestI3_OrderUnderConcurrency(t *testing.T) {
	const senders, each = 8, 500
	h := New()
	p := dialTCP(t, h, Endpoint{QueueMessages: senders * each, QueueBytes: 64 << 20})
	p.send("01\n")
	registered(t, h, "01", 1)
	var wg sync.WaitGroup
	for s := range senders {
		wg.Go(func() {
			for i := range each {
				h.Deliver(message("01", fmt.Sprintf("%d %d", s, i)))
			}
		})
	}
	next := make([]int, senders)
	for range senders * each {
		var s, i int
		if _, err := fmt.Sscanf(p.line(), "%d %d", &s, &i); err != nil {
			t.Fatal(err)
		}
		if i != next[s] {
			t.Fatalf("sender %d: got %d, want %d", s, i, next[s])
		}
		next[s]++
	}
	wg.Wait()
	p.over()
}

// Sessions that come and go while messages are delivered and dismissals run.
func TestChurn(t *testing.T) {
	h := New()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					h.Deliver(message([]string{"01", broker.Everyone}[i%2], "x"))
					h.Stats()
				}
			}
		})
	}
	for i := range 100 {
		p := dialTCP(t, h, Endpoint{QueueMessages: 1 << 30, QueueBytes: 1 << 40})
		wg.Go(func() { _, _ = io.Copy(io.Discard, p.conn) })
		if i%2 == 0 {
			p.send("01\n")
		} else {
			p.send(`{"op":"hello","v":1,"id":"01"}` + "\n")
		}
		if i%3 == 0 {
			registered(t, h, "01", 1)
			h.Dismiss(ChannelRemoved, 0, func(*Session) bool { return true })
		}
		p.over()
	}
	close(stop)
	wg.Wait()
	if st := h.Stats(); st.Sockets != 0 || st.Channels[channelName].Sessions != 0 {
		t.Errorf("left behind: %+v", st)
	}
}
