// Package relaytest has the two sides that tests put the relay between, publishers and clients that go on whatever
// happens to it, and the checker of what they wrote down.
//
// # Rooms
//
//   - crew.go: the publishers and clients of a run.
//   - client.go: a back end that speaks the JSON protocol.
//   - trace.go: what they wrote down, and what it shows.
package relaytest
