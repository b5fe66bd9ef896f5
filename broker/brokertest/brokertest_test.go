package brokertest

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/caddyrelay/relay/broker"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A broker without a fault passes.
func TestSoundBroker(t *testing.T) {
	Run(t, Harness{Nodes: true, Outages: true, Backend: func(testing.TB) Backend { return newServer(none).backend() }})
}

// Each check that is named here fails for a broker with the fault.
func TestFaultsAreFound(t *testing.T) {
	defer func(d time.Duration) { patience = d }(patience)
	patience = 500 * time.Millisecond
	for _, c := range []struct {
		fault fault
		check string
	}{
		{reorders, "I3_OrderOfEachCaller"},
		{losesOnClose, "I8_CloseDeliversWhatWasAccepted"},
		{firesAfterClose, "NothingBeginsAfterClose"},
		{firesAfterClose, "SinkChangesSubscriptions"},
		{callsAtOnce, "I3_OrderOfEachCaller"},
		{mixesChannels, "ChannelsAreApart"},
		{changesBytes, "PayloadIsUnchanged"},
		{changesBytes, "MessageComesBack"},
		{diesWithSink, "I11_PanickingSink"},
		{hearsItselfOnly, "NodesHearEachOther"},
		{ignoresContext, "CancelledContext"},
		{ignoresClose, "ClosedBroker"},
		{tellsTwice, "I9_Outage"},
		{tellsNothing, "AbsentAtStart"},
		{acceptsWhileDown, "I9_Outage"},
		{tellsOldOnly, "SubscribedDuringAnOutage"},
	} {
		t.Run(fmt.Sprintf("%s/%s", c.fault, c.check), func(t *testing.T) {
			v := judge(t, c.check, newServer(c.fault).backend())
			if len(v.failures) == 0 {
				t.Fatal("the check passed")
			}
			t.Log(v.failures[0])
		})
	}
}

// verdict is the testing.TB of a check that is expected to fail.
type verdict struct {
	testing.TB
	mu       sync.Mutex
	failures []string
	cleanups []func()
}

func judge(t *testing.T, name string, b Backend) *verdict {
	v := &verdict{TB: t}
	for _, c := range checks {
		if c.name != name {
			continue
		}
		done := make(chan struct{})
		go func() { // Fatalf ends it
			defer close(done)
			c.perform(v, b)
		}()
		<-done
		v.cleanUp()
		return v
	}
	t.Fatalf("there is no check %s", name)
	return nil
}

func (v *verdict) Helper() {}

func (v *verdict) Cleanup(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cleanups = append(v.cleanups, f)
}

// cleanUp makes the calls, last first. A goroutine of a check that has failed may still add some.
func (v *verdict) cleanUp() {
	for {
		v.mu.Lock()
		last := len(v.cleanups) - 1
		if last < 0 {
			v.mu.Unlock()
			return
		}
		f := v.cleanups[last]
		v.cleanups = v.cleanups[:last]
		v.mu.Unlock()
		f()
	}
}

func (v *verdict) Errorf(format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.failures = append(v.failures, fmt.Sprintf(format, args...))
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.Errorf(format, args...)
	runtime.Goexit()
}

// fault is what is wrong with a broker.
type fault string

const (
	none             fault = "none"
	reorders         fault = "reorders"
	losesOnClose     fault = "loses on close"
	firesAfterClose  fault = "fires after close"
	callsAtOnce      fault = "calls at once"
	mixesChannels    fault = "mixes channels"
	changesBytes     fault = "changes bytes"
	diesWithSink     fault = "dies with a sink"
	hearsItselfOnly  fault = "hears itself only"
	ignoresContext   fault = "ignores the context"
	ignoresClose     fault = "ignores Close"
	tellsTwice       fault = "tells twice"
	tellsNothing     fault = "tells nothing"
	acceptsWhileDown fault = "accepts while down"
	tellsOldOnly     fault = "does not tell new subscriptions"
)

// server is a backend in memory, with a fault.
type server struct {
	fault fault

	calling sync.Mutex // held while sinks are called

	mu   sync.Mutex
	subs []*subscription
	down bool
	dead bool
	kept map[*subscription]func() // what reorders holds back
}

func newServer(f fault) *server { return &server{fault: f, kept: make(map[*subscription]func())} }

func (s *server) backend() Backend {
	return Backend{
		Open:  func() broker.Broker { return &node{server: s, late: make(chan func(), 1<<16)} },
		Stop:  func() { s.set(true) },
		Start: func() { s.set(false) },
	}
}

// set begins or ends an outage.
func (s *server) set(down bool) {
	s.calling.Lock()
	defer s.calling.Unlock()
	s.mu.Lock()
	s.down = down
	subs := s.subs
	s.mu.Unlock()
	for _, sub := range subs {
		sub.tell(down)
		if s.fault == tellsTwice {
			sub.tell(down)
		}
	}
}

// node is one node's broker.
type node struct {
	server     *server
	publishing sync.WaitGroup
	closed     bool // guarded by server.mu

	once sync.Once
	late chan func() // deliveries of losesOnClose
}

func (n *node) Publish(ctx context.Context, channel string, p *broker.Publication) (broker.Published, error) {
	s := n.server
	if err := ctx.Err(); err != nil && s.fault != ignoresContext {
		return broker.Published{}, fmt.Errorf("%w: %w: %w", broker.ErrRefused, broker.ErrUnavailable, err)
	}
	s.mu.Lock()
	if n.closed {
		s.mu.Unlock()
		return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
	}
	if s.down && s.fault != acceptsWhileDown {
		s.mu.Unlock()
		return broker.Published{}, fmt.Errorf("%w: stopped", broker.ErrUnavailable)
	}
	n.publishing.Add(1)
	s.mu.Unlock()
	defer n.publishing.Done()
	if s.fault == callsAtOnce {
		n.deliver(channel, p)
		return broker.Published{}, nil
	}
	s.calling.Lock()
	defer s.calling.Unlock()
	n.deliver(channel, p)
	return broker.Published{}, nil
}

func (n *node) deliver(channel string, p *broker.Publication) {
	s := n.server
	if s.fault == changesBytes {
		p = broker.FromPayload([]byte(strings.ReplaceAll(string(p.Payload()), "<", `\u003c`)))
	}
	s.mu.Lock()
	subs := s.subs
	s.mu.Unlock()
	for _, sub := range subs {
		if s.fault == hearsItselfOnly && sub.node != n || s.fault != mixesChannels && sub.channel != channel {
			continue
		}
		call := func() { sub.deliver(channel, p) }
		switch s.fault {
		case losesOnClose:
			n.once.Do(func() {
				go func() {
					for f := range n.late {
						f()
					}
				}()
			})
			n.late <- call
		case reorders:
			s.reorder(sub, call)
		default:
			call()
		}
	}
}

// reorder calls in pairs, the second first.
func (s *server) reorder(sub *subscription, call func()) {
	if before := s.kept[sub]; before != nil {
		s.kept[sub] = nil
		call()
		before()
	} else {
		s.kept[sub] = call
	}
}

func (n *node) Subscribe(channel string, sink broker.Sink) (broker.Subscription, error) {
	s := n.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.closed {
		return nil, broker.ErrClosed
	}
	sub := &subscription{node: n, channel: channel, sink: sink}
	s.subs = append(s.subs[:len(s.subs):len(s.subs)], sub)
	if s.down && s.fault != tellsOldOnly {
		sub.tell(true)
	}
	return sub, nil
}

func (n *node) Close() error {
	s := n.server
	if s.fault == ignoresClose {
		return nil
	}
	s.mu.Lock()
	closed := n.closed
	n.closed = true
	s.mu.Unlock()
	n.publishing.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sub := range s.subs {
		if sub.node == n {
			sub.closed = true
		}
	}
	if !closed {
		close(n.late)
	}
	return nil
}

type subscription struct {
	node    *node
	channel string
	sink    broker.Sink
	closed  bool // guarded by server.mu
	told    bool // of a failure that is not over
}

func (sub *subscription) deliver(channel string, p *broker.Publication) {
	s := sub.node.server
	s.mu.Lock()
	silent := sub.closed && s.fault != firesAfterClose || s.dead
	s.mu.Unlock()
	if silent {
		return
	}
	defer func() {
		if recover() != nil && s.fault == diesWithSink {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.dead = true
		}
	}()
	sub.sink.Deliver(channel, p)
}

func (sub *subscription) tell(down bool) {
	f := sub.node.server.fault
	if f == tellsNothing || sub.told == down && f != tellsTwice {
		return
	}
	sub.told = down
	var err error
	if down {
		err = broker.ErrUnavailable
	}
	sub.sink.StateChanged(sub.channel, err)
}

func (sub *subscription) Err() error {
	s := sub.node.server
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case sub.closed:
		return broker.ErrClosed
	case s.down:
		return broker.ErrUnavailable
	}
	return nil
}

func (sub *subscription) Close() {
	s := sub.node.server
	s.mu.Lock()
	defer s.mu.Unlock()
	sub.closed = true
}
