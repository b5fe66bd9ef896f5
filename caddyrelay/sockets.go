package caddyrelay

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"time"

	"github.com/caddyserver/caddy/v2"
	"go.uber.org/zap"

	"github.com/caddyrelay/relay/internal/hub"
	"github.com/caddyrelay/relay/internal/wire"
)

// defaultMaxSockets leaves room for HTTP, Redis and files under the open-file limit.
func defaultMaxSockets() int {
	const most = 10000
	if files := openFiles(); files > 0 && files/4*3 < most {
		return max(int(files/4*3), 1)
	}
	return most
}

// Sockets is the relay's side of a listener: how its sockets register and how they are spoken to.
type Sockets struct {
	// The channel that the sockets register on.
	Channel string `json:"channel,omitempty"`

	// How bytes become frames, in both directions.
	//
	// - line: a frame ends with LF; one CR before it is dropped. The default.
	// - length 2, length 4: a big-endian length of so many bytes, not counting itself,
	//   comes first (skynet, Swoole, Erlang).
	Framing string `json:"framing,omitempty"`

	// What the frames hold.
	//
	// - auto: a first frame that is a JSON object is a JSON hello, any other one is a
	//   plain ID. The default.
	// - plain: the first frame is the ID, or the ID, a space and a token; after it, each
	//   frame from the relay is the body of one message.
	// - json: the relay's JSON protocol.
	Protocol string `json:"protocol,omitempty"`

	// Who may register. It must be there.
	Auth *Auth `json:"auth,omitempty"`

	// How long the first frame may take. Default 10s.
	HelloTimeout caddy.Duration `json:"hello_timeout,omitempty"`

	// How long one write to a socket may take. Default 10s.
	WriteTimeout caddy.Duration `json:"write_timeout,omitempty"`

	// After how much silence a peer that speaks JSON is pinged, from 5s to 240s. It has 10s
	// for an answer; any byte counts. Its hello may ask for another time. Default 30s.
	Heartbeat caddy.Duration `json:"heartbeat,omitempty"`

	// The largest frame that a registered peer may send, in bytes. Default 65536. A first
	// frame has at most 8192.
	MaxFrame int `json:"max_frame,omitempty"`

	// The largest frame that is pushed to a peer, in bytes. A message that needs a larger one
	// is dropped for that peer and counted. Default 1048576, or 65535 with framing length 2.
	MaxMessage int `json:"max_message,omitempty"`

	// How many messages may wait to be written to one socket. When one more comes, the socket is
	// closed: it does not read as fast as messages come. Default 1024.
	QueueMessages int `json:"queue_messages,omitempty"`

	// How many bytes may wait to be written to one socket. Default 4194304.
	QueueBytes int `json:"queue_bytes,omitempty"`

	// On an at_least_once channel, how peers that speak plain acknowledge. It must be there unless
	// protocol is json: what is not acknowledged is pushed again.
	//
	// - none: they do not. A message is finished ("written") when the peer's kernel has taken it
	//   (on Linux; elsewhere when this machine's kernel has). What the program behind it does
	//   with it, nobody knows.
	// - line: any frame acknowledges the message before it; one is in flight at a time.
	// - match: a frame that ack_match matches does; other frames mean nothing.
	//
	// A peer that does not acknowledge within the channel's ack_timeout is disconnected.
	Ack string `json:"ack,omitempty"`

	// For ack match: a regular expression (RE2), such as ^OK.
	AckMatch string `json:"ack_match,omitempty"`

	// Frames of plain peers that this regular expression matches never acknowledge, such as the
	// pings of a client. Empty frames never do.
	Ignore string `json:"ignore,omitempty"`

	// How many messages of an at_least_once channel may be in flight on a socket, from 1 to 1024. A
	// client's hello may ask for another number. With ack line and match it is 1. Default 16.
	Window int `json:"window,omitempty"`
}

// Auth says who may register. Exactly one of its fields must be set.
type Auth struct {
	// Anybody may register under any ID. Only for networks on which nobody else is.
	None bool `json:"none,omitempty"`

	// Tokens of which a peer must send one. Each is a placeholder, such as {env.RELAY_TOKEN}
	// or {file./run/secrets/relay_token}; with several, a token can be replaced while
	// the old one still works.
	Tokens []string `json:"tokens,omitempty"`
}

// SocketServer serves the connections that are accepted in one configured place. Make it with
// [Sockets.NewServer].
type SocketServer struct {
	node       *node
	generation *generation
	logger     *zap.Logger
	plain      *hub.Endpoint // for connections that do not keep the configuration in memory
	pinned     *hub.Endpoint // for those that do
}

// NewServer provisions the sockets for the app of ctx's configuration. addresses are those at which they
// are accepted, so that a reload which removes one can say goodbye there; none means
// that they are not known.
func (s *Sockets) NewServer(ctx caddy.Context, addresses []caddy.NetworkAddress) (*SocketServer, error) {
	appModule, err := ctx.App("relay")
	if err != nil {
		return nil, err
	}
	a := appModule.(*App)
	if err := a.checkChannel(s.Channel); err != nil {
		return nil, err
	}
	e, err := s.endpoint()
	if err != nil {
		return nil, err
	}
	if e.Authorize, err = s.Auth.authorizer(); err != nil {
		return nil, fmt.Errorf("relay %s: %w", s.Channel, err)
	}
	g := a.generation
	if len(addresses) == 0 {
		addresses = []caddy.NetworkAddress{anyAddress}
	}
	g.listens[s.Channel] = append(g.listens[s.Channel], addresses...)

	if err := s.checkAck(a.Channels[s.Channel].stores()); err != nil {
		return nil, fmt.Errorf("relay %s: %w", s.Channel, err)
	}
	l := &SocketServer{node: a.node, generation: g, logger: ctx.Logger()}
	node, channel := a.node, s.Channel // and not s: it would keep the configuration in memory
	e.Delivery = func() (hub.Delivery, bool) { return node.delivery(channel) }
	e.Unsent = unsent
	e.Generation, e.Admit, e.OnEnter, e.OnDrop = g.number, l.admit, l.entered, l.dropped
	l.plain = e.WithDefaults()
	e.Pinned = true
	l.pinned = e.WithDefaults()
	return l, nil
}

// endpoint returns the settings as the hub wants them, or says what in them cannot be, whatever the rest
// of the configuration holds. Who may register is not filled in yet.
func (s *Sockets) endpoint() (*hub.Endpoint, error) {
	e := &hub.Endpoint{
		Channel:      s.Channel,
		HelloTimeout: time.Duration(s.HelloTimeout), WriteTimeout: time.Duration(s.WriteTimeout),
		Heartbeat: time.Duration(s.Heartbeat), MaxFrame: s.MaxFrame, MaxMessage: s.MaxMessage,
		QueueMessages: s.QueueMessages, QueueBytes: s.QueueBytes, Window: s.Window,
	}
	err := func() (err error) {
		if e.Framing, err = parseFraming(s.Framing); err != nil {
			return err
		}
		protocols := map[string]hub.Protocol{"": hub.Auto, "auto": hub.Auto, "plain": hub.Plain, "json": hub.JSON}
		var known bool
		if e.Protocol, known = protocols[s.Protocol]; !known {
			return fmt.Errorf("unknown protocol %q: write auto, plain or json", s.Protocol)
		}
		if err := s.checkLimits(e.Framing); err != nil {
			return err
		}
		if err := s.acknowledging(e); err != nil {
			return err
		}
		return s.Auth.check()
	}()
	if err != nil {
		return nil, fmt.Errorf("relay %s: %w", s.Channel, err)
	}
	return e, nil
}

func (s *Sockets) checkLimits(f wire.Framing) error {
	for what, v := range map[string]int64{
		"hello_timeout": int64(s.HelloTimeout), "write_timeout": int64(s.WriteTimeout), "heartbeat": int64(s.Heartbeat),
		"max_frame": int64(s.MaxFrame), "max_message": int64(s.MaxMessage),
		"queue_messages": int64(s.QueueMessages), "queue_bytes": int64(s.QueueBytes), "window": int64(s.Window),
	} {
		if v < 0 {
			return fmt.Errorf("%s is negative: write a positive value, or leave it out for the default", what)
		}
	}
	if h := time.Duration(s.Heartbeat); h != 0 && (h < 5*time.Second || h > 240*time.Second) {
		return fmt.Errorf("heartbeat %s is out of range: write a time from 5s to 240s", h)
	}
	if s.MaxMessage > f.MaxPayload() {
		return fmt.Errorf("max_message %d does not fit framing %s, which holds at most %d bytes", s.MaxMessage, f, f.MaxPayload())
	}
	return nil
}

// acknowledging fills in how plain peers acknowledge.
func (s *Sockets) acknowledging(e *hub.Endpoint) (err error) {
	ways := map[string]hub.Ack{"": hub.AckNone, "none": hub.AckNone, "line": hub.AckLine, "match": hub.AckMatch}
	var known bool
	if e.Ack, known = ways[s.Ack]; !known {
		return fmt.Errorf("unknown ack %q: write none, line, or match and a regular expression", s.Ack)
	}
	if (s.Ack == "match") != (s.AckMatch != "") {
		return errors.New("ack match needs a regular expression, and the other ways have none: write, for example, ack match ^OK")
	}
	if s.Window > 1024 {
		return fmt.Errorf("window %d is out of range: write a number from 1 to 1024", s.Window)
	}
	if s.Ignore != "" && e.Ack == hub.AckNone {
		return errors.New("ignore says which frames do not acknowledge: it needs ack line or ack match")
	}
	for _, r := range []struct {
		what, text string
		into       **regexp.Regexp
	}{{"ack match", s.AckMatch, &e.AckMatch}, {"ignore", s.Ignore, &e.Ignore}} {
		if r.text == "" {
			continue
		}
		if *r.into, err = regexp.Compile(r.text); err != nil {
			return fmt.Errorf("%s: %w: write a regular expression in RE2 syntax", r.what, err)
		}
	}
	return nil
}

// checkAck says so if what is configured does not suit the channel's delivery.
func (s *Sockets) checkAck(stored bool) error {
	switch {
	case !stored && (s.Ack != "" || s.Ignore != "" || s.Window != 0):
		return errors.New("ack, ignore and window belong to at_least_once channels: take them out")
	case stored && s.Ack == "" && s.Protocol != "json":
		return errors.New("how plain sockets acknowledge is not said: write \"ack line\" if they answer each message with a frame, " +
			"\"ack none\" if they cannot, or \"protocol json\" if there are no plain ones")
	case stored && s.Ack != "" && s.Protocol == "json":
		return errors.New("ack is for plain sockets, and protocol json has none: take it out")
	}
	return nil
}

var errBadToken = errors.New("wrong or missing token")

// check says what is missing or contradictory.
func (a *Auth) check() error {
	switch {
	case a == nil || !a.None && len(a.Tokens) == 0:
		return errors.New("who may register is not said: write \"auth token {env.RELAY_TOKEN}\", " +
			"or \"auth none\" if nobody else is on this network")
	case a.None && len(a.Tokens) > 0:
		return errors.New("auth none and auth token contradict each other: write one of them")
	}
	for _, token := range a.Tokens {
		if err := checkSecret("auth token", token); err != nil {
			return err
		}
	}
	return nil
}

// authorizer returns what decides who may register; nil lets everybody in.
func (a *Auth) authorizer() (func(id, token string) error, error) {
	if a.None {
		return nil, nil
	}
	values, err := secrets("auth token", a.Tokens)
	if err != nil {
		return nil, err
	}
	accepted := newTokens(values)
	return func(_, token string) error {
		if !accepted.accept(token) {
			return errBadToken
		}
		return nil
	}, nil
}

// Serve speaks with one accepted connection until its end, which it logs. pinned says that the
// connection keeps its configuration in memory, as TLS does. The caller closes conn.
func (l *SocketServer) Serve(conn net.Conn, pinned bool) {
	e := l.plain
	if pinned {
		e = l.pinned
	}
	end := l.node.hub.Serve(conn, e)
	fields := []zap.Field{
		zap.String("reason", end.Reason.String()), zap.Stringer("remote", conn.RemoteAddr()),
		zap.String("channel", e.Channel), zap.String("id", end.ID), zap.Stringer("protocol", end.Protocol),
		zap.Duration("lasted", end.Lasted), zap.Uint64("pushed", end.Pushed), zap.Uint64("dropped", end.Dropped),
		zap.Uint64("ignored_frames", end.Ignored),
	}
	if end.Err != nil {
		fields = append(fields, zap.Error(end.Err))
	}
	switch {
	case end.Reason == hub.Panicked:
		l.logger.Error("socket ended by a bug of the relay; please report it", fields...)
	case !end.Registered && end.Reason == hub.ClientClosed: // a health check, or a port scan
		l.logger.Debug("socket left before it registered", fields...)
	case !end.Registered:
		l.logger.Warn("socket refused", fields...)
	default:
		l.logger.Info("socket ended", fields...)
	}
}

// unsent returns how many bytes the peer's kernel has not confirmed, if the connection can tell.
func unsent(conn net.Conn) (int, error) {
	if c, ok := conn.(interface{ Unsent() (int, error) }); ok {
		return c.Unsent()
	}
	return 0, errors.ErrUnsupported
}

// admit says whether the configuration that rules now serves the listener's sockets.
func (l *SocketServer) admit(local net.Addr) *hub.Refusal {
	channel := l.plain.Channel
	g := l.node.active.Load()
	if g == nil || g.number < l.generation.number {
		if !l.generation.waitStarted(startWait) {
			return &hub.Refusal{Reason: hub.NotServed, Code: 503, Temporary: true,
				Text: "the relay is not running; try again in a moment"}
		}
		g = l.node.active.Load()
	}
	switch {
	case g == nil:
		return &hub.Refusal{Reason: hub.NotServed, Code: 503, Temporary: true, Text: "the relay was stopped; try again later"}
	case g.channels[channel] == nil:
		return &hub.Refusal{Reason: hub.NotServed, Code: 404, Text: "the channel " + channel + " was removed"}
	case !g.serves(channel, local):
		return &hub.Refusal{Reason: hub.NotServed, Code: 404, Temporary: true, Text: "this listener was removed; connect again"}
	}
	return nil
}

// entered logs a registration.
func (l *SocketServer) entered(s *hub.Session) {
	if c := l.logger.Check(zap.InfoLevel, "socket registered"); c != nil {
		c.Write(zap.Stringer("remote", s.RemoteAddr()), zap.String("channel", l.plain.Channel),
			zap.String("id", s.ID()), zap.Stringer("protocol", s.Protocol()))
	}
}

// dropped logs what a session cannot be given, once a minute for each channel.
func (l *SocketServer) dropped(id string, reason string) {
	channel := l.plain.Channel
	held, ok := l.node.counts.channel(channel).drops.allow()
	if !ok {
		return
	}
	l.logger.Warn("a message does not fit the socket, so it is dropped, or a dead letter of an at_least_once channel: "+
		"use framing length 4 or protocol json there, or a larger max_message", zap.String("channel", channel),
		zap.String("id", id), zap.String("reason", reason), zap.Uint64("since_last_line", held))
}

// checkChannel says what to write when a channel is not configured.
func (a *App) checkChannel(name string) error {
	switch {
	case len(a.Channels) == 0:
		return errors.New("the relay is not configured: write the global option relay { … } with at least one channel")
	case name == "":
		return errors.New("the relay channel is missing: name one of " + a.channelList())
	case a.Channels[name] == nil:
		return fmt.Errorf("the relay has no channel %q: add \"channel %s\" to the global option relay, or name one of %s",
			name, name, a.channelList())
	}
	return nil
}
