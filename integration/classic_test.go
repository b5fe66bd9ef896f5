//go:build unix

package integration

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/redisbroker"
	"github.com/caddyrelay/relay/internal/redistest"
)

const inCharge = `caddy_relay_classic_in_charge{channel="pay_mq_channel"}`

// takers are two nodes that take in what others publish, and one that holds the sockets.
type takers struct {
	t      *testing.T
	config string
	all    []*node
	shops  []*shop
	redis  *redistest.Server
	pub    *redisbroker.Broker
}

func newTakers(t *testing.T) *takers {
	server := redistest.Start(t, "--appendonly", "yes")
	redis := "broker redis {\n\t\t\taddress " + server.Addr() + "\n\t\t}"
	k := &takers{t: t, redis: server, config: atLeastOnce(redis, "delivery at_least_once\n classic in"), all: []*node{newNode(t), newNode(t)}}
	for _, n := range k.all {
		n.start(k.config)
		n.proven()
	}
	sockets := newNode(t)
	sockets.start(atLeastOnce(redis, "delivery at_least_once"))
	for i := range 20 {
		k.shops = append(k.shops, newShop(t, fmt.Sprintf("c%02d", i), sockets.tcp))
	}
	sockets.awaitSessions("pay_mq_channel", len(k.shops))
	var err error
	if k.pub, err = redisbroker.New(redisbroker.Options{Address: server.Addr()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.pub.Close() })
	return k
}

// publish publishes as a program does that knows nothing of the relay.
func (k *takers) publish(s *shop) {
	text := fmt.Sprintf(`{"id":%q,"msg":{"n":%d}}`, s.id, s.next)
	if _, err := k.pub.Publish(k.t.Context(), "pay_mq_channel", broker.FromPayload([]byte(text))); err != nil {
		k.t.Error(err)
	}
	s.sent()
}

// roles waits until one node is in charge, and returns it and the other.
func (k *takers) roles() (holder, other *node) {
	k.t.Helper()
	waitFor(k.t, "one node in charge", func() bool {
		first, second := k.all[0].metric(inCharge) == 1, k.all[1].metric(inCharge) == 1
		holder, other = k.all[0], k.all[1]
		if second {
			holder, other = other, holder
		}
		return first != second
	})
	return holder, other
}

// I2, I8: whatever becomes of the node in charge, what another one heard is stored, once, and in order.
func TestI2_ClassicHandOver(t *testing.T) {
	k := newTakers(t)
	for _, c := range []struct {
		name string
		// event has something happen to the node in charge, and returns what undoes it. gone: another is in charge then.
		event func(n *node) (undo func())
		gone  bool
	}{
		{"nothing", func(*node) func() { return func() {} }, false},
		{"reloaded", func(n *node) func() {
			if err := n.reload(k.config); err != nil {
				t.Fatal(err)
			}
			return func() {}
		}, false},
		{"a reload that takes classic in out", func(n *node) func() {
			if err := n.reload(strings.Replace(k.config, "classic in", "", 1)); err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := n.reload(k.config); err != nil {
					t.Fatal(err)
				}
			}
		}, true},
		{"ended", func(n *node) func() { n.stop(); return func() { n.start(k.config) } }, true},
		{"killed", func(n *node) func() { n.kill(); return func() { n.start(k.config) } }, true},
		{"stopped for a while", func(n *node) func() {
			_ = n.cmd.Process.Signal(syscall.SIGSTOP)
			return func() { _ = n.cmd.Process.Signal(syscall.SIGCONT) }
		}, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			k.t = t
			load := startShops(k.shops, k.publish)
			pauseFor(700 * time.Millisecond) // so that marks come in the middle of it
			holder, other := k.roles()
			began := time.Now()
			undo := c.event(holder)
			took := "stayed"
			if c.gone {
				waitFor(t, "another node in charge", func() bool { return other.metric(inCharge) == 1 })
				took = fmt.Sprintf("moved in %.2fs", time.Since(began).Seconds())
				if time.Since(began) > 10*time.Second {
					t.Errorf("the charge %s", took)
				}
			}
			undo()
			pauseFor(300 * time.Millisecond)
			k.roles()
			load.stop()
			sum := load.settle()
			t.Logf("the charge %s; published %d, delivered %d, lost %d, doubled %d, out of order %d", took, sum.sent, sum.delivered, sum.lost, sum.doubled, sum.late)
			if sum.lost+sum.doubled+sum.invented+sum.late > 0 {
				t.Errorf("%+v", sum)
			}
		})
	}
}
