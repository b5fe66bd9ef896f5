package hub

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
)

// shuffler is a store whose offers come late, in any order, twice, or never.
type shuffler struct {
	broker.Store
	mu   sync.Mutex
	held []func()
	lost int
}

func (s *shuffler) Attach(ctx context.Context, channel, id string, o broker.Owner, opts broker.AttachOptions) (broker.Mailbox, broker.Page, error) {
	return s.Store.Attach(ctx, channel, id, shuffled{o, s}, opts)
}

type shuffled struct {
	broker.Owner
	s *shuffler
}

func (o shuffled) Offer(prev uint64, e broker.Entry) {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	if rand.N(5) == 0 {
		o.s.lost++
		return
	}
	for range 1 + rand.N(2) {
		o.s.held = append(o.s.held, func() { o.Owner.Offer(prev, e) })
	}
}

// some makes some of the offers that are held, in any order.
func (s *shuffler) some() {
	s.mu.Lock()
	rand.Shuffle(len(s.held), func(i, j int) { s.held[i], s.held[j] = s.held[j], s.held[i] })
	n := rand.N(len(s.held) + 1)
	calls := s.held[:n:n]
	s.held = s.held[n:]
	s.mu.Unlock()
	for _, call := range calls {
		call()
	}
}

// I3: however late and shuffled messages are handed over, first pushes are in order, and none is left out.
func TestI3_ShuffledOffers(t *testing.T) {
	o := newOffice(t)
	s := &shuffler{Store: o.store}
	o.store = s
	p := o.json("01", 4)
	const count = 400
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range count {
			o.publish("01", fmt.Sprint(i))
			s.some()
		}
		for range 20 {
			s.some()
		}
	}()
	for i := range count {
		v := p.expect(fmt.Sprint(i))
		if attempt(v) != 1 {
			t.Errorf("message %d was pushed before: %v", i, v)
		}
		p.ack(mid(v))
	}
	<-done
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost == 0 {
		t.Error("no offer was lost: the test shows nothing")
	}
}

// reader counts what is read.
type reader struct {
	broker.Store
	mu    sync.Mutex
	reads int
}

func (s *reader) Attach(ctx context.Context, channel, id string, o broker.Owner, opts broker.AttachOptions) (broker.Mailbox, broker.Page, error) {
	box, page, err := s.Store.Attach(ctx, channel, id, o, opts)
	return countedBox{box, s}, page, err
}

type countedBox struct {
	broker.Mailbox
	s *reader
}

func (b countedBox) Read(ctx context.Context, after uint64, limit, bytes int) (broker.Page, error) {
	b.s.mu.Lock()
	b.s.reads++
	b.s.mu.Unlock()
	return b.Mailbox.Read(ctx, after, limit, bytes)
}

func (s *reader) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads
}

// What is handed over is not read, and what waits is read by the page: the mailbox costs no question for each message.
func TestOffersSaveReading(t *testing.T) {
	o := newOffice(t)
	s := &reader{Store: o.store}
	o.store = s
	p := o.json("01", 8)
	for i := range 50 {
		o.publish("01", fmt.Sprint(i))
		p.ack(mid(p.expect(fmt.Sprint(i))))
	}
	if n := s.count(); n > 0 {
		t.Errorf("%d reads for 50 messages that were handed over", n)
	}
	for i := range 200 {
		o.publish("01", fmt.Sprint(i))
	}
	for i := range 200 {
		p.ack(mid(p.expect(fmt.Sprint(i))))
	}
	if n := s.count(); n > 60 {
		t.Errorf("%d reads for a backlog of 200, with window 8", n)
	}
}

// I4: without a lease no message is pushed, though the socket stays, and with one again it is.
func TestI4_NoWriteWithoutLease(t *testing.T) {
	o := newOffice(t)
	m := o.store.(*brokertest.Memory)
	p := o.json("01", 8)
	m.Unlease(true)
	o.publish("01", "a")
	p.quiet(50 * time.Millisecond)
	m.Unlease(false)
	v := p.expect("a")
	if attempt(v) != 1 {
		t.Errorf("%v", v)
	}
	p.ack(mid(v))
	o.record(mid(v), broker.StateAcked)
}

// I4: so it is for messages that were queued when there still was one.
func TestI4_NoWriteOfQueuedWithoutLease(t *testing.T) {
	f := flight{phase: queued, entry: broker.Entry{Retain: time.Now().Add(time.Hour)}}
	now := time.Now()
	if f.begin(now, now, false) || f.phase != waiting || f.pushedHere {
		t.Errorf("a write began without a lease: %+v", f)
	}
	f.phase = queued
	if !f.begin(now, now, true) {
		t.Error("no write began with one")
	}
}
