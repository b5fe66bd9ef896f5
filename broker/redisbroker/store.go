package redisbroker

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// store is the part of a broker that keeps messages. A broker that serves at_most_once only never begins
// it, so that it needs neither connections nor rights for it.
type store struct {
	// Fixed by newStore.
	b     *Broker
	names names
	clock *clock
	// incarnation names this process: its node and, as a node that restarts is another owner, a random part.
	incarnation string
	notices     *notices
	answering   chan struct{} // places for those who answer other nodes
	recheck     chan struct{} // look at mailboxes now: at all if missed is set, or at the suspects

	attaches atomic.Uint64 // numbers them
	beaten   atomic.Bool   // the server has been told that this node is alive
	missed   atomic.Bool   // owners may have missed something
	begun    atomic.Bool   // set with Broker.mu held

	// For tests: muted has all notices lost, and rewrite changes scripts, so that their clock can be moved.
	muted   atomic.Bool
	rewrite atomic.Pointer[func(*script) *script]

	formatSeen atomic.Bool           // the format of the keys was looked at
	formatErr  atomic.Pointer[error] // why it cannot be read, or nil

	mu        sync.Mutex
	shards    map[string]*shard // by address; see shard
	policies  map[string]broker.Policy
	suspects  []*mailbox            // that are said to have another owner
	line      map[string][]*mailbox // of this node, waiting for their turn
	lives     map[string]life       // of other nodes
	boxes     map[string][]*mailbox // this node's, by name; more than one while they take over from each other
	orphans   map[string]orphan     // owners of ours whom Redis may still believe in, by name
	withdrawn map[string]withdrawal // entries that owners forgot and that are not cancelled yet
	endings   map[broker.Ending]uint64
	waits     map[string]map[chan struct{}]bool // who waits for a message's end
	asks      map[string]chan answer
	tallies   map[string]*tally
}

func newStore(b *Broker) *store {
	return &store{
		b: b, names: b.names, clock: newClock(), incarnation: b.o.Node + "/" + broker.NewMID()[:8],
		notices: newNotices(), answering: make(chan struct{}, maxAsked), recheck: make(chan struct{}, 1),
		shards: make(map[string]*shard), boxes: make(map[string][]*mailbox), line: make(map[string][]*mailbox), lives: make(map[string]life), orphans: make(map[string]orphan), withdrawn: make(map[string]withdrawal),
		endings: make(map[broker.Ending]uint64), waits: make(map[string]map[chan struct{}]bool),
		asks: make(map[string]chan answer), tallies: make(map[string]*tally),
	}
}

// nodeOf returns the node's name of an owner's.
func nodeOf(owner string) string {
	if i := strings.LastIndexByte(owner, '/'); i >= 0 {
		return owner[:i]
	}
	return owner
}

// ours reports whether an owner is of this process.
func (s *store) ours(owner string) bool {
	return incarnationOf(owner) == s.incarnation
}

func (s *store) newOwner() string {
	return s.incarnation + "#" + strconv.FormatUint(s.attaches.Add(1), 10)
}

// begin starts what the store needs, unless the broker is closing. It does no I/O itself.
func (s *store) begin() {
	if s.begun.Load() {
		return
	}
	b := s.b
	b.mu.Lock()
	first := !s.begun.Load() && !b.closing
	if first {
		s.begun.Store(true)
		b.loops.Go(s.watchLoop)
		b.loops.Go(s.keepLoop)
		b.loops.Go(s.noticeLoop)
		b.loops.Go(s.hear)
	}
	b.mu.Unlock()
}

// hear subscribes to what this node is told, once it is known how nodes are told: on a cluster over a sharded channel.
func (s *store) hear() {
	b := s.b
	for b.discover(b.ctx) != nil {
		if b.ctx.Err() != nil {
			return
		}
		b.wait(noticeRetry)
	}
	ear := b.ear
	if b.kind.Load() == kindCluster {
		ear = b.nodeEar
	}
	_, _ = ear.subscribe(s.names.node(s.incarnation), nodeSink{s}) // it fails only if the broker closes
}

// enter begins a call of the store's. If it returns no error, leave must be called at the end.
func (b *Broker) enter() (leave func(), err error) {
	b.store.begin()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return nil, fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
	}
	b.publishing.Add(1)
	return b.publishing.Done, nil
}

// Start begins to serve as a store: it connects, and looks at what Redis holds. That Redis cannot be reached
// is no error, as it may be soon; that it holds what this release cannot read is one ([broker.ErrFormat]).
func (b *Broker) Start() error {
	leave, err := b.enter()
	if err != nil {
		return err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(b.ctx, b.o.Timeout)
	defer cancel()
	_ = b.store.lookAtFormat(ctx)
	if err := b.store.formatErr.Load(); err != nil {
		return b.explain(*err)
	}
	for _, sh := range b.store.current() {
		_ = sh.preflight(ctx)
	}
	return nil
}

// SetPolicies implements [broker.Store].
func (b *Broker) SetPolicies(policies map[string]broker.Policy) {
	s := b.store
	s.mu.Lock()
	s.policies = maps.Clone(policies)
	s.mu.Unlock()
	if len(policies) > 0 {
		s.begin()
	}
}

// policy returns a channel's, with the defaults filled in.
func (s *store) policy(channel string) broker.Policy {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.policies[channel].WithDefaults()
}

// Now implements [broker.Store].
func (b *Broker) Now() time.Time { return b.store.clock.now() }

// Endings implements [broker.Store].
func (b *Broker) Endings() map[broker.Ending]uint64 {
	s := b.store
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.endings)
}

func (s *store) ended(e broker.Ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.endings[e]++
}

// Unreached returns for how long the server has not answered the store, or from when the broker was made. While all is
// well that is up to a second or so.
//
// On a cluster it is that of the primary which was heard of last.
func (b *Broker) Unreached() time.Duration {
	all := b.store.current()
	if len(all) == 0 {
		return time.Since(b.started)
	}
	least := all[0].lease.silence()
	for _, sh := range all[1:] {
		least = min(least, sh.lease.silence())
	}
	return least
}

// closed tells all owners that the store is closed.
func (s *store) closed() {
	s.mu.Lock()
	var all []*mailbox
	for _, boxes := range s.boxes {
		all = append(all, boxes...)
	}
	for _, line := range s.line {
		all = append(all, line...)
	}
	s.mu.Unlock()
	for _, m := range all {
		m.lose(broker.ErrClosed)
	}
}

// put hands an operation over to the primary that has its keys.
func (s *store) put(ctx context.Context, o *op) error {
	sh := o.shard
	if sh == nil || o.moves > 0 {
		var err error
		if sh, err = s.shardOf(ctx, o.slot()); err != nil {
			return err
		}
	}
	o.shard = sh
	if o.stores {
		return sh.appends.put(ctx, o)
	}
	return sh.rest.put(ctx, o)
}

// do hands an operation over and waits for its result.
func (s *store) do(ctx context.Context, o *op) error {
	if err := s.put(ctx, o); err != nil {
		return err
	}
	return s.await(ctx, o)
}

// call runs a script, and returns its answer.
func (s *store) call(ctx context.Context, sc *script, keys []string, args ...any) (*reply, error) {
	o := newOp(sc, keys, args...)
	if err := s.do(ctx, o); err != nil {
		return nil, err
	}
	return replyOf(o.reply), nil
}

// calls runs many operations at once. Each has its own error.
func (s *store) calls(ctx context.Context, ops []*op) []error {
	errs := make([]error, len(ops))
	for i, o := range ops {
		errs[i] = s.put(ctx, o)
	}
	for i, o := range ops {
		if errs[i] == nil {
			errs[i] = s.await(ctx, o)
		}
	}
	return errs
}

// command runs one command, not a script.
func (s *store) command(ctx context.Context, args ...any) (any, error) {
	o := newOp(nil, nil, args...)
	if err := s.do(ctx, o); err != nil {
		return nil, err // o belongs to the lane still, if ctx has ended
	}
	return o.reply, nil
}

// wrong wraps what makes an answer unreadable.
func (s *store) wrong(what string, err error) error {
	return fmt.Errorf("%w: redis at %s: %s: %w", broker.ErrUnavailable, s.b.o.Address, what, err)
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms)
}

// wholeMillis rounds up: a positive duration must not become none.
func wholeMillis(d time.Duration) int64 {
	return int64((d + time.Millisecond - 1) / time.Millisecond)
}
