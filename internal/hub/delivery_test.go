package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
	"github.com/caddyrelay/relay/internal/wire"
)

// office is a hub with a store.
type office struct {
	t     *testing.T
	hub   *Hub
	store broker.Store
	how   Delivery
	e     Endpoint
	moved atomic.Pointer[broker.Store] // the store that rules now, if it is another one
}

func newOffice(t *testing.T) *office {
	t.Helper()
	m := brokertest.NewMemory(brokertest.MemoryOptions{})
	t.Cleanup(func() { _ = m.Close() })
	o := &office{t: t, hub: New(), store: m, e: Endpoint{Channel: channelName}}
	o.e.Delivery = func() (Delivery, bool) {
		how := o.how
		how.Store = o.store
		if s := o.moved.Load(); s != nil {
			how.Store = *s
		}
		return how, true
	}
	return o
}

// publish stores a message and returns its MID.
func (o *office) publish(id, body string, options ...broker.AppendOptions) string {
	o.t.Helper()
	m := message(id, body)
	m.MID, m.Time = broker.NewMessageID(channelName, id, ""), time.Now()
	var opts broker.AppendOptions
	if len(options) > 0 {
		opts = options[0]
	}
	if _, err := o.store.Append(context.Background(), m, opts); err != nil {
		o.t.Fatal(err)
	}
	return m.MID
}

// json connects a client that speaks JSON, and reads its welcome.
func (o *office) json(id string, window int) *peer {
	o.t.Helper()
	p := dial(o.t, o.hub, o.e)
	p.send(fmt.Sprintf(`{"op":"hello","v":1,"id":%q,"window":%d,"heartbeat":240}`+"\n", id, window))
	if v := p.object(); v["op"] != "welcome" || v["fence"] == "" {
		o.t.Fatalf("welcome: %v", v)
	}
	return p
}

// plain connects a client that speaks plain.
func (o *office) plain(id string) *peer {
	p := dial(o.t, o.hub, o.e)
	p.send(id + "\n")
	return p
}

// expect reads messages, which must have these bodies, and returns the last.
func (p *peer) expect(bodies ...string) (v map[string]any) {
	p.t.Helper()
	for _, body := range bodies {
		v = p.object()
		for v["op"] == "ping" {
			p.send(`{"op":"pong"}` + "\n")
			v = p.object()
		}
		if v["op"] != "message" || v["body"] != body {
			p.t.Fatalf("got %v, want the message %q", v, body)
		}
	}
	return v
}

func (p *peer) ack(mid string) { p.t.Helper(); p.send(fmt.Sprintf(`{"op":"ack","mid":%q}`+"\n", mid)) }
func (p *peer) say(op, mid string) {
	p.t.Helper()
	p.send(fmt.Sprintf(`{"op":%q,"mid":%q}`+"\n", op, mid))
}
func (p *peer) pong()                  { p.t.Helper(); p.send(`{"op":"pong"}` + "\n") }
func mid(v map[string]any) string      { return v["mid"].(string) }
func attempt(v map[string]any) float64 { return v["attempt"].(float64) }

// quiet fails the test if the client is sent anything within d.
func (p *peer) quiet(d time.Duration) {
	p.t.Helper()
	p.conn.SetReadDeadline(time.Now().Add(d))
	var netErr net.Error
	if text, err := p.r.ReadString('\n'); !errors.As(err, &netErr) || !netErr.Timeout() {
		p.t.Fatalf("got %q, %v; want nothing for %s", text, err, d)
	}
}

// record waits until a message is in a state.
func (o *office) record(mid string, state broker.State) broker.Record {
	o.t.Helper()
	var rec broker.Record
	until(o.t, fmt.Sprintf("the message to be %s", state), func() bool {
		var err error
		if rec, err = o.store.Lookup(context.Background(), mid); err != nil {
			o.t.Fatal(err)
		}
		return rec.State == state
	})
	return rec
}

func TestAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		first := o.publish("01", "before")
		p := o.json("01", 16)
		v := p.expect("before")
		if mid(v) != first || attempt(v) != 1 || v["fence"] == nil {
			t.Errorf("message: %v", v)
		}
		p.send(`{"op":"ack","mid":"` + first + `","reply":{"ok":true}}` + "\n")
		if rec := o.record(first, broker.StateAcked); string(rec.Reply) != `{"ok":true}` || rec.Attempts != 1 {
			t.Errorf("record: %+v", rec)
		}
		second := o.publish("01", "after")
		p.ack(mid(p.expect("after")))
		o.record(second, broker.StateAcked)
		if end := p.over(); end.Pushed != 2 || end.Dropped != 0 {
			t.Errorf("end: %+v", end)
		}
	})
}

// I3: first pushes are in order, at most a window of them at once.
func TestI3_Window(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		for i := range 5 {
			o.publish("01", fmt.Sprint(i))
		}
		p := o.json("01", 2)
		one := p.expect("0")
		two := p.expect("1")
		p.quiet(time.Second)
		p.ack(mid(two))
		p.expect("2")
		p.ack(mid(one))
		p.expect("3")
		p.quiet(time.Second)
		p.over()
	})
}

// I5: what was not acknowledged is pushed again, at once, when the socket ends.
func TestI5_SocketEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a := o.publish("01", "a")
		o.publish("01", "b")
		p := o.json("01", 16)
		p.expect("a", "b")
		p.over()
		began := time.Now()
		p = o.json("01", 16)
		if v := p.expect("a"); attempt(v) != 2 || mid(v) != a {
			t.Errorf("message: %v", v)
		}
		p.expect("b")
		if d := time.Since(began); d > 100*time.Millisecond {
			t.Errorf("it took %s", d)
		}
		p.over()
	})
}

// I4, I5: a socket that registers takes the destination over; the one before can finish nothing any more.
func TestI4_Takeover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a := o.publish("01", "a")
		old := o.json("01", 16)
		old.expect("a")
		p := o.json("01", 16)
		if v := p.expect("a"); attempt(v) != 2 {
			t.Errorf("message: %v", v)
		}
		if v := old.object(); v["op"] != "goodbye" || v["code"] != "taken_over" || v["reconnect"] != false {
			t.Errorf("goodbye: %v", v)
		}
		_, _ = io.WriteString(old.conn, `{"op":"ack","mid":"`+a+`"}`+"\n")
		if end := old.over(); end.Reason != TakenOver {
			t.Errorf("end: %+v", end)
		}
		if rec, _ := o.store.Lookup(t.Context(), a); rec.State.Finished() {
			t.Errorf("the old socket finished the message: %+v", rec)
		}
		p.ack(a)
		o.record(a, broker.StateAcked)
		p.over()
	})
}

// I3: a redelivery restarts at the oldest unacknowledged message, after the nack's delay.
func TestI3_NackRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		for _, body := range []string{"a", "b", "c"} {
			o.publish("01", body)
		}
		p := o.json("01", 16)
		a := p.expect("a")
		p.expect("b")
		c := p.expect("c")
		began := time.Now()
		p.ack(mid(c))
		p.say("nack", mid(a))
		p.quiet(900 * time.Millisecond)
		v := p.expect("a")
		if attempt(v) != 2 || time.Since(began) > 1100*time.Millisecond {
			t.Errorf("message %v after %s", v, time.Since(began))
		}
		p.ack(mid(v))
		p.ack(mid(p.expect("b")))
		p.quiet(time.Second)
		p.over()
	})
}

func TestRelaxedOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.how.Relaxed = true
		for _, body := range []string{"a", "b"} {
			o.publish("01", body)
		}
		p := o.json("01", 2)
		a := p.expect("a")
		b := p.expect("b")
		p.say("nack", mid(a))
		p.ack(mid(b))
		o.publish("01", "c")
		p.expect("c")
		if v := p.expect("a"); attempt(v) != 2 {
			t.Errorf("message: %v", v)
		}
		p.quiet(time.Second)
		p.over()
	})
}

func TestNackDelaysAndLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.how.MaxAttempts = 4
		a := o.publish("01", "a")
		p := o.json("01", 16)
		for i, want := range []time.Duration{time.Second, 2 * time.Second} {
			v := p.expect("a")
			if attempt(v) != float64(i+1) {
				t.Errorf("message: %v", v)
			}
			p.say("nack", a)
			p.quiet(want - 10*time.Millisecond)
		}
		p.expect("a")
		p.send(`{"op":"nack","mid":"` + a + `","delay":600,"reason":"db down"}` + "\n")
		p.send(`{"op":"nack","mid":"` + a + `"}` + "\n") // it is waiting already: no failure more
		for range 2 {                                    // the heartbeat is 240 s
			p.quiet(3 * time.Minute)
			if v := p.object(); v["op"] != "ping" {
				t.Fatalf("got %v", v)
			}
			p.pong()
		}
		p.expect("a")
		p.send(`{"op":"nack","mid":"` + a + `","reason":"still down"}` + "\n")
		rec := o.record(a, broker.StateDead)
		if rec.Reason != broker.DeadAttempts || rec.Detail != "still down" || rec.Attempts != 4 {
			t.Errorf("record: %+v", rec)
		}
		b := o.publish("01", "b")
		p.expect("b")
		p.send(`{"op":"nack","mid":"` + b + `","terminate":true,"reason":"unknown order"}` + "\n")
		if rec := o.record(b, broker.StateDead); rec.Reason != broker.DeadTerminated || rec.Detail != "unknown order" {
			t.Errorf("record: %+v", rec)
		}
		p.over()
	})
}

// The delay of a nack holds on the next socket too.
func TestNackDelaySurvivesTheSocket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a := o.publish("01", "a")
		p := o.json("01", 16)
		p.expect("a")
		p.send(`{"op":"nack","mid":"` + a + `","delay":60}` + "\n")
		p.over()
		p = o.json("01", 16)
		p.quiet(59 * time.Second)
		p.expect("a")
		p.over()
	})
}

// A silent client gets its window again; only the oldest message counts a failure.
func TestAckTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.how.MaxAttempts = 3
		a, b := o.publish("01", "a"), o.publish("01", "b")
		p := o.json("01", 16)
		for i := range 3 {
			if v := p.expect("a"); attempt(v) != float64(i+1) {
				t.Errorf("message: %v", v)
			}
			p.expect("b")
			p.quiet(29 * time.Second)
		}
		if rec := o.record(a, broker.StateDead); rec.Reason != broker.DeadAttempts {
			t.Errorf("record: %+v", rec)
		}
		if rec, _ := o.store.Lookup(t.Context(), b); rec.State.Finished() {
			t.Errorf("the message behind died too: %+v", rec)
		}
		p.over()
	})
}

// Whoever works on a message is not silent, and those behind it wait for it in the client.
func TestWorking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a := o.publish("01", "a")
		o.publish("01", "b")
		p := o.json("01", 16)
		p.expect("a", "b")
		for range 5 {
			p.quiet(20 * time.Second)
			p.say("working", a)
		}
		p.ack(a)
		p.quiet(29 * time.Second)
		p.expect("b")
		p.over()
	})
}

func TestBadAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a := o.publish("01", "a")
		foreign := o.publish("02", "x")
		p := o.json("01", 1)
		p.expect("a")
		unsent := o.publish("01", "b")
		for _, mid := range []string{"nonsense", foreign, unsent} {
			p.ack(mid)
			if v := p.object(); v["op"] != "error" || v["code"] != 404.0 {
				t.Errorf("answer to %s: %v", mid, v)
			}
		}
		p.send(`{"op":"ack","mid":"` + a + `","reply":"` + strings.Repeat("x", broker.MaxReply) + `"}` + "\n")
		if v := p.object(); v["op"] != "error" || v["code"] != 413.0 {
			t.Errorf("answer to a long reply: %v", v)
		}
		p.expect("b")
		if rec := o.record(a, broker.StateAcked); rec.Reply != nil {
			t.Errorf("record: %+v", rec)
		}
		p.ack(a) // once more
		if v := p.object(); v["op"] != "error" || v["code"] != 404.0 {
			t.Errorf("answer to a second ack: %v", v)
		}
		if n := o.hub.Stats().Channels[channelName].BadAcks; n != 4 {
			t.Errorf("%d bad acks counted", n)
		}
		p.ack(unsent)
		o.record(unsent, broker.StateAcked)
		p.over()
	})
}

// A client that pings with frames to be ignored, or that answers late, never finishes what it did not answer.
func TestPlainAckLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.e.Ack, o.e.Ignore, o.e.Window = AckLine, regexp.MustCompile(`^PING$`), 16
		a, b := o.publish("01", "a"), o.publish("01", "b")
		p := o.plain("01")
		if got := p.line(); got != "a" {
			t.Fatalf("got %q", got)
		}
		for range 29 {
			p.send("PING\n\n")
			p.quiet(time.Second)
		}
		if rec, _ := o.store.Lookup(t.Context(), a); rec.State != broker.StateInFlight {
			t.Fatalf("a ping finished the message: %+v", rec)
		}
		p.send("OK\n")
		if got := p.line(); got != "b" {
			t.Fatalf("got %q", got)
		}
		o.record(a, broker.StateAcked)

		// The answer to b comes too late: the socket is closed by then, and b is pushed on the next one.
		if rest := p.eof(); rest != "" {
			t.Errorf("got %q", rest)
		}
		p.conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, _ = io.WriteString(p.conn, "OK\n")
		if end := p.over(); end.Reason != AckTimeout {
			t.Errorf("end: %+v", end)
		}
		if rec, _ := o.store.Lookup(t.Context(), b); rec.State.Finished() {
			t.Fatalf("a late answer finished the message: %+v", rec)
		}
		p = o.plain("01")
		if got := p.line(); got != "b" {
			t.Fatalf("got %q", got)
		}
		p.send("OK\n")
		o.record(b, broker.StateAcked)
		p.send("OK\n") // nothing is in flight
		synctest.Wait()
		c := o.publish("01", "c")
		if got := p.line(); got != "c" {
			t.Fatalf("got %q", got)
		}
		synctest.Wait()
		if rec, _ := o.store.Lookup(t.Context(), c); rec.State != broker.StateInFlight {
			t.Fatalf("an answer that came before finished the message: %+v", rec)
		}
		p.over()
	})
}

// A message that expires in a plain client's hands ends the socket: its answer could be taken for that of the next.
func TestPlainAckLineExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.e.Ack = AckLine
		a := o.publish("01", "a", broker.AppendOptions{TTL: 5 * time.Second})
		b := o.publish("01", "b")
		p := o.plain("01")
		p.line()
		if rest := p.eof(); rest != "" {
			t.Errorf("got %q", rest)
		}
		if end := p.over(); end.Reason != AckTimeout {
			t.Errorf("end: %+v", end)
		}
		if rec := o.record(a, broker.StateExpired); rec.Attempts != 1 {
			t.Errorf("record: %+v", rec)
		}
		if rec, _ := o.store.Lookup(t.Context(), b); rec.State != broker.StateStored {
			t.Errorf("record: %+v", rec)
		}
	})
}

func TestPlainAckMatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.e.Ack, o.e.AckMatch = AckMatch, regexp.MustCompile(`^OK`)
		a := o.publish("01", "a")
		p := o.plain("01")
		p.line()
		p.send("NO\nNOT OK\n")
		synctest.Wait()
		if rec, _ := o.store.Lookup(t.Context(), a); rec.State != broker.StateInFlight {
			t.Fatalf("record: %+v", rec)
		}
		p.send("OK 1\n")
		o.record(a, broker.StateAcked)
		if end := p.over(); end.Ignored != 2 {
			t.Errorf("end: %+v", end)
		}
	})
}

// A peer that cannot acknowledge has a message when its kernel has it.
func TestAckNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		var unsent atomic.Int64
		o.e.Unsent = func(net.Conn) (int, error) { return int(unsent.Load()), nil }
		unsent.Store(10)
		a := o.publish("01", "a")
		p := o.plain("01")
		p.line()
		time.Sleep(5 * time.Second)
		if rec, _ := o.store.Lookup(t.Context(), a); rec.State != broker.StateInFlight {
			t.Fatalf("record: %+v", rec)
		}
		p.over() // before its kernel confirmed it: it is pushed again
		p = o.plain("01")
		if got := p.line(); got != "a" {
			t.Fatalf("got %q", got)
		}
		unsent.Store(0)
		if rec := o.record(a, broker.StateWritten); rec.Attempts != 2 {
			t.Errorf("record: %+v", rec)
		}
		unsent.Store(10)
		o.publish("01", "b")
		p.line()
		if rest := p.eof(); rest != "" { // its kernel takes nothing any more
			t.Errorf("got %q", rest)
		}
		if end := p.over(); end.Reason != AckTimeout {
			t.Errorf("end: %+v", end)
		}
	})
}

// A client that reads its message and leaves at once has got it.
func TestAckNoneLeavesAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.e.Unsent = func(net.Conn) (int, error) { return 0, nil }
		a := o.publish("01", "a")
		p := o.plain("01")
		p.line()
		p.over()
		o.record(a, broker.StateWritten)
	})
}

// I7: no write begins after the deadline.
func TestI7_Deadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a := o.publish("01", "a")
		b := o.publish("01", "b", broker.AppendOptions{TTL: 3 * time.Second})
		c := o.publish("01", "c")
		p := o.json("01", 1)
		p.expect("a")
		p.quiet(4 * time.Second)
		if rec := o.record(b, broker.StateExpired); rec.Attempts != 0 {
			t.Errorf("record: %+v", rec)
		}
		p.ack(a)
		p.ack(mid(p.expect("c")))
		o.record(c, broker.StateAcked)

		// In flight: expired, unless the ack came first.
		d := o.publish("01", "d", broker.AppendOptions{TTL: 3 * time.Second})
		p.expect("d")
		if rec := o.record(d, broker.StateExpired); rec.Attempts != 1 {
			t.Errorf("record: %+v", rec)
		}
		p.ack(d)
		if v := p.object(); v["code"] != 404.0 {
			t.Errorf("answer to a late ack: %v", v)
		}
		p.over()
	})
}

func TestI7_QueuedMessageExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		p := dial(t, o.hub, o.e) // reads nothing, and a pipe holds nothing: its welcome is being written
		go func() { _, _ = io.WriteString(p.conn, `{"op":"hello","v":1,"id":"01"}`+"\n") }()
		registered(t, o.hub, "01", 1)
		a := o.publish("01", "a", broker.AppendOptions{TTL: 2 * time.Second})
		b := o.publish("01", "b")
		o.record(a, broker.StateExpired)
		if v := p.object(); v["op"] != "welcome" {
			t.Fatalf("got %v", v)
		}
		if v := p.expect("b"); mid(v) != b {
			t.Errorf("got %v", v)
		}
		if rec := o.record(a, broker.StateExpired); rec.Attempts != 0 {
			t.Errorf("record: %+v", rec)
		}
		p.over()
	})
}

func TestCrashLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.how.CrashLimit = 3
		a, b := o.publish("01", "a"), o.publish("01", "b")
		for range 3 {
			p := o.json("01", 16)
			p.expect("a", "b")
			p.over()
		}
		if rec := o.record(a, broker.StateDead); rec.Reason != broker.DeadCrashes {
			t.Errorf("record: %+v", rec)
		}
		p := o.json("01", 16)
		if v := p.expect("b"); attempt(v) != 4 {
			t.Errorf("message: %v", v)
		}
		p.send(`{"op":"goodbye"}` + "\n") // which is no death
		p.over()
		if rec, _ := o.store.Lookup(t.Context(), b); rec.State.Finished() {
			t.Errorf("record: %+v", rec)
		}
	})
}

func TestUndeliverableBecomesADeadLetter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.e.Ack, o.e.MaxMessage = AckLine, 20
		a, b, c := o.publish("01", "a\nb"), o.publish("01", strings.Repeat("x", 21)), o.publish("01", "c")
		p := o.plain("01")
		if got := p.line(); got != "c" {
			t.Fatalf("got %q", got)
		}
		for mid, want := range map[string]broker.DeadReason{a: broker.DeadUnframable, b: broker.DeadTooLarge} {
			if rec := o.record(mid, broker.StateDead); rec.Reason != want || rec.Attempts != 0 {
				t.Errorf("record: %+v", rec)
			}
		}
		p.send("OK\n")
		o.record(c, broker.StateAcked)
		p.over()
	})
}

// A message that waits behind the window can be taken back; one that was pushed cannot.
func TestWithdraw(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a, b, c := o.publish("01", "a"), o.publish("01", "b"), o.publish("01", "c")
		p := o.json("01", 1)
		p.expect("a")
		for _, x := range []struct {
			mid  string
			want broker.Cancelled
		}{{a, broker.CancelTooLate}, {b, broker.CancelDone}} {
			if got, err := o.store.Cancel(t.Context(), x.mid); err != nil || got != x.want {
				t.Errorf("cancelling: %v, %v; want %v", got, err, x.want)
			}
		}
		p.ack(a)
		p.ack(mid(p.expect("c")))
		o.record(b, broker.StateCancelled)
		o.record(c, broker.StateAcked)
		p.over()
	})
}

// Acks that come while the store is away are settled when it is back; the socket stays.
func TestI2_StoreOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a := o.publish("01", "a")
		memory := o.store
		plan := new(brokertest.Plan)
		o.store = brokertest.Faulty(memory, plan)
		failed := 0
		o.hub.OnStoreError = func(string, string, error) { failed++ }
		p := o.json("01", 16)
		p.expect("a")
		plan.Outage(broker.ErrUnavailable)
		p.ack(a)
		time.Sleep(20 * time.Second)
		if rec, _ := memory.Lookup(t.Context(), a); rec.State.Finished() {
			t.Fatalf("record: %+v", rec)
		}
		plan.Outage(nil)
		p.quiet(3 * time.Second)
		if rec, _ := memory.Lookup(t.Context(), a); rec.State != broker.StateAcked {
			t.Errorf("record: %+v", rec)
		}
		if failed != 1 {
			t.Errorf("told of %d failures, want the first", failed)
		}
		b := o.publish("01", "b")
		p.ack(mid(p.expect("b")))
		o.record(b, broker.StateAcked)
		p.over()
	})
}

// A ring comes from a store that works: nothing waits for the pause after the last failure.
func TestI2_RingEndsThePause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		a := o.publish("01", "a")
		plan := new(brokertest.Plan)
		o.store = brokertest.Faulty(o.store, plan)
		p := o.json("01", 16)
		p.expect("a")
		plan.Outage(broker.ErrUnavailable)
		p.ack(a)
		time.Sleep(20 * time.Second) // the pauses are as long as they get
		plan.Outage(nil)
		began := time.Now()
		b := o.publish("01", "b")
		p.expect("b")
		if d := time.Since(began); d > 50*time.Millisecond {
			t.Errorf("pushed after %s", d)
		}
		p.ack(b)
		o.record(a, broker.StateAcked)
		o.record(b, broker.StateAcked)
		p.over()
	})
}

func TestStoreIsAwayWhenASocketRegisters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		plan := new(brokertest.Plan)
		o.store = brokertest.Faulty(o.store, plan)
		plan.Outage(broker.ErrUnavailable)
		p := dial(t, o.hub, o.e)
		p.send(`{"op":"hello","v":1,"id":"01"}` + "\n")
		if v := p.object(); v["op"] != "error" || v["code"] != 503.0 || v["temporary"] != true {
			t.Errorf("answer: %v", v)
		}
		if end := p.over(); end.Reason != StoreFailed || end.Registered {
			t.Errorf("end: %+v", end)
		}
	})
}

// I8: a reload that brings another store moves the sockets there, without closing them.
func TestI8_AnotherStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		p := o.json("01", 16)
		a := o.publish("01", "a")
		p.ack(mid(p.expect("a")))
		o.record(a, broker.StateAcked)

		var next broker.Store = brokertest.NewMemory(brokertest.MemoryOptions{})
		defer next.Close()
		before := o.store
		o.moved.Store(&next)
		o.hub.Reattach()
		synctest.Wait()
		_ = before.Close() // which tells the owners of its mailboxes; they own others by now
		synctest.Wait()
		elsewhere := &office{t: t, store: next}
		b := elsewhere.publish("01", "b")
		p.ack(mid(p.expect("b")))
		elsewhere.record(b, broker.StateAcked)
		p.over()
	})
}

// I2, I4: a store that has forgotten the owner is told again who it is. The socket stays, nothing is pushed twice, and acks
// that came meanwhile are settled.
func TestI4_StoreForgetsTheOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		memory := o.store.(*brokertest.Memory)
		plan := new(brokertest.Plan)
		o.store = brokertest.Faulty(memory, plan)
		a, b, c := o.publish("01", "a"), o.publish("01", "b"), o.publish("01", "c")
		p := o.json("01", 2)
		p.expect("a", "b")
		plan.Outage(broker.ErrUnavailable)
		p.ack(a)
		p.expect("c") // it was read ahead
		memory.Forget(channelName, "01")
		p.quiet(5 * time.Second)
		plan.Outage(nil)
		p.quiet(5 * time.Second) // b and c are in the client's hands
		o.record(a, broker.StateAcked)
		if rec, _ := memory.Lookup(t.Context(), b); rec.Attempts != 1 || rec.State != broker.StateInFlight {
			t.Errorf("record: %+v", rec)
		}
		p.ack(b)
		p.ack(c)
		o.record(b, broker.StateAcked)
		o.record(c, broker.StateAcked)
		p.over()
	})
}

// A plain peer's answer to a message that the store has forgotten is not taken for that of the next one.
func TestI2_StoreForgetsAMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.e.Ack = AckLine
		memory := o.store.(*brokertest.Memory)
		a, b := o.publish("01", "a"), o.publish("01", "b")
		p := o.plain("01")
		if got := p.line(); got != "a" {
			t.Fatalf("got %q", got)
		}
		memory.Forget(channelName, "01", a)
		if rest := p.eof(); rest != "" {
			t.Errorf("got %q", rest)
		}
		if end := p.over(); end.Reason != AckTimeout {
			t.Errorf("end: %+v", end)
		}
		if rec, _ := memory.Lookup(t.Context(), b); rec.State != broker.StateStored {
			t.Errorf("record: %+v", rec)
		}
	})
}

// The window's bytes can be more than the queue's: messages wait for room, and nobody is closed for it.
func TestI10_WindowIsLargerThanTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.e.QueueBytes, o.e.QueueMessages = 300, 2
		var bodies []string
		for i := range 10 {
			bodies = append(bodies, fmt.Sprint(i, strings.Repeat("x", 200)))
			o.publish("01", bodies[i])
		}
		p := o.json("01", 10)
		synctest.Wait()
		p.expect(bodies...)
		p.over()
	})
}

// Everything at once, for the race detector: many destinations, acks in any order, sockets that come and go.
func TestDeliveryUnderConcurrency(t *testing.T) {
	o := newOffice(t)
	const destinations, each = 8, 60
	var wg sync.WaitGroup
	var finished atomic.Int64
	for d := range destinations {
		id := fmt.Sprint("d", d)
		wg.Go(func() {
			for i := range each {
				m := message(id, fmt.Sprint(i))
				m.MID = broker.NewMessageID(channelName, id, "")
				if _, err := o.store.Append(context.Background(), m, broker.AppendOptions{}); err != nil {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			acked := make(map[string]bool)
			for session := 0; len(acked) < each; session++ {
				if session > 500 {
					t.Errorf("%s: %d of %d acknowledged in 500 sessions", id, len(acked), each)
					return
				}
				consume(t, o, id, acked, each)
			}
			finished.Add(int64(len(acked)))
		})
	}
	wg.Wait()
	until(t, "all to be acknowledged", func() bool {
		u, err := o.store.Usage(context.Background())
		return err == nil && u[channelName].Pending == 0
	})
}

// consume acknowledges a few messages on a socket of its own and leaves.
func consume(t *testing.T, o *office, id string, acked map[string]bool, all int) {
	client, server := net.Pipe()
	p := serve(t, o.hub, o.e, client, server)
	defer func() {
		client.Close()
		<-p.end
	}()
	client.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := fmt.Fprintf(client, `{"op":"hello","v":1,"id":%q,"window":4}`+"\n", id); err != nil {
		return
	}
	for got := 0; got < 15 && len(acked) < all; {
		line, err := p.r.ReadBytes('\n')
		if err != nil {
			return
		}
		v := make(map[string]any)
		if err := json.Unmarshal(line, &v); err != nil {
			t.Errorf("got %q", line)
			return
		}
		if v["op"] != string(wire.OpMessage) {
			continue
		}
		if _, err := fmt.Fprintf(client, `{"op":"ack","mid":%q}`+"\n", v["mid"]); err != nil {
			return
		}
		acked[v["body"].(string)] = true
		got++
	}
}

// A publication, which others of the same channel may still get, is nothing for a socket with a mailbox: its answer would
// be taken for that to the message in flight.
func TestStoredSocketsGetNoPublications(t *testing.T) {
	o := newOffice(t)
	p := o.json("01", 4)
	if n := o.hub.Deliver(message("01", "published")); n != 0 {
		t.Errorf("%d took it", n)
	}
	o.publish("01", "stored")
	p.expect("stored")
}
