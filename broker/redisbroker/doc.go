// Package redisbroker is the broker for many machines: one Redis or Valkey server that all nodes
// share.
//
// # At most once
//
// A publication is a plain PUBLISH on a Redis channel that has the relay channel's own name, and
// every node subscribes to it, so any other program can take part. Redis promises
// nothing: what is published while a subscriber is away is gone for it, and a subscriber
// whose connection has silently died believes that it hears. This package adds what can be
// known: a subscription counts as proven only while a probe, published to the node itself on
// the same path as everything else, comes back on the same connection.
//
// # Rooms
//
//   - broker.go: the broker, its options, and its end.
//   - client.go: how go-redis is set up, and errors in an operator's words.
//   - publish.go: group commit; what waits is sent in one pipeline.
//   - subscribe.go: who listens to what.
//   - state.go: what is proven, what is lost, and who is told.
//   - session.go: one connection that hears everything, and its probes.
package redisbroker
