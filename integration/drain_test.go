//go:build unix

package integration

import (
	"context"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
	"github.com/caddyrelay/relay/internal/relaytest"
)

// admin asks a node's admin endpoint.
func (n *node) adminAsk(method, path string) answer {
	n.t.Helper()
	req, err := http.NewRequest(method, "http://"+n.admin+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("Origin", "http://"+n.admin)
	return do(n.t, req)
}

// I2, I8: a node is emptied by an operator, another one by SIGTERM, under load: nothing is lost, and clients that answer what they
// were busy with get nothing twice.
func TestI2_Drain(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	config := atLeastOnce("broker redis {\n\t\t\taddress "+server.Addr()+"\n\t\t}\n\t\treconnect_spread 200ms", "")
	a, b := newNode(t), newNode(t)
	a.start(config)
	b.start(config)
	nodes := []*node{a, b}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var tries atomic.Int64
	any := func(address func(*node) string) func(int) string {
		return func(int) string { return address(nodes[tries.Add(1)%2]) }
	}
	crew := relaytest.Start(ctx, t, relaytest.Plan{
		Destinations: 12, Work: 5 * time.Millisecond,
		Post: any(func(n *node) string { return n.http }), Dial: any(func(n *node) string { return n.tcp }),
	})
	pauseFor(500 * time.Millisecond)
	if got := a.adminAsk(http.MethodPost, "/relay/drain?rate=20"); got.status != 202 || got.fields["draining"] != true {
		t.Fatalf("%+v", got)
	}
	if got := a.adminAsk(http.MethodGet, "/relay/ready?for=sockets"); got.status != 503 || !strings.Contains(got.text, "draining") {
		t.Errorf("%+v", got)
	}
	if got := a.adminAsk(http.MethodGet, "/relay/ready?for=publish"); got.status != 200 {
		t.Errorf("%+v", got)
	}
	a.wait("the node to be empty", func() bool { return a.adminAsk(http.MethodGet, "/relay/drain").fields["sockets"] == 0.0 })
	a.stop()
	pauseFor(300 * time.Millisecond)
	a.start(config)
	b.stop() // by SIGTERM, and all clients come to a
	pauseFor(500 * time.Millisecond)
	b.start(config)
	pauseFor(300 * time.Millisecond)
	stop()
	f := crew.Finish()
	t.Logf("drained: %s", f)
	if f.Faults() > 0 || f.Accepted == 0 {
		t.Error("the promises were broken")
	}
	if f.Duplicates > 0 {
		t.Errorf("%d messages came twice", f.Duplicates)
	}
}
