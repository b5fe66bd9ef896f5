package caddyrelay

import (
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("relay_ready", parseReady)
	httpcaddyfile.RegisterDirectiveOrder("relay_ready", httpcaddyfile.Before, "respond")
}

func parseReady(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	r := new(Ready)
	return r, r.UnmarshalCaddyfile(h.Dispenser)
}

// UnmarshalCaddyfile implements [caddyfile.Unmarshaler]. Syntax:
//
//	relay_ready [<matcher>] [publish|sockets]
func (h *Ready) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	begin := d.Token()
	if d.NextArg() {
		h.For = d.Val()
	}
	if d.NextArg() {
		return d.ArgErr()
	}
	if d.NextBlock(d.Nesting()) {
		return d.Err("relay_ready has no options: write it without a block")
	}
	return at(begin, h.check())
}
