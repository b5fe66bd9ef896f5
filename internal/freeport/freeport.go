// Package freeport reserves loopback ports for servers that tests start, on numbers that the system gives to nobody: a
// port that was merely found free a moment ago may by then be the local end of somebody's connection.
package freeport

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"testing"
)

// The ports to choose from, below those that the system chooses from itself unless it was told otherwise.
const (
	lowest  = 12000
	highest = 32767
)

// Addr returns 127.0.0.1 with a port that no other test is given until t ends, in whichever process.
func Addr(t testing.TB) string {
	t.Helper()
	end := ephemeral()
	for range 1000 {
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(lowest+rand.N(end-lowest)))
		release, ok := claim(addr)
		if !ok {
			continue
		}
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			release()
			continue
		}
		_ = ln.Close()
		t.Cleanup(release)
		return addr
	}
	t.Fatalf("no free port between %d and %d on 127.0.0.1", lowest, end)
	return ""
}

// claim keeps other tests from a port. On Linux it is an abstract Unix socket, which goes with its process however that
// ends; elsewhere ports are not claimed, and rarely collide.
func claim(addr string) (release func(), ok bool) {
	if runtime.GOOS != "linux" {
		return func() {}, true
	}
	ln, err := net.Listen("unix", "@caddyrelay-test-"+addr)
	if err != nil {
		return nil, false
	}
	return func() { _ = ln.Close() }, true
}

// ephemeral returns the first port that the system gives out itself.
func ephemeral() int {
	var first, last int
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return highest + 1
	}
	if _, err := fmt.Sscan(string(text), &first, &last); err != nil || first < lowest+2000 {
		return highest + 1
	}
	return first
}
