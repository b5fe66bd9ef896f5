//go:build unix

package cluster

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// fleet is three nodes on one Redis.
type fleet struct {
	nodes   []*node
	form    redisForm
	channel string // options
}

func startFleet(t *testing.T, n network, form redisForm, channel, logs string) *fleet {
	t.Helper()
	f := &fleet{form: form, channel: channel}
	for i := range 3 {
		f.nodes = append(f.nodes, newNode(t, fmt.Sprintf("node%d", i+1), n.site(t, i), logs))
	}
	for _, n := range f.nodes {
		n.launch(f.config(n, ""))
	}
	for _, n := range f.nodes {
		n.serves()
	}
	return f
}

// config is a node's whole Caddyfile; options are further ones of the broker.
func (f *fleet) config(n *node, options string) string {
	host, port, _ := net.SplitHostPort(n.http)
	return strings.NewReplacer("{ADMIN}", n.admin, "{HOST}", host, "{HTTP}", port, "{TCP}", n.tcp,
		"{BROKER}", f.form.broker(n)+"\n"+options, "{CHANNEL}", f.channel).Replace(`{
	admin {ADMIN}
	grace_period 2s
	relay {
		broker redis {
			{BROKER}
		}
		channel pay_mq_channel {
			ack_timeout 30s
			{CHANNEL}
		}
		reconnect_spread 1s
	}
	layer4 {
		{TCP} {
			route {
				relay pay_mq_channel {
					auth none
					protocol json
				}
			}
		}
	}
}
http://:{HTTP} {
	bind {HOST}
	relay_publish /pay/* pay_mq_channel {
		id {path.1}
		open
	}
}
`)
}

// addresses lists the nodes, as a client's or a publisher's configuration does.
func (f *fleet) addresses(of func(*node) string) *addresses {
	a := &addresses{last: make(map[int]int), benched: make(map[string]time.Time)}
	for _, n := range f.nodes {
		a.list = append(a.list, of(n))
	}
	return a
}

// addresses goes around a list of nodes for each of those who ask, and passes over what has just failed, as load balancers
// do: clients and publishers begin at different ones.
type addresses struct {
	list []string

	mu      sync.Mutex
	last    map[int]int
	benched map[string]time.Time
}

// next returns where the i-th tries next.
func (a *addresses) next(i int) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, asked := a.last[i]; !asked {
		a.last[i] = i - 1
	}
	for range a.list {
		a.last[i]++
		if addr := a.list[a.last[i]%len(a.list)]; time.Since(a.benched[addr]) > 500*time.Millisecond {
			return addr
		}
	}
	return a.list[a.last[i]%len(a.list)]
}

// failed passes over an address for a while.
func (a *addresses) failed(addr string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.benched[addr] = time.Now()
}
