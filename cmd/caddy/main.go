// Command caddy is Caddy with caddy-l4 and the relay.
//
// Of caddy-l4 it has what a relay's listeners need: TLS, the PROXY protocol, nested routes, and the
// matchers by address and by SNI. The rest (proxies, a SOCKS server, matchers of other protocols) would
// add dependencies and attack surface for nothing. Whoever wants all of it builds with xcaddy.
package main

import (
	_ "time/tzdata"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4/layer4"
	_ "github.com/mholt/caddy-l4/modules/l4close"
	_ "github.com/mholt/caddy-l4/modules/l4proxyprotocol"
	_ "github.com/mholt/caddy-l4/modules/l4subroute"
	_ "github.com/mholt/caddy-l4/modules/l4tls"

	_ "github.com/caddyrelay/relay"
)

func main() {
	caddycmd.Main()
}
