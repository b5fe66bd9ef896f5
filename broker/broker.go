package broker

import (
	"context"
	"errors"
)

// Broker passes publications between the nodes of one cluster.
//
// This is the core that every delivery policy needs. What at_least_once needs
// beyond it (mailboxes, fences, acknowledgements) is a further interface that a
// broker may implement as well; callers ask for it with a type assertion, as
// docs/adr/0003 describes, so that adding it changes nothing here.
//
// A Broker is safe for concurrent use. Constructing one does no I/O: it connects
// on the first Subscribe or Publish and keeps trying for as long as it is open.
type Broker interface {
	// Publish hands p to every node that subscribed to channel, this one
	// included, and returns once the broker has taken it. Publications of one
	// caller, made one after another, are delivered in that order everywhere.
	//
	// It is at most once: an error that wraps [ErrUnavailable] says that p
	// may or may not have been taken, unless it wraps [ErrRefused] too, which
	// says that it was not. Publish never retries by itself. It ends with ctx.
	// p belongs to the broker until Publish returns.
	Publish(ctx context.Context, channel string, p *Publication) (Published, error)

	// Subscribe calls sink for every publication on channel from the moment
	// the subscription is proven (see [Subscription.Err]) until its Close.
	// It returns at once, whether or not the broker can be reached.
	//
	// Several subscriptions to one channel each get everything. The only
	// error is [ErrClosed].
	Subscribe(channel string, sink Sink) (Subscription, error)

	// Close ends the broker. It waits, for a bounded time, until publishes
	// under way have returned and until this node's subscriptions have heard
	// all that was published through it, so that moving to another broker
	// loses nothing that this one accepted. It then ends every subscription,
	// waits for running sink calls, and frees all it holds. A second Close
	// does nothing. After Close, Publish and Subscribe return [ErrClosed].
	Close() error
}

// Sink is what a broker tells of publications. A broker calls one subscription's
// sink from one goroutine at a time; the calls for one channel are in the order
// of the broker.
//
// A sink must not block: while it runs, everything behind it waits, and a Redis
// server cuts off a subscriber that does not read. So it must not publish, nor close
// the broker; closing its own subscription and adding others is fine. If it panics, the broker recovers
// and goes on.
type Sink interface {
	// Deliver hands over one publication. p and its bytes are valid for ever
	// and must not be changed.
	Deliver(channel string, p *Publication)

	// StateChanged tells that the broker failed this subscription (err says
	// why), and later, with nil, that it is proven again. Between the two,
	// publications may have been missed. A subscription that is proven at its
	// first attempt hears nothing of that; one that is not hears of the failure
	// first. The same state is never told twice in a row.
	StateChanged(channel string, err error)
}

// Subscription is one sink's hold on one channel.
type Subscription interface {
	// Err returns nil while the subscription is proven: the broker confirmed
	// it and has shown since that publications arrive here. Otherwise it says
	// why not, wrapping [ErrUnavailable] or [ErrClosed]. It is cheap enough to
	// ask before each publish.
	Err() error

	// Close ends the subscription. Once it returns no sink call begins; one
	// under way may still run, so that Close can be called from a sink.
	// A second Close does nothing.
	Close()
}

// Published says what the broker knows about a publication it has taken.
type Published struct {
	// Receivers is the number of subscribers that the server which took the
	// publication passed it to. They are nodes and other programs, not sockets.
	// -1 when the broker does not know.
	Receivers int
}

// Errors that brokers return, wrapped with what happened. Test with errors.Is.
var (
	// ErrUnavailable: the broker cannot be reached, or this node's own
	// subscription is not proven. Trying again later may help.
	ErrUnavailable = errors.New("broker unavailable")

	// ErrRefused: the broker did not take the publication; there is no doubt.
	// Wrapped together with [ErrUnavailable] when trying again may help.
	ErrRefused = errors.New("not published")

	// ErrClosed: the broker or the subscription was closed.
	ErrClosed = errors.New("broker closed")
)
