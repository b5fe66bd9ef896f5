//go:build unix

package cluster

import (
	"fmt"
	"os/exec"
	"testing"
)

// network is where the processes of a test are.
type network interface {
	// redisHost is the address that redis-servers listen on.
	redisHost() string

	// site returns the place for one node.
	site(t *testing.T, i int) site

	// String says what it is.
	String() string
}

// site is where one node runs.
type site interface {
	// address returns host:port for something that the node listens on.
	address(t *testing.T) string

	// redis returns the address at which this node finds a redis-server.
	redis(t *testing.T, addr string) string

	// command makes a process run there.
	command(cmd *exec.Cmd)

	// cut stops everything between the node and Redis, in both directions and without a word: no connection ends. What
	// the node listens on stays reachable. heal undoes it; both may be repeated.
	cut() error
	heal() error
}

// newNetwork returns namespaces if the machine allows them, and else loopback.
func newNetwork(t *testing.T) network {
	t.Helper()
	n, err := newNamespaces(t)
	if err == nil {
		return n
	}
	return &loopback{why: err}
}

// run runs a program.
func run(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return string(out), nil
}
