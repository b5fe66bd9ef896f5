// Package redisbroker is the broker for many machines: one Redis or Valkey server that all nodes
// share, the primary that Sentinels name, or a Redis Cluster.
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
// # At least once
//
// Messages are kept in lists, one for each mailbox, and all that must be one step is a script: storing and
// marking the key, taking a mailbox, finishing messages. The keys of a mailbox are in one partition, so in
// one slot of a cluster; see keys.go. Two connections to each primary do all of it, each with a queue whose contents go out
// in one pipeline. The script that stores a message publishes it on the channel of the node that has its destination; on a cluster
// the node that asked for it does so. What nodes tell each other is a hint only: what it would have said is looked for
// every few seconds, and whenever something may have been missed.
//
// # Rooms
//
//   - broker.go: the broker, its options, and its end.
//   - sentinel.go: who the primary is.
//   - client.go: how go-redis is set up, and errors in an operator's words.
//   - publish.go: group commit; what waits is sent in one pipeline.
//   - ear.go: what is heard of one primary. subscribe.go: who listens to what.
//   - cluster.go: what kind of Redis there is, and who has which slots. shard.go: one primary.
//   - state.go: what is proven, what is lost, and who is told.
//   - session.go: one connection that hears everything, and its probes.
//   - store.go: the store and its beginning. preflight.go: whether the server can be trusted. clock.go: its clock.
//   - keys.go, entry.go, record.go: names and formats. scripts: what the server runs; script.go, reply.go: calling it.
//   - lane.go: the queues and their connections.
//   - append.go, mailbox.go, settle.go, cancel.go, dead.go: the life of a message. find.go: messages by their ref.
//   - ownerlease.go: how long owners may write. line.go: who waits for a mailbox, and which nodes live. presence.go: who is online.
//   - ring.go: who tells an owner of news. notices.go: what nodes tell each other; notified.go: what this one is told. watch.go: looking for what was not heard.
//   - lease.go: what one process of all does.
//   - sweep.go, usage.go: deadlines, and what is kept.
//   - import.go, importread.go, importprove.go: messages that move in from another store, and whether they have arrived.
package redisbroker
