//go:build unix

package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
	"github.com/caddyrelay/relay/internal/relaytest"
)

// redisForm is Redis in one of its forms.
type redisForm interface {
	// broker is what a node's configuration says of it.
	broker(n *node) string

	// killPrimary kills a server that takes writes, and returns when all is as it was, perhaps with another primary.
	killPrimary()

	// stall stops a server that takes writes for a while.
	stall(s scale)

	// calm waits until all servers agree how things are, as after a failover: only then is another one bound to go well.
	calm()
}

// forms are the forms of Redis. channel is the option that demands the durability which makes the failures harmless, if
// the broker's configuration does not.
var forms = []struct {
	name    string
	channel string
	start   func(t *testing.T, n network) redisForm
}{
	{"standalone", "durability aof_always", startStandalone},
	{"sentinel", "", startSentinel},
	{"cluster", "", startRedisCluster},
}

// serverArgs have a server listen for the nodes, and keep what it takes.
func serverArgs(n network) []string {
	return []string{"--bind", n.redisHost(), "--protected-mode", "no", "--appendonly", "yes"}
}

// standalone is one server. It forgets nothing that it has answered, since it syncs its file before.
type standalone struct {
	t      *testing.T
	server *redistest.Server
}

func startStandalone(t *testing.T, n network) redisForm {
	return &standalone{t, redistest.Start(t, append(serverArgs(n), "--appendfsync", "always")...)}
}

func (s *standalone) broker(n *node) string { return "address " + n.site.redis(s.t, s.server.Addr()) }

func (s *standalone) killPrimary() {
	s.server.Kill()
	relaytest.Pause(time.Second)
	s.server.Restart()
}

func (s *standalone) calm() {}

func (s *standalone) stall(scale scale) {
	s.server.Pause()
	relaytest.Pause(scale.stall)
	s.server.Resume()
}

// sentinel is a primary and a replica, watched by three Sentinels.
type sentinel struct {
	*redistest.Sentinels
}

func startSentinel(t *testing.T, n network) redisForm {
	return &sentinel{redistest.StartSentinels(t, 1, serverArgs(n)...)}
}

func (s *sentinel) broker(*node) string {
	return "address " + strings.Join(s.Addrs, " ") + "\nmaster_name " + s.Name + "\ndurability replicas 1 500ms"
}

func (s *sentinel) killPrimary() { s.Failover() }

func (s *sentinel) calm() { s.Settle() }

// stall may have the Sentinels promote the replica: then there are two primaries, until they tell the one before.
func (s *sentinel) stall(scale scale) {
	before := s.Primary()
	before.Pause()
	relaytest.Pause(scale.watchedStall)
	before.Resume()
	s.Settle()
}

// redisCluster is three primaries with a replica each.
type redisCluster struct{ *redistest.Cluster }

func startRedisCluster(t *testing.T, n network) redisForm {
	return &redisCluster{redistest.StartCluster(t, serverArgs(n)...)}
}

func (c *redisCluster) broker(*node) string {
	return "address " + strings.Join(c.Addrs(), " ") + "\nmode cluster\ndurability replicas 1 500ms"
}

func (c *redisCluster) killPrimary() { c.Failover() }

func (c *redisCluster) calm() { c.Settle() }

func (c *redisCluster) stall(scale scale) {
	primary := c.Primaries()[0]
	primary.Pause()
	relaytest.Pause(scale.watchedStall)
	primary.Resume()
	c.Settle()
}
