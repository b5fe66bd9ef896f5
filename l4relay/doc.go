// Package l4relay is the relay's face towards caddy-l4: the handler "relay", which holds the raw TCP
// sockets of back ends.
//
// # Rooms
//
//   - handler.go: the module, from its JSON to an accepted connection.
//   - addresses.go: at which addresses the handler's sockets are accepted.
//   - conn.go: a caddy-l4 connection as the hub wants it.
//   - tcp_*.go: what the kernel is asked to watch.
//
// caddy-l4 closes a connection when its handler returns, tells the handler of nothing, and leaves
// open connections alone when a configuration goes; so the handler blocks for as long as
// its session lasts, through any number of reloads, and keeps nothing that would keep its
// configuration in memory.
package l4relay
