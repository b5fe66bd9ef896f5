// Package broker is the vocabulary of the relay and the contract between its
// parts: what a message is, what a broker promises, and what it tells a node.
// It imports nothing outside the standard library, and everything else imports it.
//
// # Words
//
// A channel is a named class of messages with one delivery policy. A destination
// (ID) is who is to receive: the ID that a socket registers under. A [Message] is
// one notification for one destination of one channel. A [Publication] is a
// message in the shape in which it travels between programs. A [Broker] is where
// messages are kept and how nodes hear of them. A [Sink] is what a broker tells.
//
// The dependency points one way: a broker never knows the hub that holds the
// sockets. It calls the sink that it was given.
//
// # Promises
//
// Tests cite these by number.
//
//   - I1 Accepted means stored. On an at_least_once channel a 2xx leaves only after
//     the broker holds the message at the durability level that the answer names.
//   - I2 No silent loss. Every message of an at_least_once channel ends in a named
//     state that is counted and visible.
//   - I3 Order. First pushes of a destination are in sequence.
//   - I4 One owner. At most one session can finish a mailbox's messages.
//   - I5 Redelivery at once when a socket dies or is taken over.
//   - I6 Idempotent publish. The same key within the window gives the first answer.
//   - I7 A deadline is a fence. No write begins after it.
//   - I8 A reload drops no socket and loses no message, nor does a reload that
//     fails, nor one that changes the broker. Two exceptions: a socket whose
//     listener or channel was removed gets a goodbye; of the sockets that keep an
//     old configuration in memory (TLS), the oldest are asked to reconnect.
//   - I9 Refuse, do not drop. What cannot be taken is answered 429 or 503. On
//     at_most_once channels a drop is allowed, and counted by reason.
//   - I10 Bounded. Whatever a peer can make grow has a limit in bytes and in count.
//   - I11 Nothing a client sends can stop the process.
//
// All of them hold for at_least_once channels, whose messages a [Store] keeps. For
// at_most_once channels I3 (for one sender), I8, I9, I10 and I11 do. It is at
// least once, never exactly once: a message can arrive twice, under the same MID.
package broker
