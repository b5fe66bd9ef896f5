// Package relay is the relay as a plugin for Caddy: importing it registers all of its modules. It
// is what "xcaddy build --with github.com/caddyrelay/relay" imports.
//
// The code is in the packages below it: caddyrelay (the app, the HTTP handler), l4relay (the layer-4
// handler), broker (the vocabulary and the brokers), internal/hub (the sockets) and
// internal/wire (what is said on them).
package relay

import (
	_ "github.com/caddyrelay/relay/caddyrelay" // the app relay, relay_publish, the brokers, the commands
	_ "github.com/caddyrelay/relay/l4relay"    // the layer-4 handler relay
)
