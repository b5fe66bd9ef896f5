package broker

// State is where a message of an at_least_once channel is on its way. The texts are format, metric
// label and API at once: once released, they stay.
type State string

// The states. From StateAcked on they are ends (see [State.Finished]).
const (
	StateStored    State = "stored"    // in its mailbox
	StateInFlight  State = "in_flight" // pushed to a socket and not acknowledged; only owners know, it is not stored
	StateAcked     State = "acked"     // the back end acknowledged it
	StateWritten   State = "written"   // handed to the kernel of a peer that cannot acknowledge
	StateExpired   State = "expired"   // its own deadline passed
	StateCancelled State = "cancelled" // withdrawn before it was pushed
	StateDead      State = "dead"      // a dead letter; see DeadReason
	StateErased    State = "erased"    // a dead letter that was dropped
)

// Finished reports whether s is an end: the message will not be pushed any more, unless
// an operator sends a dead letter again.
func (s State) Finished() bool { return s != StateStored && s != StateInFlight && s != "" }

// DeadReason says why a message became a dead letter. The texts stay, once released.
type DeadReason string

// The reasons.
const (
	DeadAttempts   DeadReason = "max_attempts" // nacks and ack timeouts, as many as the channel allows
	DeadCrashes    DeadReason = "crash_limit"  // sockets ended while it was first in flight, as often as allowed
	DeadTerminated DeadReason = "terminated"   // the client gave it up
	DeadRetention  DeadReason = "retention"    // it waited for its destination longer than the channel keeps messages
	DeadUnframable DeadReason = "unframable"   // its body cannot be a frame of the socket's framing
	DeadTooLarge   DeadReason = "too_large"    // it is larger than the socket's limit
)
