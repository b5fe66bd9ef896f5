package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker"
)

const (
	// maxQueueBytes bounds what waits in a lane, so that messages of a megabyte cannot fill the memory
	// while Redis hangs.
	maxQueueBytes = 64 << 20
)

// op is one script call, or one command, on its way to the server.
type op struct {
	script *script // nil: args are a command
	keys   []string
	args   []any
	size   int                // roughly, in bytes
	stores bool               // it goes into the lane that waits for replicas
	admit  func(*shard) error // asked just before it is sent; nil: always
	then   func()             // called when it was done, in the order of the lane; nil: nothing. It must not block
	shard  *shard             // to which it goes; set by put, unless it was before
	moves  int                // how often it was sent to one that did not have the keys
	state  atomic.Uint32
	done   chan struct{} // closed when the rest is set

	reply    any
	err      error
	replicas replicas // in the lane that waits for them
}

// replicas is how many were asked to confirm an operation, and how many have.
type replicas struct{ asked, confirmed int }

func newOp(s *script, keys []string, args ...any) *op {
	return &op{script: s, keys: keys, args: args, size: 256, done: make(chan struct{})}
}

// lane is a queue of operations, and the connection that they take: what waits is sent in one pipeline, as
// publications are; see publish.go. There is one for appends and one for the rest, so that the
// latter need not wait for replicas, nor the former for large pages.
type lane struct {
	b     *Broker
	shard *shard
	queue chan *op
	bytes atomic.Int64 // in the queue
	wait  bool         // for replicas: it is the one for appends

	// Owned by loop.
	client *redis.Client
	moved  uint64 // Broker.moves when client was made
}

func newLane(sh *shard, wait bool) *lane {
	l := &lane{b: sh.s.b, shard: sh, queue: make(chan *op, maxQueue), wait: wait}
	l.client = sh.newClient()
	return l
}

// slot returns the slot of an operation's keys; a script's are all in one.
func (o *op) slot() int {
	if len(o.keys) > 0 {
		return keySlot(o.keys[0])
	}
	key, _ := o.args[1].(string)
	return keySlot(key)
}

func (l *lane) put(ctx context.Context, o *op) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", broker.ErrRefused, l.b.explainAt(l.shard.where(), err))
	}
	if l.bytes.Add(int64(o.size)) <= maxQueueBytes {
		select {
		case l.queue <- o:
			return nil
		default:
		}
	}
	l.bytes.Add(-int64(o.size))
	return fmt.Errorf("%w: %w: redis at %s does not keep up: %d requests wait already; try again later",
		broker.ErrRefused, broker.ErrUnavailable, l.shard.where(), len(l.queue))
}

// await waits for the result of an operation that was put.
func (s *store) await(ctx context.Context, o *op) error {
	b := s.b
	select {
	case <-o.done:
	case <-ctx.Done():
		if o.state.CompareAndSwap(waiting, abandoned) {
			return fmt.Errorf("%w: %w", broker.ErrRefused, b.explain(ctx.Err()))
		}
		select {
		case <-o.done: // it was done at the same moment
		default:
			return b.explain(ctx.Err())
		}
	case <-b.ctx.Done():
		if o.state.CompareAndSwap(waiting, abandoned) {
			return fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
		}
		<-o.done
	}
	where := o.shard.where() // the lanes have let go of o
	switch {
	case o.err == nil:
		return nil
	case errors.Is(o.err, broker.ErrRefused): // by admit
		return o.err
	case errors.Is(o.err, broker.ErrFormat) || notDone(o.err):
		return fmt.Errorf("%w: %w", broker.ErrRefused, b.explainAt(where, o.err))
	}
	return b.explainAt(where, o.err)
}

// notDone reports whether err proves that a script changed nothing. Other errors of a script may come
// from its middle.
func notDone(err error) bool {
	if isDialError(err) || errors.Is(err, redis.ErrPoolTimeout) {
		return true
	}
	var reply redis.Error
	if !errors.As(err, &reply) {
		return false
	}
	text := err.Error()
	for _, code := range []string{"OOM", "MISCONF", "READONLY", "LOADING", "MASTERDOWN", "NOREPLICAS", "BUSY", "NOAUTH", "WRONGPASS", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", "CROSSSLOT", "NOSCRIPT"} {
		if strings.HasPrefix(text, code+" ") || strings.Contains(text, "-"+code+" ") || strings.Contains(text, ": "+code+" ") {
			return true
		}
	}
	return false
}

// loop sends what waits until the broker is closed.
func (l *lane) loop() {
	defer func() { _ = l.client.Close() }()
	for {
		select {
		case <-l.b.ctx.Done():
			return
		case first := <-l.queue:
			l.commit(l.batch(first))
		}
	}
}

// batch takes what waits behind first, within the bounds.
func (l *lane) batch(first *op) []*op {
	ops, size := make([]*op, 0, 16), 0
	for o := first; ; {
		l.bytes.Add(-int64(o.size))
		if o.state.CompareAndSwap(waiting, taken) {
			ops = append(ops, o)
			size += o.size
		}
		if len(ops) >= maxBatch || size >= maxBatchBytes {
			return ops
		}
		select {
		case o = <-l.queue:
		default:
			return ops
		}
	}
}

// commit sends a batch, and a second time those whose script the server did not know: they did not
// run. Nothing else is sent twice.
func (l *lane) commit(ops []*op) {
	if moves := l.b.moves.Load(); moves != l.moved {
		_ = l.client.Close()
		l.client, l.moved = l.shard.newClient(), moves
	}
	if l.wait && !l.shard.seen().known {
		// Whether the server can be trusted is to be known before it is given anything.
		ctx, cancel := context.WithTimeout(l.b.ctx, l.b.o.Timeout)
		if l.client.Ping(ctx).Err() == nil { // else so does what follows
			_ = l.b.store.lookAtFormat(ctx)
		}
		cancel()
	}
	send := l.admitted(ops)
	if len(send) > 0 {
		l.send(send)
		if unknown := unknownScripts(send); len(unknown) > 0 {
			l.teach(unknown)
			l.send(unknown)
		}
	}
	redial := false
	var moved []*op
	for _, o := range ops {
		redial = redial || isDialError(o.err) || demoted(o.err)
		if redirected(o.err) && o.moves < maxMoves {
			moved = append(moved, o)
			continue
		}
		if o.err == nil && o.then != nil {
			o.then()
		}
		close(o.done)
	}
	if redial { // see commit in publish.go
		_ = l.client.Close()
		l.client = l.shard.newClient()
	}
	if len(moved) > 0 {
		l.forward(moved)
	}
}

// maxMoves bounds how often an operation is sent on.
const maxMoves = 3

// forward sends operations on whose keys another primary has: here they were not done.
func (l *lane) forward(ops []*op) {
	ctx, cancel := context.WithTimeout(l.b.ctx, l.b.o.Timeout)
	defer cancel()
	_ = l.b.refresh(ctx) // if it fails they come back here, or nobody has the keys
	for _, o := range ops {
		o.moves++
		o.err = nil
		o.state.Store(waiting)
		if err := l.b.store.put(ctx, o); err != nil && o.state.CompareAndSwap(waiting, taken) {
			o.err = err
			close(o.done)
		}
	}
}

func (l *lane) admitted(ops []*op) []*op {
	send := make([]*op, 0, len(ops))
	for _, o := range ops {
		if o.admit != nil {
			if o.err = o.admit(l.shard); o.err != nil {
				continue
			}
		}
		send = append(send, o)
	}
	return send
}

func (l *lane) send(ops []*op) {
	ctx, cancel := context.WithTimeout(l.b.ctx, l.b.o.Timeout)
	defer cancel()
	began := l.shard.lease.clock()
	pipe := l.client.Pipeline()
	cmds := make([]*redis.Cmd, len(ops))
	for i, o := range ops {
		if o.script == nil {
			cmds[i] = pipe.Do(ctx, o.args...)
		} else {
			cmds[i] = pipe.EvalSha(ctx, l.version(o.script).sha, o.keys, o.args...)
		}
	}
	var wait *redis.Cmd
	settings := l.b.settings.Load()
	asked := settings.replicas(l.shard.seen().replicas)
	if l.wait && asked > 0 {
		wait = pipe.Do(ctx, "WAIT", asked, wholeMillis(settings.replicaTimeout(l.b.o.Timeout))) // never 0, which is for ever
	}
	_, err := pipe.Exec(ctx)
	if err != nil && !slices.ContainsFunc(cmds, func(c *redis.Cmd) bool { return c.Err() != nil }) && (wait == nil || wait.Err() == nil) {
		for _, c := range cmds { // as in publish.go: Redis did not log us in
			c.SetErr(err)
		}
	}
	var of replicas
	if wait != nil {
		of.asked = asked
		of.confirmed, _ = wait.Int() // none, if it failed
	}
	for i, o := range ops {
		o.reply, o.err = cmds[i].Result()
		if errors.Is(o.err, redis.Nil) {
			o.reply, o.err = nil, nil
		}
		o.replicas = of
	}
	l.shard.reached(began, err)
}

func unknownScripts(ops []*op) []*op {
	var unknown []*op
	for _, o := range ops {
		if o.err != nil && strings.HasPrefix(o.err.Error(), "NOSCRIPT") {
			unknown = append(unknown, o)
		}
	}
	return unknown
}

// version returns the script as it is to be run: as it is, but for tests.
func (l *lane) version(s *script) *script {
	if rewrite := l.b.store.rewrite.Load(); rewrite != nil {
		return (*rewrite)(s)
	}
	return s
}

// teach has the server learn the scripts of ops. If that fails, the second try shows it.
func (l *lane) teach(ops []*op) {
	ctx, cancel := context.WithTimeout(l.b.ctx, l.b.o.Timeout)
	defer cancel()
	known := make(map[*script]bool)
	pipe := l.client.Pipeline()
	for _, o := range ops {
		if !known[o.script] {
			known[o.script] = true
			pipe.ScriptLoad(ctx, l.version(o.script).text)
		}
	}
	_, _ = pipe.Exec(ctx)
}
