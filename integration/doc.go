// Package integration has the tests that need real parts: Caddy processes built from this
// module with the race detector on, real TCP, a real redis-server, real Node programs.
//
// # Rooms
//
//   - process_test.go: a Caddy process, from its configuration to its exit.
//   - socket_test.go, post_test.go: a back end's and a sender's side.
//   - example_test.go: what the README promises of Caddyfile.example.
//   - reload_test.go, life_test.go: what reloads, removals and exits do to sockets.
//   - load_test.go: many sockets and senders, and the books that are kept on them.
//   - redis_test.go: several nodes, other publishers, Redis that fails.
//   - node_test.go: Node programs with the original's calls, beside and instead of our nodes.
//   - migrate_node_test.go: the migration page, step by step; shop_test.go: senders and back ends that move.
//   - classic_test.go: who takes in what other programs publish.
//   - command_test.go: the commands "caddy relay listen" and "caddy relay publish".
//   - badinput_test.go: what each kind of bad input gets.
//   - adapt_test.go: golden files for the Caddyfile's JSON and for error texts.
//   - docs_test.go: the Caddyfile blocks in the documents.
//
// They run on Unix: they send signals, and end process groups.
package integration
