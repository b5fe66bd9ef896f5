package brokertest

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/caddyrelay/relay/broker"
)

// propertyChecks is how many sequences are drawn if nobody says how many: for a run of seconds.
const propertyChecks = "25"

// Properties has rapid draw sequences of calls, and compares the store with a plain model of it after each call, a
// part of it drawn, and all of it at the end. How many sequences it draws is said by -rapid.checks; the default is 25.
//
// Where the contract leaves a choice to the store, the model allows any, and goes on with what the store chose.
func Properties(t testing.TB, h StoreHarness) {
	said := false
	flag.Visit(func(f *flag.Flag) { said = said || f.Name == "rapid.checks" })
	if f := flag.Lookup("rapid.checks"); !said && f.Value.String() == f.DefValue {
		_ = f.Value.Set(propertyChecks)
		defer func() { _ = f.Value.Set(f.DefValue) }()
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
	w             *propertyWorld
	channel       string
	minutes, days int // how often time passed
	waits, ended  int // how often something was due then, and handles that ended
}

// check is one sequence.
func (w *propertyWorld) check(t *rapid.T) {
	w.sequences++
	dedupe := rapid.SampledFrom([]time.Duration{96 * time.Hour, 30 * time.Minute}).Draw(t, "dedupe")
	s := &sequence{model: newModel(dedupe), w: w, channel: fmt.Sprint("p", w.sequences)}
	for i := range w.handles {
		s.prepare(t, i)
	}
	t.Repeat(map[string]func(*rapid.T){
		"append": s.append, "append again": s.append, "append more": s.append, "repeat": s.repeat,
		"attach": s.attach, "read": s.read, "settle": s.settle, "settle more": s.settle, "detach": s.detach,
		"cancel": s.cancel, "resend": s.resend, "drop": s.drop, "time passes": s.timePasses, "crash": s.crash,
		"": s.compareSome,
	})
	s.compareAll(t)
}

// prepare tells a handle the sequence's policy, and waits until it can be used.
func (s *sequence) prepare(t *rapid.T, i int) {
	s.w.handles[i].SetPolicies(map[string]broker.Policy{
		s.channel: {MaxPending: propertyLimit, Dedupe: s.dedupe, AllowVolatile: s.w.h.Volatile},
	})
	s.until(t, func() error {
		_, err := s.w.handles[i].Lookup(t.Context(), broker.NewMessageID(s.channel, "nobody", ""))
		if errors.Is(err, broker.ErrNotFound) {
			return nil
		}
		return fmt.Errorf("the store cannot be used: %w", err)
	})
}

// until waits until nothing is wrong any more.
func (s *sequence) until(t *rapid.T, wrong func() error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := wrong()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %v", err)
		}
	}
}

// handle draws a node.
func (s *sequence) handle(t *rapid.T) (broker.Store, int) {
	i := rapid.IntRange(0, len(s.w.handles)-1).Draw(t, "node")
	return s.w.handles[i], i
}

// anyBox draws a destination.
func (s *sequence) anyBox(t *rapid.T) *modelBox {
	return s.box(rapid.SampledFrom([]string{"01", "02"}).Draw(t, "id"))
}

// timePasses ends what is due then, and nothing else.
func (s *sequence) timePasses(t *rapid.T) {
	if s.w.b.Advance == nil {
		t.Skip("time cannot be moved")
	}
	d := propertyMinutes
	if rapid.IntRange(0, 4).Draw(t, "days") == 0 {
		d = propertyDays
	}
	// The sums stay minutes apart from all that the policies say.
	if d == propertyMinutes && s.minutes == 3 || d == propertyDays && s.days == 3 {
		t.Skip("that was often enough")
	}
	if s.waits == 2 && slices.ContainsFunc(s.all, func(m *modelMessage) bool { return m.over(s.clock + d) }) {
		t.Skip("the sweeper is slow")
	}
	if d == propertyDays {
		s.days++
	} else {
		s.minutes++
	}
	s.clock += d
	s.w.b.Advance(d)
	over := s.due()
	if len(over) > 0 {
		s.waits++
	}
	for _, m := range over {
		s.until(t, func() error {
			r, err := s.w.handles[0].Lookup(t.Context(), m.mid)
			if err != nil || r.State != m.state {
				return fmt.Errorf("the record is %+v, %w; want %+v", r, err, m)
			}
			return nil
		})
	}
}

// crash ends a node, and begins another one in its place.
func (s *sequence) crash(t *rapid.T) {
	store, node := s.handle(t)
	if s.w.b.Crash != nil {
		s.w.b.Crash(store)
	}
	_ = store.Close()
	s.ended++
	s.crashed(store)
	s.w.handles[node] = s.w.b.Open()
	s.prepare(t, node)
}
