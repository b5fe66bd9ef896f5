// Package model is the ownership of one mailbox as a machine that is small enough to look at all that it can do: two nodes,
// two messages, a Redis primary with a replica, and everything that can go wrong between them. The search visits every
// order of every step and checks the promises in each state; docs/adr/0010 says what was found.
//
// # What stands for what
//
//   - store is what scripts/*.lua keep of a mailbox: the list, the last sequence, the owner's name and its fence.
//   - session is internal/hub's delivery: what it has read (delivery.read), what is in flight, whether it was told of its end.
//   - an offer is what append.lua publishes, or notices.go: it may be lost, late, twice, in any order.
//   - look is watch.go: a session compares what it believes with what the store holds.
//   - a lease ends when a node has not heard of the store for too long: ownerlease.go.
//
// A rule is one line that the real code has and that can be switched off here. Without it the search must find a
// state that breaks a promise, with the steps that lead there; that shows that the rule is needed, and that the search can see.
package model
