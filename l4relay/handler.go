package l4relay

import (
	"fmt"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/mholt/caddy-l4/layer4"

	"github.com/caddyrelay/relay/caddyrelay"
)

func init() { caddy.RegisterModule(new(Handler)) }

// Handler is a layer-4 handler that registers the connection as a socket of one of the relay's
// channels and pushes messages down it until it ends. It is the last handler of its
// route; handlers before it, such as tls or proxy_protocol, may wrap the connection.
type Handler struct {
	caddyrelay.Sockets

	// How long a TCP peer may be silent before the kernel asks whether it is still there. It
	// asks three times, a third of this apart. Default 30s.
	KeepAlive caddy.Duration `json:"keepalive,omitempty"`

	// How long written bytes may stay unacknowledged by the peer's kernel before the connection
	// is given up (TCP_USER_TIMEOUT, on Linux only). Default 30s.
	UserTimeout caddy.Duration `json:"user_timeout,omitempty"`

	server *caddyrelay.SocketServer
}

// CaddyModule returns the Caddy module information.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.relay", New: func() caddy.Module { return new(Handler) }}
}

// Provision implements [caddy.Provisioner]. It does not keep ctx: sockets outlive their configuration,
// and would keep all of it in memory.
func (h *Handler) Provision(ctx caddy.Context) error {
	for what, d := range map[string]*caddy.Duration{"keepalive": &h.KeepAlive, "user_timeout": &h.UserTimeout} {
		if *d < 0 {
			return fmt.Errorf("relay %s: %s is negative: write a positive duration, or leave it out for 30s", h.Channel, what)
		}
		if *d == 0 {
			*d = caddy.Duration(30 * time.Second)
		}
	}
	var err error
	h.server, err = h.NewServer(ctx, addresses(ctx, "relay", h.Channel))
	return err
}

// Handle implements [layer4.NextHandler]. It returns when the session is over; how it ended is in the
// log already, so there is no error.
func (h *Handler) Handle(cx *layer4.Connection, _ layer4.Handler) error {
	c := newConn(cx)
	if c.tcp != nil {
		setKeepAlive(c.tcp, time.Duration(h.KeepAlive))
		setUserTimeout(c.tcp, time.Duration(h.UserTimeout))
	}
	h.server.Serve(c, c.tls != nil)
	return nil
}

// UnmarshalCaddyfile implements [caddyfile.Unmarshaler]. Syntax: that of [caddyrelay.Sockets], and
//
//	relay <channel> {
//		keepalive    <duration>
//		user_timeout <duration>
//	}
func (h *Handler) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	return h.UnmarshalCaddyfileWith(d, map[string]*caddy.Duration{
		"keepalive": &h.KeepAlive, "user_timeout": &h.UserTimeout,
	})
}

// Interface guards
var (
	_ caddy.Provisioner     = (*Handler)(nil)
	_ layer4.NextHandler    = (*Handler)(nil)
	_ caddyfile.Unmarshaler = (*Handler)(nil)
)
