package l4relay

import (
	"crypto/tls"
	"errors"
	"net"

	"github.com/mholt/caddy-l4/layer4"
)

// conn is a caddy-l4 connection as the hub wants it: one whose sending side can be closed first, so
// that a peer reads the last frame before it sees the end.
type conn struct {
	*layer4.Connection
	tls *tls.Conn    // nil without TLS
	tcp *net.TCPConn // nil if the bottom is something else
}

// newConn looks for what is wrapped in cx.
func newConn(cx *layer4.Connection) *conn {
	c := &conn{Connection: cx}
	inner := cx.Conn
	for inner != nil {
		switch w := inner.(type) {
		case *net.TCPConn:
			c.tcp = w
			return c
		case *tls.Conn:
			c.tls, inner = w, w.NetConn()
		case *layer4.Connection:
			inner = w.Conn
		case interface{ Raw() net.Conn }: // go-proxyproto
			inner = w.Raw()
		default:
			return c
		}
	}
	return c
}

// CloseWrite ends the stream towards the peer and leaves the other direction open.
func (c *conn) CloseWrite() error {
	switch {
	case c.tls != nil:
		return c.tls.CloseWrite()
	case c.tcp != nil:
		return c.tcp.CloseWrite()
	}
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return net.ErrClosed
}

// Unsent returns how many written bytes the peer's kernel has not confirmed yet.
func (c *conn) Unsent() (int, error) {
	if c.tcp == nil {
		return 0, errors.ErrUnsupported
	}
	return unsent(c.tcp)
}
