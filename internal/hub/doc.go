// Package hub holds the sockets of one node: which sessions are registered under
// which destination of which channel, what waits to be written to each, and why each
// ended. One [Hub] lives for the whole process, through every reload.
//
// # Rooms
//
//   - hub.go: the registry, and delivery to those who registered.
//   - session.go: one registered socket, from registration to its [End].
//   - hello.go: the first frame, and who may register.
//   - read.go: the read loop, heartbeats.
//   - write.go: the queue and the write loop.
//   - endpoint.go: the settings of the sockets that one listener accepts.
//   - reason.go: why a session ended and why a message was dropped.
//
// # Who runs what
//
// The read loop of a session runs on the goroutine that called [Hub.Serve]; a write
// goroutine exists only while there is something to write. Both are joined before
// Serve returns. Nothing here waits for a peer: a socket that does not take what is
// pushed to it is closed by name (I9, I10), and so nobody else is delayed.
//
// A panic while serving a socket ends that session alone (I11).
//
// The hub knows no broker, no HTTP and no Caddy. It is told what to deliver.
package hub
