package hub

// Reason says why a session ended. It is log field, metric label and test assertion
// at once, so a text, once released, stays.
type Reason uint8

// The reasons for a session's end.
const (
	HelloTimeout    Reason = iota // no complete first frame in time
	BadHello                      // the first frame is empty, not understood, or another protocol's
	BadID                         // the ID is not allowed
	Unauthorized                  // the token is wrong or missing
	TooManySockets                // the node holds as many as it may
	NotServed                     // channel or listener are not, or not yet, part of the configuration
	ClientClosed                  // the peer closed or reset the connection
	ClientGoodbye                 // the peer said goodbye
	BadFrame                      // a frame that is not what the protocol says
	FrameTooLarge                 // a frame over the limit
	HeartbeatLost                 // nothing came within heartbeat and grace
	AckTimeout                    // the peer did not answer a message in time
	TakenOver                     // another socket registered under the same ID
	IDTaken                       // another socket is registered under the ID, and keeps it
	StoreFailed                   // the store could not be reached when the socket registered
	SlowSocket                    // more waits to be written than the queue may hold
	WriteFailed                   // a write failed or passed its deadline
	ListenerRemoved               // a reload removed the listener
	ChannelRemoved                // a reload removed the channel
	ConfigPinned                  // the socket kept an old configuration in memory for too long
	Isolated                      // the store has been out of reach for long: another node may reach it
	Drained                       // an operator empties the node
	Shutdown                      // the node is leaving
	Panicked                      // a bug of ours; the stack is in the log
	reasons                       // the number of reasons
)

var reasonTexts = [reasons]string{
	HelloTimeout: "hello_timeout", BadHello: "bad_hello", BadID: "bad_id", Unauthorized: "unauthorized",
	TooManySockets: "too_many_sockets", NotServed: "not_served", ClientClosed: "client_closed",
	ClientGoodbye: "client_goodbye", BadFrame: "bad_frame", FrameTooLarge: "frame_too_large",
	AckTimeout: "ack_timeout", TakenOver: "taken_over", IDTaken: "id_taken", StoreFailed: "store_failed",
	HeartbeatLost: "heartbeat_lost", SlowSocket: "slow_socket", WriteFailed: "write_failed",
	ListenerRemoved: "listener_removed", ChannelRemoved: "channel_removed", ConfigPinned: "config_pinned",
	Isolated: "isolated", Drained: "drained", Shutdown: "shutdown", Panicked: "panic",
}

// String returns the reason as logs, metrics and goodbyes spell it.
func (r Reason) String() string { return reasonTexts[r] }

// death reports whether the end may be the doing of the message that the peer was busy with.
func (r Reason) death() bool {
	switch r {
	case ClientClosed, BadFrame, FrameTooLarge, HeartbeatLost, SlowSocket, WriteFailed:
		return true
	}
	return false
}

// DropReason says why a message that was meant for a socket was not written to it. Only
// at_most_once channels drop.
type DropReason uint8

// The reasons for a drop.
const (
	DropSocketClosed DropReason = iota // the socket ended while the message waited in its queue
	DropSlowSocket                     // the queue was full; the socket was closed for it
	DropUnframable                     // the body cannot be a frame of the socket's framing
	DropTooLarge                       // the message is larger than the socket's limit
	dropReasons
)

var dropTexts = [dropReasons]string{
	DropSocketClosed: "socket_closed", DropSlowSocket: "slow_socket", DropUnframable: "unframable",
	DropTooLarge: "too_large",
}

// String returns the reason as logs and metrics spell it.
func (r DropReason) String() string { return dropTexts[r] }
