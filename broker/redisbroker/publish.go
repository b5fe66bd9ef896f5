package redisbroker

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker"
)

const (
	// maxQueue bounds the publications that wait for the batch before them.
	maxQueue = 4096
	// maxBatch and maxBatchBytes bound one pipeline.
	maxBatch      = 256
	maxBatchBytes = 1 << 20
)

// job is one publication on its way.
type job struct {
	channel string
	payload []byte
	state   atomic.Uint32
	done    chan struct{} // closed when the rest is set

	receivers int
	err       error
}

// The states of a job. Whoever moves it out of waiting decides whether it is sent.
const (
	waiting = iota
	taken
	abandoned
)

// Publish implements [broker.Broker].
func (b *Broker) Publish(ctx context.Context, channel string, p *broker.Publication) (broker.Published, error) {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
	}
	b.publishing.Add(1)
	b.mu.Unlock()
	defer b.publishing.Done()
	return b.publish(ctx, channel, p.Payload())
}

// publish is Publish for the broker itself, too, which publishes while it closes.
func (b *Broker) publish(ctx context.Context, channel string, payload []byte) (broker.Published, error) {
	if err := ctx.Err(); err != nil {
		return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, b.explain(err))
	}
	j := &job{channel: channel, payload: payload, done: make(chan struct{})}
	select {
	case b.queue <- j:
	default:
		return broker.Published{}, fmt.Errorf("%w: %w: redis at %s does not keep up: %d publications wait already",
			broker.ErrRefused, broker.ErrUnavailable, b.o.Address, maxQueue)
	}
	select {
	case <-j.done:
	case <-ctx.Done():
		if j.state.CompareAndSwap(waiting, abandoned) {
			return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, b.explain(ctx.Err()))
		}
		select {
		case <-j.done: // it was done at the same moment
		default:
			return broker.Published{}, b.explain(ctx.Err())
		}
	case <-b.ctx.Done():
		if j.state.CompareAndSwap(waiting, abandoned) {
			return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, broker.ErrClosed)
		}
		// ErrClosed would say that another broker can be tried, but this one may have done it.
		<-j.done
	}
	if j.err == nil {
		return broker.Published{Receivers: j.receivers}, nil
	}
	if notSent(j.err) {
		return broker.Published{}, fmt.Errorf("%w: %w", broker.ErrRefused, b.explain(j.err))
	}
	return broker.Published{}, b.explain(j.err)
}

// commitLoop sends what waits, all of it in one pipeline, and what came meanwhile in the next: the
// busier, the larger the batches, and nobody waits for a timer.
//
// One batch is under way at a time, which keeps publications in the order of the queue.
func (b *Broker) commitLoop() {
	defer func() { _ = b.client.Close() }()
	for {
		select {
		case <-b.ctx.Done():
			return
		case first := <-b.queue:
			b.commit(b.batch(first))
		}
	}
}

// batch takes what waits behind first, within the bounds.
func (b *Broker) batch(first *job) []*job {
	jobs, size := make([]*job, 0, 16), 0
	for j := first; ; {
		if j.state.CompareAndSwap(waiting, taken) {
			jobs = append(jobs, j)
			size += len(j.payload)
		}
		if len(jobs) >= maxBatch || size >= maxBatchBytes {
			return jobs
		}
		select {
		case j = <-b.queue:
		default:
			return jobs
		}
	}
}

// commit sends a batch. It is never sent twice: part of it may have been done.
func (b *Broker) commit(jobs []*job) {
	if len(jobs) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(b.ctx, b.o.Timeout)
	defer cancel()
	if moves := b.moves.Load(); moves != b.moved {
		_ = b.client.Close()
		b.client, b.moved = b.newClient(b.dial), moves
	}
	pipe := b.client.Pipeline()
	cmds := make([]*redis.IntCmd, len(jobs))
	for i, j := range jobs {
		cmds[i] = pipe.Publish(ctx, j.channel, j.payload)
	}
	_, err := pipe.Exec(ctx)
	if err != nil && !slices.ContainsFunc(cmds, func(c *redis.IntCmd) bool { return c.Err() != nil }) {
		// Redis did not log us in. go-redis returns that, but leaves each command as it was, which
		// looks like success.
		for _, c := range cmds {
			c.SetErr(err)
		}
	}
	redial := false
	for i, j := range jobs {
		j.receivers, j.err = int(cmds[i].Val()), cmds[i].Err()
		redial = redial || isDialError(j.err)
		close(j.done)
	}
	if redial {
		// After a few failures a pool of go-redis refuses to dial and tries once a second behind our
		// backs, so a server that is back would not be used at once. A new pool has no such memory.
		_ = b.client.Close()
		b.client = b.newClient(b.dial)
	}
}
