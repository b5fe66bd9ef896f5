package freeport

import (
	"net"
	"strconv"
	"testing"
)

// Ports are given once, and are none that the system may give to a connection.
func TestAddr(t *testing.T) {
	seen := make(map[string]bool)
	for range 200 {
		addr := Addr(t)
		_, text, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		port, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		if seen[addr] || port < lowest || port >= ephemeral() {
			t.Fatalf("%s: given before %v, and the system's begin at %d", addr, seen[addr], ephemeral())
		}
		seen[addr] = true
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
	}
}
