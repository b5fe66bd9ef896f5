//go:build unix

package cluster

import (
	"errors"
	"io"
	"net"
	"os/exec"
	"sync"
	"testing"

	"github.com/caddyrelay/relay/internal/freeport"
)

// loopback has all nodes on 127.0.0.1, where namespaces cannot be. A node reaches Redis through a proxy of its own, which
// can fall silent. Servers that Sentinels or a Cluster name are reached directly, so there a node cannot be cut off.
type loopback struct{ why error }

func (l *loopback) redisHost() string { return "127.0.0.1" }

func (l *loopback) String() string {
	return "all nodes on loopback, since there can be no network namespaces here: " + l.why.Error()
}

func (l *loopback) site(*testing.T, int) site { return new(proxySite) }

// proxySite is a node on loopback.
type proxySite struct{ proxy *proxy }

func (s *proxySite) address(t *testing.T) string { return freeport.Addr(t) }

func (s *proxySite) command(*exec.Cmd) {}

func (s *proxySite) redis(t *testing.T, addr string) string {
	if s.proxy == nil {
		s.proxy = newProxy(t, addr)
	}
	return s.proxy.ln.Addr().String()
}

var errNoCut = errors.New("a node on loopback finds these servers by itself, and cannot be cut from them")

func (s *proxySite) cut() error {
	if s.proxy == nil {
		return errNoCut
	}
	s.proxy.silence(true)
	return nil
}

func (s *proxySite) heal() error {
	if s.proxy != nil {
		s.proxy.silence(false)
	}
	return nil
}

// proxy passes connections on to one address, unless it is silent: then it takes bytes and connections and does nothing
// with them until it is not silent any more, as a network does that drops and whose ends send again.
type proxy struct {
	ln net.Listener
	to string

	mu     sync.Mutex
	silent bool
	turned *sync.Cond
	closed bool
	conns  []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", freeport.Addr(t))
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{ln: ln, to: to}
	p.turned = sync.NewCond(&p.mu)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			running.Go(func() { p.pass(conn) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		p.mu.Lock()
		p.closed = true
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.turned.Broadcast()
		p.mu.Unlock()
		running.Wait()
	})
	return p
}

func (p *proxy) silence(silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = silent
	p.turned.Broadcast()
}

// await waits while the proxy is silent. It reports whether it is still open.
func (p *proxy) await() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for p.silent && !p.closed {
		p.turned.Wait()
	}
	return !p.closed
}

func (p *proxy) pass(from net.Conn) {
	defer from.Close()
	if !p.keep(from) || !p.await() {
		return
	}
	to, err := net.Dial("tcp", p.to)
	if err != nil {
		return
	}
	defer to.Close()
	if !p.keep(to) {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{from, to}, {to, from}} {
		both.Go(func() {
			// An end that closes is not told to the other while the proxy is silent.
			defer way[1].Close()
			_, _ = io.Copy(way[1], &patient{p, way[0]})
			p.await()
		})
	}
	both.Wait()
}

// keep has a connection closed with the proxy.
func (p *proxy) keep(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.conns = append(p.conns, c)
	return !p.closed
}

// patient reads what it is to hand on only while the proxy is not silent.
type patient struct {
	p    *proxy
	from net.Conn
}

func (r *patient) Read(b []byte) (int, error) {
	n, err := r.from.Read(b)
	if !r.p.await() {
		return 0, net.ErrClosed
	}
	return n, err
}
