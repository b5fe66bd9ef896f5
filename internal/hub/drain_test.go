package hub

import (
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// An ack that comes after the goodbye counts: the message is not pushed again. Nothing new is pushed meanwhile.
func TestAckAfterGoodbye(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		p := o.json("01", 4)
		a, b := o.publish("01", "a"), o.publish("01", "b")
		p.expect("a", "b")
		done := make(chan struct{})
		go func() { o.hub.Drain(t.Context(), 0, 0); close(done) }()
		if v := p.object(); v["op"] != "goodbye" || v["code"] != "shutdown" || v["reconnect"] != true {
			t.Fatalf("got %v", v)
		}
		c := o.publish("01", "c")
		time.Sleep(3 * time.Second) //nolint:forbidigo // the bubble's clock: the client is at work
		p.ack(a)
		p.ack(b)
		<-done
		for _, mid := range []string{a, b} {
			if rec, err := o.store.Lookup(context.Background(), mid); err != nil || rec.State != broker.StateAcked || rec.Attempts != 1 {
				t.Errorf("%+v, %v", rec, err)
			}
		}
		if rec, _ := o.store.Lookup(context.Background(), c); rec.State != broker.StateStored || rec.Attempts != 0 {
			t.Errorf("the one that came later: %+v", rec)
		}
		if text, _ := io.ReadAll(p.r); len(text) > 0 {
			t.Errorf("after the goodbye came %q", text)
		}
		<-p.end
	})
}

// The wait for acks ends when the client does, when it is over, and when another socket has the destination.
func TestGoodbyeIsBounded(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(o *office, p *peer)
		most time.Duration
	}{
		{"the client closes", func(_ *office, p *peer) { p.conn.Close() }, 0},
		{"the client says goodbye", func(_ *office, p *peer) { p.send(`{"op":"goodbye"}` + "\n") }, 0},
		{"the client does nothing", func(*office, *peer) {}, lateAcks},
		{"another socket registers", func(o *office, _ *peer) { o.hub.draining.Store(false); o.json("01", 4) }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o := newOffice(t)
				p := o.json("01", 4)
				a := o.publish("01", "a")
				p.expect("a")
				o.hub.Dismiss(ListenerRemoved, 0, func(*Session) bool { return true })
				p.object()
				began := time.Now()
				c.do(o, p)
				for gone := false; !gone; {
					rec, err := o.store.Lookup(context.Background(), a)
					if err != nil {
						t.Fatal(err)
					}
					gone = rec.State == broker.StateStored || c.name == "another socket registers" && rec.Attempts == 2
					if took := time.Since(began); took > c.most+time.Second {
						t.Fatalf("it was held for %s", took)
					}
					time.Sleep(10 * time.Millisecond) //nolint:forbidigo // the bubble's clock
				}
				p.conn.Close()
				<-p.end
			})
		})
	}
}

// A plain peer finishes what it is busy with, and sees the end of the stream then.
func TestPlainFinishesBeforeTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.e.Ack = AckLine
		p := o.plain("01")
		a, b := o.publish("01", "a"), o.publish("01", "b")
		if got := p.line(); got != "a" {
			t.Fatalf("got %q", got)
		}
		done := make(chan struct{})
		go func() { o.hub.Drain(context.Background(), 0, 0); close(done) }()
		synctest.Wait()
		p.send("OK\n")
		if rest := p.eof(); rest != "" {
			t.Errorf("got %q", rest)
		}
		p.over()
		<-done
		if rec, _ := o.store.Lookup(context.Background(), a); rec.State != broker.StateAcked {
			t.Errorf("%+v", rec)
		}
		if rec, _ := o.store.Lookup(context.Background(), b); rec.State != broker.StateStored || rec.Attempts != 0 {
			t.Errorf("%+v", rec)
		}
	})
}

// A drain tells so many a second, and can be taken back.
func TestDrainAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		for _, id := range []string{"01", "02", "03", "04", "05", "06", "07", "08", "09", "10"} {
			p := o.json(id, 4)
			go func() { _, _ = io.Copy(io.Discard, p.r); p.conn.Close() }()
		}
		o.hub.Empty(2, 0)
		time.Sleep(2100 * time.Millisecond) //nolint:forbidigo // the bubble's clock
		if n := o.hub.Stats(channelName).Channels[channelName].Sessions; n < 5 || n > 7 {
			t.Errorf("%d are left of 10 after 2 s at 2 a second", n)
		}
		if draining, left := o.hub.Draining(); !draining || left > 7 {
			t.Errorf("draining %v, %d left", draining, left)
		}
		if _, v := o.hello("11"); v["op"] != "error" || v["code"] != 503.0 {
			t.Errorf("a new socket was told %v", v)
		}
		o.hub.Refill()
		before := o.hub.Stats(channelName).Channels[channelName].Sessions
		time.Sleep(5 * time.Second) //nolint:forbidigo // the bubble's clock
		if n := o.hub.Stats(channelName).Channels[channelName].Sessions; n != before {
			t.Errorf("%d are left of %d after it was taken back", n, before)
		}
		o.json("11", 4)
	})
}
