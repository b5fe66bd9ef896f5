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
//   - delivery.go: a session's side of its mailbox, on an at_least_once channel. tenure.go: what the
//     store knows of it. worker.go: who speaks with the store. flight.go: one message. window.go: what may be
//     pushed, and what is overdue. ack.go: what clients say of messages.
//   - standby.go: sessions that wait for another one to end. fight.go: those that take an ID from each other.
//   - drain.go: leaving.
//   - endpoint.go: the settings of the sockets that one listener accepts.
//   - reason.go: why a session ended and why a message was dropped.
//
// # Who runs what
//
// The read loop of a session runs on the goroutine that called [Hub.Serve]; a write
// goroutine exists only while there is something to write, and a delivery worker only
// while there is something to read from the mailbox, to push or to settle. All are joined before
// Serve returns. Nothing here waits for a peer: a socket that does not take what is
// pushed to it is closed by name (I9, I10), and so nobody else is delayed.
//
// A panic while serving a socket ends that session alone (I11).
//
// # Locks
//
// The lock of a channel may be held when that of a session is taken, never the other way
// round. A store's methods that do I/O are called with neither: a store holds a lock of its own
// while it tells an owner that it is none any more, and that takes the session's.
//
// The hub knows no HTTP, no Caddy and no driver. It is told what to deliver, or which
// [broker.Store] has it.
package hub
