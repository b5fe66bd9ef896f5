// Package boltbroker is the broker for one machine with nothing installed.
//
// At_most_once messages pass from the publisher to the sockets within the process, on the
// publisher's own goroutine, and never touch the disk. Those of at_least_once channels are kept in one bbolt file.
//
// # The store
//
// One goroutine, the committer, is the only one that writes. It takes all operations that wait, does them in one
// transaction, and answers them when that is on the disk: many messages share one fsync (I1). What it must know to check an
// operation it remembers in an index, which is rebuilt when the file is opened. Readers use bbolt's own snapshots, and so see
// only what is committed.
//
// When a commit fails the store stays closed until the file is opened by a new process, since nobody knows what of it is on
// the disk.
//
// # Rooms
//
//   - broker.go: options, publish and subscribe, the end.
//   - store.go: opening, policies, usage. clock.go: a clock that never goes back.
//   - file.go, format.go: the file, its versions, its keys and values. verify.go: whether it is sound.
//   - commit.go: operations and their group commit. index.go: what the committer remembers.
//   - append.go, mailbox.go, settle.go, cancel.go: the life of a message.
//   - record.go: what is known of messages, and who waits for it. dead.go: dead letters.
//   - sweep.go: deadlines, and the end of records.
//   - export.go, moved.go: messages that move to another store, and the note of it.
package boltbroker
