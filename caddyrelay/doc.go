// Package caddyrelay is the relay's face towards Caddy: the app "relay" with its
// brokers and channels, the HTTP handler relay_publish, the metrics, the commands, and
// the bus for other modules.
//
// # Rooms
//
//   - app.go: the app, its JSON, and its life from Provision to Cleanup.
//   - node.go, generation.go: what outlives a reload.
//   - classic*.go: programs that publish and subscribe in Redis beside an at_least_once channel.
//   - feed.go: one broker channel as this node hears it.
//   - channel.go, brokers.go, secret.go: parts of the configuration.
//   - caddyfile*.go: the Caddyfile's side of these.
//   - publish.go, httperror.go: from an HTTP request to the broker.
//   - sockets.go: from an accepted connection to the hub.
//   - bus.go: from and to other Caddy modules.
//   - metrics.go, command*.go: for the operator.
//
// # Life cycle
//
// Everything that must survive a reload lives in two [caddy.UsagePool]s: the node, one
// for the process, and the brokers, one for each place where messages are kept. Caddy
// provisions and starts a new configuration before it stops and cleans up the old one, so
// what both use is never let go of (I8).
//
// A configuration that has started is a generation. The newest one that has not been
// stopped rules; when a reload fails, its generation goes away and the one before
// rules again. Provision and Validate do no I/O and change nothing that is shared:
// "caddy validate" can run beside a live server.
package caddyrelay
