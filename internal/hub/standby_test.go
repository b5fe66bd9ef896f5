package hub

import (
	"fmt"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
)

// hello connects a client that speaks JSON, and returns it with what it was told first.
func (o *office) hello(id string) (*peer, map[string]any) {
	o.t.Helper()
	p := dial(o.t, o.hub, o.e)
	p.send(fmt.Sprintf(`{"op":"hello","v":1,"id":%q,"heartbeat":240}`+"\n", id))
	return p, p.object()
}

// I4: with reject, the first socket stays, and a later one is told what to do.
func TestI4_Reject(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.how.Mode = broker.Reject
		first := o.json("01", 4)
		second, v := o.hello("01")
		if v["op"] != "error" || v["code"] != 409.0 || v["temporary"] != true {
			t.Errorf("the second was told %v", v)
		}
		if end := second.over(); end.Reason != IDTaken {
			t.Errorf("end: %+v", end)
		}
		o.publish("01", "a")
		first.ack(mid(first.expect("a")))
		first.over()
		o.json("01", 4).over()
	})
}

// The oldest standby is promoted when the active socket ends, and gets what was not acknowledged.
func TestStandbyIsPromoted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.how.Mode = broker.Standby
		promoted := 0
		o.hub.OnPromote = func(string, string) { promoted++ }
		first := o.json("01", 4)
		second, v := o.hello("01")
		if v["op"] != "welcome" || v["standby"] != true || v["fence"] != nil {
			t.Fatalf("the second was told %v", v)
		}
		third, _ := o.hello("01")
		a := o.publish("01", "a")
		first.expect("a")
		second.quiet(5 * time.Second)
		first.over()
		if v := second.object(); v["op"] != "welcome" || v["standby"] != nil || v["fence"] == nil {
			t.Errorf("the second was told %v", v)
		}
		if v := second.expect("a"); attempt(v) != 2 {
			t.Errorf("%v", v)
		}
		second.ack(a)
		o.record(a, broker.StateAcked)
		third.quiet(5 * time.Second)
		second.over()
		third.object()
		b := o.publish("01", "b")
		third.ack(mid(third.expect("b")))
		o.record(b, broker.StateAcked)
		third.over()
		if promoted != 2 {
			t.Errorf("%d promotions were told", promoted)
		}
	})
}

// A standby that leaves keeps nobody waiting.
func TestStandbyLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.how.Mode = broker.Standby
		first := o.json("01", 4)
		second, _ := o.hello("01")
		third, _ := o.hello("01")
		second.over()
		first.over()
		if v := third.object(); v["op"] != "welcome" || v["standby"] != nil {
			t.Errorf("the third was told %v", v)
		}
		third.over()
	})
}

// I8: a reload that brings another store takes the line along.
func TestI8_StandbyAtAnotherStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		o.how.Mode = broker.Standby
		first := o.json("01", 4)
		second, _ := o.hello("01")
		var next broker.Store = brokertest.NewMemory(brokertest.MemoryOptions{})
		defer next.Close()
		o.moved.Store(&next)
		o.hub.Reattach()
		synctest.Wait()
		_ = o.store.Close()
		synctest.Wait()
		elsewhere := &office{t: t, store: next}
		elsewhere.publish("01", "a")
		// Which of the two came first at the new store is not said; the other one is in line there.
		active, waiting := first, second
		if sessions := o.hub.channel(channelName).sessions["01"]; sessions[0].Standing() {
			active, waiting = second, first
			active.object()
		} else if !sessions[1].Standing() {
			t.Fatal("both have the destination")
		}
		active.ack(mid(active.expect("a")))
		active.over()
		waiting.object()
		elsewhere.publish("01", "b")
		waiting.expect("b")
		waiting.over()
	})
}

// halfPipe can say that nothing more is written.
type halfPipe struct{ net.Conn }

func (halfPipe) CloseWrite() error { return nil }

// rival connects a client that registers under an ID as one that fights for it, and waits until the one before has obeyed, if it
// is one that does.
func (o *office) rival(id string, before *peer, obeys bool) *peer {
	o.t.Helper()
	client, server := net.Pipe()
	p := serve(o.t, o.hub, o.e, client, halfPipe{server})
	p.send(fmt.Sprintf(`{"op":"hello","v":1,"id":%q,"heartbeat":240}`+"\n", id))
	if v := p.object(); v["op"] != "welcome" {
		o.t.Fatalf("got %v", v)
	}
	if before == nil {
		return p
	}
	if v := before.object(); v["code"] != "taken_over" {
		o.t.Fatalf("the one before got %v", v)
	}
	if obeys {
		before.conn.Close()
	}
	<-before.end
	return p
}

// Two clients that take an ID from each other are slowed down and reported; others are not.
func TestFightIsSlowedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		var waits []time.Duration
		o.hub.OnFight = func(_, _ string, wait time.Duration) { waits = append(waits, wait) }
		o.json("02", 4)
		began := time.Now()
		var p *peer
		for range 12 {
			p = o.rival("01", p, true)
		}
		if took := time.Since(began); took < 15*time.Second {
			t.Errorf("12 take-overs took %s", took)
		}
		if len(waits) < 8 || waits[0] != fightMin || waits[len(waits)-1] != fightMax {
			t.Errorf("reported: %v", waits)
		}
		began = time.Now()
		o.json("02", 4)
		if took := time.Since(began); took > time.Second {
			t.Errorf("another ID waited for %s", took)
		}
		time.Sleep(2 * fightMemory) //nolint:forbidigo // the bubble's clock
		began = time.Now()
		o.rival("01", p, true)
		if took := time.Since(began); took > time.Second {
			t.Errorf("long after the fight it took %s", took)
		}
		if n := o.hub.Stats(channelName).Channels[channelName].Fights; n != uint64(len(waits)) {
			t.Errorf("%d are counted, %d reported", n, len(waits))
		}
	})
}

// A client that vanishes without a word again and again, and comes back on a new socket, does not wait for itself.
func TestVanishingIsNoFight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		var p *peer
		for range 12 {
			p = o.rival("01", p, false)
		}
		if n := o.hub.Stats(channelName).Channels[channelName].Fights; n > 0 {
			t.Errorf("%d registrations had to wait", n)
		}
	})
}

// Whoever gives up while it waits takes nothing over.
func TestFightIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		var last *peer
		for range 10 {
			last = o.rival("01", last, true)
		}
		p := dial(t, o.hub, o.e)
		p.send(`{"op":"hello","v":1,"id":"01"}` + "\n")
		synctest.Wait()
		p.conn.Close()
		if end := p.over(); end.Registered {
			t.Errorf("end: %+v", end)
		}
		o.publish("01", "a")
		last.expect("a")
	})
}
