package caddyrelay

import (
	"context"
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/redisbroker"
)

const (
	// intakeLease is how long a node is in charge without saying so again. It says so, and publishes a mark,
	// every intakeTurn. So another one takes over within the sum of both.
	intakeLease = 3 * time.Second
	intakeTurn  = 500 * time.Millisecond

	// intakePatience is how long a node that missed publications leaves it to others, who may have heard
	// them, to take over.
	intakePatience = intakeLease + 2*intakeTurn

	// finishTimeout bounds the wait for what was heard to be stored, when a node stops taking in.
	finishTimeout = 2 * time.Second
)

// intake stores what other programs publish on the classic channel of an at_least_once channel. Every node has one, and
// hears; the one that has the lease stores. The others keep what they heard until they hear, by a mark, that
// it is stored, so that the next one in charge can store what the last one could not. Generations share it.
type intake struct {
	// Fixed by acquireIntakeLocked.
	node          *node
	broker        classicBroker
	key           intakeKey
	lease         *redisbroker.Lease
	counts        *classicCounts
	classic, news broker.Subscription
	kick          chan struct{} // turn now
	stopped       chan struct{} // closed by close
	loops         sync.WaitGroup

	// refs is guarded by node.mu.
	refs int

	// generation is the newest that has it; nil until one rules, and nothing is stored until then.
	generation atomic.Pointer[generation]

	mu       sync.Mutex
	heard    heardList
	lanes    [intakeLanes]intakeLane
	charge   bool      // this node stores
	missed   time.Time // when publications were missed last
	finished bool      // it stores no more, and takes no more
}

// intakeKey tells intakes apart.
type intakeKey struct {
	broker         broker.Broker
	channel, topic string
}

// marks names the channel of the marks.
func (i *intake) marks() string { return i.broker.OwnChannel("classic:" + i.key.channel) }

// err says why this node would not hear what is published now, or nil.
func (i *intake) err() error {
	if err := i.classic.Err(); err != nil {
		return err
	}
	return i.news.Err()
}

// classicSink hears the classic channel.
type classicSink struct{ *intake }

// Deliver implements [broker.Sink].
func (s classicSink) Deliver(_ string, p *broker.Publication) {
	i := s.intake
	m, err := p.Message()
	h := &heardOne{err: err, size: len(p.Payload()) + 256}
	if err == nil {
		own := *m // others hear the same one
		h.message = &own
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.heard.count()
	if p.Stored() || i.finished {
		return
	}
	for i.heard.full(h.size) {
		if i.charge {
			i.skip(unfitLate, errTooFast)
			return
		}
		i.heard.drop()
	}
	i.heard.add(h)
	if i.charge {
		i.queueLocked(h)
	}
}

// StateChanged implements [broker.Sink].
func (s classicSink) StateChanged(_ string, err error) { s.stateChanged(err) }

// markSink hears the marks.
type markSink struct{ *intake }

// StateChanged implements [broker.Sink].
func (s markSink) StateChanged(_ string, err error) { s.stateChanged(err) }

// mark is what the node in charge publishes. Its fields are a format that other nodes, of other versions, read.
type mark struct {
	Mark   string `json:"mark"`
	Stored string `json:"stored,omitempty"` // all before that mark is stored
	Free   bool   `json:"free,omitempty"`   // no mark: the lease was given up
}

// Deliver implements [broker.Sink].
func (s markSink) Deliver(_ string, p *broker.Publication) {
	var v mark
	i := s.intake
	if json.Unmarshal(p.Payload(), &v) != nil || v.Mark == "" {
		if v.Free {
			i.wake()
		}
		return
	}
	if i.classic.Err() != nil {
		return // others may have heard publications behind it that this node did not
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.heard.cut(v.Mark)
	if !i.charge {
		i.heard.forget(v.Stored)
	}
}

func (i *intake) stateChanged(err error) {
	if err != nil {
		i.mu.Lock()
		i.heard.cut("")
		i.missed = time.Now()
		i.mu.Unlock()
	}
	i.wake()
}

func (i *intake) wake() {
	select {
	case i.kick <- struct{}{}:
	default:
	}
}

// enable lets it store, as g rules.
func (i *intake) enable(g *generation) {
	i.generation.Store(g)
	i.wake()
}

// loop takes and renews the lease, and publishes marks.
func (i *intake) loop() {
	tick := time.NewTicker(intakeTurn)
	defer tick.Stop()
	for {
		select {
		case <-i.stopped:
			return
		case <-tick.C:
		case <-i.kick:
		}
		i.turn()
	}
}

func (i *intake) turn() {
	ctx, cancel := context.WithTimeout(context.Background(), intakeLease/2)
	defer cancel()
	if !i.mayStore() {
		i.yield(ctx)
		return
	}
	held, _ := i.lease.Take(ctx) // if it fails, the broker has said so
	i.setCharge(held)
	if held {
		i.publishMark(ctx)
	}
}

// mayStore reports whether this node may be in charge: one that hears nothing, or has missed something, had better
// leave it to others.
func (i *intake) mayStore() bool {
	if i.generation.Load() == nil || i.err() != nil {
		return false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return !i.finished && (i.missed.IsZero() || time.Since(i.missed) >= intakePatience)
}

// setCharge puts this node in charge or takes that back, and returns what was before.
func (i *intake) setCharge(charge bool) (before bool) {
	i.mu.Lock()
	before, i.charge = i.charge, charge && !i.finished
	now := i.charge
	if now && !before {
		i.queueAllLocked()
	}
	i.mu.Unlock()
	if now != before {
		text := "another node stores what is published on the classic channel, or none"
		if now {
			text = "this node stores what is published on the classic channel"
		}
		i.node.logger.Load().Info(text, zap.String("channel", i.key.channel), zap.String("redis_channel", i.key.topic))
	}
	return before
}

// yield gives the lease up, if this node is in charge.
func (i *intake) yield(ctx context.Context) {
	if !i.setCharge(false) {
		return
	}
	if err := i.lease.Release(ctx); err == nil { // otherwise it ends by itself
		i.publish(ctx, mark{Free: true})
	}
}

func (i *intake) publishMark(ctx context.Context) {
	i.mu.Lock()
	v := mark{Mark: broker.NewMID(), Stored: i.heard.stored()}
	i.mu.Unlock()
	i.publish(ctx, v)
}

func (i *intake) publish(ctx context.Context, v mark) {
	text, err := json.Marshal(v)
	if err != nil { // strings only: cannot happen
		panic(err)
	}
	// One that does not arrive is followed by another.
	_, _ = i.broker.Publish(ctx, i.marks(), broker.FromPayload(text))
}

// finish stops taking in: it waits, for a bounded time, until what was heard is stored, and leaves the rest to
// other nodes.
func (i *intake) finish() {
	i.mu.Lock()
	i.finished = true
	waits := i.charge
	i.mu.Unlock()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(finishTimeout); waits && time.Now().Before(deadline); <-tick.C {
		i.mu.Lock()
		waits = i.charge && len(i.heard.all) > 0
		i.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(context.Background(), intakeLease/2)
	defer cancel()
	i.yield(ctx)
}

// close ends it.
func (i *intake) close() {
	i.finish()
	close(i.stopped)
	i.loops.Wait()
	i.classic.Close()
	i.news.Close()
}
