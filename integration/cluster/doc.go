// Package cluster has the tests of three relay nodes and a Redis that are harmed while publishers and clients go on: whole
// processes, each node in a network namespace of its own where the machine allows it.
//
// # Rooms
//
//   - chaos_test.go: what is run, what is printed, and what counts as broken.
//   - forms_test.go: Redis as one server, with Sentinels, as a Cluster.
//   - faults_test.go: the harm.
//   - fleet_test.go: three nodes, and how publishers and clients choose among them.
//   - process_test.go: one node's process.
//   - site_test.go: where nodes run, and how one is cut from Redis: namespace_test.go, or proxy_test.go without them.
//
// "make chaos" runs it at length; "go test" in a short form.
package cluster
