package brokertest

import (
	"context"
	"fmt"
	"sync"

	"github.com/caddyrelay/relay/broker"
)

// Method names a method of a [broker.Store] or [broker.Mailbox] that a [Plan] can let fail.
type Method string

// The methods.
const (
	MethodPublish     Method = "Publish"
	MethodAppend      Method = "Append"
	MethodAttach      Method = "Attach"
	MethodLookup      Method = "Lookup"
	MethodFind        Method = "Find"
	MethodContent     Method = "Content"
	MethodAwait       Method = "Await"
	MethodCancel      Method = "Cancel"
	MethodDeadLetters Method = "DeadLetters"
	MethodResend      Method = "Resend"
	MethodDrop        Method = "Drop"
	MethodUsage       Method = "Usage"
	MethodOnline      Method = "Online"
	MethodPresence    Method = "Presence"
	MethodLeave       Method = "Leave"
	MethodRead        Method = "Mailbox.Read"
	MethodSettle      Method = "Mailbox.Settle"
	MethodDetach      Method = "Mailbox.Detach"
)

// Plan says which calls of a [Faulty] store fail, and how. The zero Plan lets all succeed. It is safe for concurrent use
// and can be changed at any time.
type Plan struct {
	mu      sync.Mutex
	counts  map[Method]int
	planned map[Method]map[int]mishap
	outage  error
	mute    bool
}

// mishap is what is planned for one call.
type mishap struct {
	err   error // instead of doing it
	lose  bool  // the answer
	stall *Stall
}

// Fail lets the nth call of method from now on, 1 being the next, return err and do nothing.
func (p *Plan) Fail(method Method, nth int, err error) { p.plan(method, nth, mishap{err: err}) }

// LoseAnswer lets the nth call of method from now on do what it should, and return an error that wraps
// [broker.ErrUnavailable] all the same.
func (p *Plan) LoseAnswer(method Method, nth int) { p.plan(method, nth, mishap{lose: true}) }

// Stall lets the nth call of method from now on wait before it does anything, until it is released. If its context ends
// first, it does nothing and returns an error that wraps [broker.ErrUnavailable].
func (p *Plan) Stall(method Method, nth int) *Stall {
	s := &Stall{reached: make(chan struct{}), released: make(chan struct{})}
	p.plan(method, nth, mishap{stall: s})
	return s
}

// Outage lets all calls fail with err and do nothing, until it is nil. An err that is no error of package broker should
// wrap [broker.ErrUnavailable].
func (p *Plan) Outage(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.outage = err
}

// Mute keeps rings from owners that attached through the store, while it is on.
func (p *Plan) Mute(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = on
}

// Calls returns how often method was called so far.
func (p *Plan) Calls(method Method) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[method]
}

func (p *Plan) plan(method Method, nth int, m mishap) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.planned == nil {
		p.planned = make(map[Method]map[int]mishap)
	}
	if p.planned[method] == nil {
		p.planned[method] = make(map[int]mishap)
	}
	p.planned[method][p.counts[method]+nth] = m
}

// Stall is a call that is told to wait.
type Stall struct {
	reached, released chan struct{}
	once              sync.Once
}

// Reached is closed when the call has come.
func (s *Stall) Reached() <-chan struct{} { return s.reached }

// Release lets the call go on. A second Release does nothing.
func (s *Stall) Release() { s.once.Do(func() { close(s.released) }) }

// enter counts a call and does what is planned for before it. If err is nil the call is to be made, and if lost is
// not, that is all that the caller hears of it.
func (p *Plan) enter(ctx context.Context, method Method) (lost, err error) {
	p.mu.Lock()
	if p.counts == nil {
		p.counts = make(map[Method]int)
	}
	p.counts[method]++
	n := p.counts[method]
	m := p.planned[method][n]
	delete(p.planned[method], n)
	outage := p.outage
	p.mu.Unlock()
	if m.stall != nil {
		close(m.stall.reached)
		select {
		case <-m.stall.released:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %s call %d stalled: %w", broker.ErrUnavailable, method, n, ctx.Err())
		}
	}
	if m.err == nil {
		m.err = outage
	}
	if m.err != nil {
		return nil, fmt.Errorf("%s call %d: %w", method, n, m.err)
	}
	if m.lose {
		return fmt.Errorf("%w: the answer to %s call %d was lost", broker.ErrUnavailable, method, n), nil
	}
	return nil, nil
}

func (p *Plan) muted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mute
}

// around makes one call.
func around[T any](ctx context.Context, p *Plan, method Method, call func() (T, error)) (T, error) {
	var nothing T
	lost, err := p.enter(ctx, method)
	if err != nil {
		return nothing, err
	}
	v, err := call()
	if lost != nil {
		return nothing, lost
	}
	return v, err
}
