package brokertest

import (
	"errors"
	"flag"
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/caddyrelay/relay/broker"
)

// Properties has rapid draw sequences of calls, and compares the store with a plain model of it after each. How many
// it draws is said by -rapid.checks; the default is for a run of seconds.
func Properties(t testing.TB, h StoreHarness) {
	if f := flag.Lookup("rapid.checks"); f != nil && f.Value.String() == f.DefValue {
		_ = flag.Set("rapid.checks", "25")
	}
	w := &propertyWorld{h: h, b: h.Backend(t)}
	w.handles = make([]broker.Store, 1)
	if h.Nodes {
		w.handles = make([]broker.Store, 2)
	}
	for i := range w.handles {
		w.handles[i] = w.b.Open()
	}
	defer func() {
		for _, s := range w.handles {
			_ = s.Close()
		}
	}()
	rapid.Check(t, w.check)
}

// propertyWorld is one store for all sequences: each has a channel of its own, as opening a store is slow.
type propertyWorld struct {
	h         StoreHarness
	b         StoreBackend
	handles   []broker.Store
	sequences int
}

// sequence is one drawn sequence of calls, and the model of what they did.
type sequence struct {
	*model
	w       *propertyWorld
	channel string
	passed  int // times that time passed
}

// propertyLimit is how many messages a mailbox holds: few, so that it is full now and then.
const propertyLimit = 4

func (w *propertyWorld) check(t *rapid.T) {
	w.sequences++
	s := &sequence{model: newModel(), w: w, channel: fmt.Sprint("p", w.sequences)}
	for i := range w.handles {
		s.prepare(t, i)
	}
	t.Repeat(map[string]func(*rapid.T){
		"append": s.append, "append again": s.append, "append more": s.append,
		"attach": s.attach, "read": s.read, "settle": s.settle, "settle more": s.settle, "detach": s.detach,
		"cancel": s.cancel, "resend": s.resend, "drop": s.drop, "time passes": s.timePasses, "crash": s.crash,
	})
	s.compareAll(t)
}

// prepare tells a handle the sequence's policy, and waits until it can be used.
func (s *sequence) prepare(t *rapid.T, i int) {
	s.w.handles[i].SetPolicies(map[string]broker.Policy{s.channel: {MaxPending: propertyLimit, AllowVolatile: s.w.h.Volatile}})
	var err error
	ready := s.until(func() bool {
		_, err = s.w.handles[i].Usage(t.Context())
		return err == nil || !errors.Is(err, broker.ErrUnavailable)
	})
	if !ready || err != nil {
		t.Fatalf("opening: %v", err)
	}
}

// until waits for a condition, and reports whether it came.
func (s *sequence) until(ok func() bool) bool {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

func (s *sequence) handle(t *rapid.T) (broker.Store, int) {
	i := rapid.IntRange(0, len(s.w.handles)-1).Draw(t, "node")
	return s.w.handles[i], i
}

func (s *sequence) anyBox(t *rapid.T) *modelBox {
	return s.box(rapid.SampledFrom([]string{"01", "02"}).Draw(t, "id"))
}
