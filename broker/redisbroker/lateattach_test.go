package redisbroker

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// late is a network that keeps what a node says until it is let go, as TCP does while a cable is cut: a connection that
// the node has given up meanwhile ends behind what was said on it.
type late struct {
	mu   sync.Mutex
	open *sync.Cond
	held bool
}

func (l *late) hold(held bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = held
	l.open.Broadcast()
}

func (l *late) pass() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.held {
		l.open.Wait()
	}
}

func newLate(t *testing.T, target string) (*late, string) {
	l := new(late)
	l.open = sync.NewCond(&l.mu)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close(); l.hold(false) })
	go func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", target)
			if err != nil {
				client.Close()
				continue
			}
			go func() { _, _ = io.Copy(client, server); client.Close() }()
			go func() {
				defer server.Close()
				buf := make([]byte, 64<<10)
				for {
					n, err := client.Read(buf)
					l.pass()
					if n > 0 {
						if _, err := server.Write(buf[:n]); err != nil {
							return
						}
					}
					if err != nil {
						return
					}
				}
			}()
		}
	}()
	return l, ln.Addr().String()
}

// I4: an attach that was given up, and reaches Redis late, must not displace an owner that came after it was given up.
func TestI4_LateAttach(t *testing.T) {
	server := redistest.Start(t, durable...)
	network, addr := newLate(t, server.Addr())
	cut := openStore(t, Options{Address: addr, Timeout: 500 * time.Millisecond}, broker.Policy{})
	fine := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	mustAttach(t, cut, "other", new(owner), 1) // so that its connection and its scripts are there

	network.hold(true)
	gone := new(owner)
	_, _, err := cut.Attach(timeout(t), "c", "d", gone, broker.AttachOptions{})
	if !errors.Is(err, broker.ErrUnavailable) {
		t.Fatalf("attached over a network that is cut: %v", err)
	}
	living := new(owner)
	mustAttach(t, fine, "d", living, 1)
	network.hold(false)

	// The node that was cut off is in touch again, and has told Redis what it had to.
	until(t, "the node to be back", func() bool { return cut.Ready() == nil })
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; ctx.Err() == nil; <-tick.C {
		if _, lost := living.heard(); len(lost) > 0 {
			t.Fatalf("the only owner that lives is told %v", lost)
		}
	}
}
