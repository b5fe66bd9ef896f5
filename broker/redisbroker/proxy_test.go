package redisbroker

import (
	"bytes"
	"net"
	"sync"
	"testing"
)

// kind is what a connection to Redis is used for.
type kind int

const (
	unknown kind = iota
	subscribing
	publishing
	storing // the store's two lanes
	others
)

// proxy stands between a broker and its server, and does to connections what networks do.
type proxy struct {
	t      *testing.T
	ln     net.Listener
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	links map[*link]bool
	mute  map[kind]bool // replies to these are held back
}

// link is one connection through the proxy.
type link struct {
	client, server net.Conn

	// Guarded by proxy.mu.
	kind  kind
	muted bool
	held  []byte
}

func newProxy(t *testing.T, target string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, ln: ln, target: target, links: make(map[*link]bool), mute: make(map[kind]bool)}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		ln.Close()
		p.cut(unknown)
		p.wg.Wait()
	})
	return p
}

func (p *proxy) addr() string { return p.ln.Addr().String() }

func (p *proxy) accept() {
	for {
		client, err := p.ln.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{client: client, server: server}
		p.mu.Lock()
		p.links[l] = true
		p.mu.Unlock()
		p.wg.Go(func() { p.forward(l) })
		p.wg.Go(func() { p.backward(l) })
	}
}

// forward passes commands on, and learns from them what the connection is for.
func (p *proxy) forward(l *link) {
	defer p.drop(l)
	buf := make([]byte, 64<<10)
	for {
		n, err := l.client.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		switch {
		case l.kind != unknown:
		case bytes.Contains(buf[:n], []byte("\r\nsubscribe\r\n")):
			l.kind = subscribing
		case bytes.Contains(buf[:n], []byte("\r\npublish\r\n")):
			l.kind = publishing
		case bytes.Contains(buf[:n], []byte(scriptAppend.sha)):
			l.kind = storing
		case bytes.Contains(buf[:n], []byte("\r\nevalsha\r\n")):
			l.kind = others
		}
		if p.mute[l.kind] {
			l.muted = true
		}
		p.mu.Unlock()
		if _, err := l.server.Write(buf[:n]); err != nil {
			return
		}
	}
}

// backward passes replies on, or holds them back.
func (p *proxy) backward(l *link) {
	defer p.drop(l)
	buf := make([]byte, 64<<10)
	for {
		n, err := l.server.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		if l.muted {
			l.held = append(l.held, buf[:n]...)
			p.mu.Unlock()
			continue
		}
		_, err = l.client.Write(buf[:n])
		p.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (p *proxy) drop(l *link) {
	l.client.Close()
	l.server.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.links, l)
}

// cut ends the connections of a kind; unknown means all.
func (p *proxy) cut(k kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		if k == unknown || l.kind == k {
			l.client.Close()
			l.server.Close()
		}
	}
}

// silence holds back the replies to the connections of a kind that stand. New ones work.
func (p *proxy) silence(k kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		if l.kind == k {
			l.muted = true
		}
	}
}

// hold holds back the replies to all connections of a kind; release undoes it.
func (p *proxy) hold(k kind) {
	p.silence(k)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute[k] = true
}

func (p *proxy) release(k kind) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.mute, k)
	for l := range p.links {
		if l.kind == k {
			l.muted = false
			_, _ = l.client.Write(l.held)
			l.held = nil
		}
	}
}
