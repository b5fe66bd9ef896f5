package brokertest

import (
	"context"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// MemoryOptions are the settings of a [Memory]. Zero values take the defaults.
type MemoryOptions struct {
	// Node is the name of the node. Default "memory-1", and so on.
	Node string

	// Clock is the store's clock; it may go back, the store's does not. Default time.Now.
	Clock func() time.Time

	// Interval is how often deadlines are seen to and owners are rung whose notice was lost. An entry with an
	// owner is left alone for two intervals after its deadline. Default 1 s.
	Interval time.Duration

	// Durability is what appends name. Default [broker.Memory].
	Durability broker.Durability
}

// Memory is one node's handle on a store in memory: simple, correct, and for tests only. Everything happens under one
// mutex. The contents outlive the handle, see [Memory.Another] and [Memory.Crash].
type Memory struct {
	*world
	o    MemoryOptions
	bell *bell

	unleased atomic.Bool // see Unlease

	closing chan struct{} // closed by Close and Crash
	ended   error         // guarded by world.mu: why the handle takes nothing more

	held     []*attachment            // guarded by world.mu: those of this node that may still be owners
	policies map[string]broker.Policy // guarded by world.mu
	endings  map[broker.Ending]uint64 // guarded by world.mu
}

// world is what the handles have in common.
type world struct {
	bus bus

	mu      sync.Mutex
	nodes   []*Memory // open ones
	opened  int
	down    bool
	mute    bool
	last    time.Time // what the clock has shown
	highest uint64    // of sequences and fences
	boxes   map[address]*box
	records map[string]*record  // by MID
	keys    map[keyed]string    // MID that used the key
	dead    map[string][]*entry // by channel, oldest first
}

type address struct{ channel, id string }

type keyed struct {
	address
	key string
}

// NewMemory returns the first handle on an empty store. Close it.
func NewMemory(o MemoryOptions) *Memory {
	w := &world{boxes: make(map[address]*box), records: make(map[string]*record), keys: make(map[keyed]string), dead: make(map[string][]*entry)}
	return w.open(o)
}

// Another returns a handle on the same contents, as another node has it, or the same one after a restart. Its settings
// are those of m, except for the node's name, which is new if node is empty. Close it.
func (m *Memory) Another(node string) *Memory {
	o := m.o
	o.Node = node
	return m.open(o)
}

func (w *world) open(o MemoryOptions) *Memory {
	if o.Clock == nil {
		o.Clock = time.Now
	}
	if o.Interval <= 0 {
		o.Interval = time.Second
	}
	if o.Durability == "" {
		o.Durability = broker.Memory
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opened++
	if o.Node == "" {
		o.Node = fmt.Sprint("memory-", w.opened)
	}
	m := &Memory{world: w, o: o, closing: make(chan struct{}), endings: make(map[broker.Ending]uint64)}
	m.bell = newBell(o.Interval, m.tick)
	w.nodes = append(w.nodes, m)
	return m
}

// Close implements [broker.Broker].
func (m *Memory) Close() error {
	m.end(broker.ErrClosed)
	return nil
}

// Crash ends the handle as the end of its process does: nothing is detached and nobody is told. What was acknowledged is
// kept for the next handle.
func (m *Memory) Crash() { m.end(errCrashed) }

var errCrashed = fmt.Errorf("%w: the process has crashed", broker.ErrClosed)

func (m *Memory) end(why error) {
	m.mu.Lock()
	if m.ended != nil {
		m.mu.Unlock()
		return
	}
	m.ended = why
	for i, n := range m.nodes {
		if n == m {
			m.nodes = append(m.nodes[:i:i], m.nodes[i+1:]...)
			break
		}
	}
	if why != errCrashed { //nolint:errorlint // identity: it is never wrapped
		for _, b := range m.boxes {
			if a := b.owner; a != nil && a.node == m {
				m.bell.ring(func() { a.lose(why) })
			}
			for _, a := range b.line {
				if a.node == m {
					m.bell.ring(func() { a.lose(why) })
				}
			}
		}
	}
	close(m.closing)
	m.mu.Unlock()
	m.bus.end(m)
	m.bell.stop(why != errCrashed) //nolint:errorlint // as above
}

// Stop begins an outage for all handles: they cannot reach the contents until Start.
func (m *Memory) Stop() {
	m.setDown(true)
	m.bus.outage(true)
}

// Start ends an outage.
func (m *Memory) Start() {
	m.setDown(false)
	m.bus.outage(false)
}

func (m *Memory) setDown(down bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.down = down
}

// Mute has all notices lost, or arrive again, for all handles.
func (m *Memory) Mute(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mute = on
}

// enter locks the contents, if they can be had.
func (m *Memory) enter(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w: %w", broker.ErrRefused, broker.ErrUnavailable, err)
	}
	m.mu.Lock()
	err := m.ended
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", broker.ErrRefused, err)
	case m.down:
		err = fmt.Errorf("%w: %w: stopped", broker.ErrRefused, broker.ErrUnavailable)
	}
	if err != nil {
		m.mu.Unlock()
	}
	return err
}

// SetPolicies implements [broker.Store].
func (m *Memory) SetPolicies(p map[string]broker.Policy) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.policies = maps.Clone(p)
}

func (m *Memory) policy(channel string) broker.Policy { return m.policies[channel].WithDefaults() }

// Ready implements [broker.Store].
func (m *Memory) Ready() error {
	if err := m.enter(context.Background()); err != nil {
		return err
	}
	defer m.mu.Unlock()
	for channel, p := range m.policies {
		if !m.o.Durability.Meets(p.Durability) {
			return fmt.Errorf("%w: channel %s demands the durability %s; a store in memory gives %s",
				broker.ErrUnavailable, channel, p.Durability, m.o.Durability)
		}
	}
	return nil
}

// Now implements [broker.Store].
func (m *Memory) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.now()
}

func (m *Memory) now() time.Time {
	if now := m.o.Clock(); now.After(m.last) {
		m.last = now
	}
	return m.last
}

// next returns a number higher than all before: a sequence or a fence.
func (m *Memory) next() uint64 {
	m.highest = max(m.highest+1, uint64(max(m.now().UnixMicro(), 0)))
	return m.highest
}

// Endings implements [broker.Store].
func (m *Memory) Endings() map[broker.Ending]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.endings)
}

// Interface guard
var _ broker.Store = (*Memory)(nil)
