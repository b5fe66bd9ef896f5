package hub

import (
	"net"
	"regexp"
	"time"

	"github.com/caddyrelay/relay/internal/wire"
)

// Protocol is what a socket speaks inside its frames.
type Protocol uint8

// The protocols. With Auto, the first frame decides: a JSON object is a JSON hello,
// anything else a plain ID.
const (
	Auto Protocol = iota
	Plain
	JSON
)

// String returns the protocol as configurations spell it.
func (p Protocol) String() string { return [...]string{"auto", "plain", "json"}[p] }

// Limits that no setting changes.
const (
	// maxHello bounds the first frame: whoever sends it has not shown who it is yet.
	maxHello = 8 << 10
	// Heartbeats outside these cost too much, or outlast what NATs and load
	// balancers on the way allow an idle connection (four minutes).
	minHeartbeat, maxHeartbeat = 5 * time.Second, 240 * time.Second
	// heartbeatGrace is how long a pinged peer may take to send anything.
	heartbeatGrace = 10 * time.Second
	// A client may ask for another window than the endpoint's, up to the maximum. On
	// at_most_once channels nothing is acknowledged, so it is only told.
	defaultWindow, maxWindow = 16, 1024
	// maxTurnedAway bounds the connections that are being told that there is no place.
	maxTurnedAway = 64
	// linger is how long a peer that was told the end may take to close: closing
	// first would, where bytes from it are unread, reset the connection and take the
	// last frame out of its hands.
	linger = 2 * time.Second
)

// Endpoint is the settings of the sockets that one listener accepts for one channel. It
// must not change once it is used. Zero values of limits and times take the defaults.
type Endpoint struct {
	// Channel is the relay channel that the sockets register on.
	Channel string

	// Framing is how bytes become frames. The zero value is lines.
	Framing wire.Framing

	// Protocol is what the frames hold.
	Protocol Protocol

	// Authorize decides whether a peer may register as id with the token that it
	// sent, which is empty if it sent none. Nil lets everyone in. The error is for
	// the log: the peer is told only that it was refused.
	Authorize func(id, token string) error

	// Admit is asked before a socket is registered, and again right after: whether the
	// channel, and the listener at the address that the peer connected to, are still
	// (or already) part of the running configuration. It may wait a while for a start
	// under way. Nil admits.
	Admit func(local net.Addr) *Refusal

	// OnEnter is told of each session that was registered, before its first message is
	// written. It must not block. Nil tells nobody.
	OnEnter func(s *Session)

	// OnDrop is told of the first message for each session that does not fit the session's
	// framing or limit, while the session goes on: it is dropped, or becomes a dead letter. The
	// reason is a [DropReason] or [broker.DeadReason]. It must not block. Nil tells nobody.
	OnDrop func(id string, reason string)

	// Delivery returns how the channel delivers in the configuration that rules now, or false
	// if it is an at_most_once channel. It must not block. Nil is at_most_once.
	Delivery func() (Delivery, bool)

	// Ack is how plain peers of an at_least_once channel acknowledge. AckMatch is for the way
	// of that name; frames that Ignore matches are never an answer. Nil matches nothing.
	Ack              Ack
	AckMatch, Ignore *regexp.Regexp

	// Window is how many messages may be in flight on a socket of an at_least_once channel, unless its
	// hello asks for another number up to 1024. Default 16. With AckLine and AckMatch it is 1.
	Window int

	// Unsent returns how many bytes written to a connection its peer's kernel has not confirmed yet. For peers
	// that cannot acknowledge, a message counts as written when there are none. Nil, or
	// [errors.ErrUnsupported]: when the kernel here has taken it.
	Unsent func(net.Conn) (int, error)

	// Generation numbers the configuration that the endpoint belongs to, and Pinned says
	// that its sockets keep that configuration in memory.
	Generation uint64
	Pinned     bool

	// HelloTimeout is how long the first frame may take. Default 10 s.
	HelloTimeout time.Duration

	// WriteTimeout is how long one write may take. Default 10 s.
	WriteTimeout time.Duration

	// Heartbeat is after how much silence a JSON peer is pinged, unless its hello
	// asks for another time between 5 and 240 s. Default 30 s.
	Heartbeat time.Duration

	// MaxFrame is the largest frame a registered peer may send, in bytes. Default 64 KiB.
	MaxFrame int

	// MaxMessage is the largest frame that is pushed to a peer, in bytes. Default 1
	// MiB, or what the framing can hold if that is less.
	MaxMessage int

	// QueueMessages and QueueBytes bound what waits to be written to one socket.
	// Defaults 1024 and 4 MiB.
	QueueMessages int
	QueueBytes    int
}

// WithDefaults returns a copy of e with the defaults filled in.
func (e Endpoint) WithDefaults() *Endpoint {
	e.HelloTimeout = positive(e.HelloTimeout, 10*time.Second)
	e.WriteTimeout = positive(e.WriteTimeout, 10*time.Second)
	e.Heartbeat = clampHeartbeat(positive(e.Heartbeat, 30*time.Second))
	e.MaxFrame = positive(e.MaxFrame, 64<<10)
	e.Window = min(positive(e.Window, defaultWindow), maxWindow)
	e.MaxMessage = min(positive(e.MaxMessage, 1<<20), e.Framing.MaxPayload())
	e.QueueMessages = positive(e.QueueMessages, 1024)
	e.QueueBytes = positive(e.QueueBytes, 4<<20)
	return &e
}

func positive[T int | time.Duration](v, otherwise T) T {
	if v > 0 {
		return v
	}
	return otherwise
}

func clampHeartbeat(d time.Duration) time.Duration {
	return min(max(d, minHeartbeat), maxHeartbeat)
}

// Refusal is why a socket is not registered, and what it is told.
type Refusal struct {
	Reason    Reason
	Code      int    // as in HTTP: 400, 401, 503
	Text      string // for the peer; says what to do
	Temporary bool   // whether trying again may help
	Err       error  // for the log, never for the peer; may be nil
}

// Error returns what the log should say.
func (r *Refusal) Error() string {
	if r.Err != nil {
		return r.Err.Error()
	}
	return r.Text
}
