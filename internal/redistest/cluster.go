package redistest

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/freeport"
)

// Cluster is a Redis Cluster of three primaries, each with one replica.
type Cluster struct {
	Servers []*Server // the first three are the primaries to begin with

	t testing.TB
}

const (
	clusterPrimaries = 3
	clusterSlots     = 16384
)

// StartCluster starts six servers, and waits until they are a cluster that serves all slots. args are those of the servers.
// A primary that is gone is replaced within a second or two.
func StartCluster(t testing.TB, args ...string) *Cluster {
	t.Helper()
	c := &Cluster{t: t}
	for range 2 * clusterPrimaries {
		_, bus, _ := net.SplitHostPort(freeport.Addr(t))
		c.Servers = append(c.Servers, Start(t, append([]string{
			"--cluster-enabled", "yes", "--cluster-port", bus, "--cluster-node-timeout", "1000", "--cluster-config-file", "nodes.conf",
			"--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0",
		}, args...)...))
	}
	first := c.Servers[0]
	host, _, _ := net.SplitHostPort(first.Addr())
	for i, s := range c.Servers {
		if i < clusterPrimaries {
			s.CLI("CLUSTER", "ADDSLOTSRANGE", strconv.Itoa(clusterSlots*i/clusterPrimaries), strconv.Itoa(clusterSlots*(i+1)/clusterPrimaries-1))
		}
		s.CLI("CLUSTER", "SET-CONFIG-EPOCH", strconv.Itoa(i+1))
		if i > 0 {
			bus := s.CLI("CONFIG", "GET", "cluster-port")
			first.CLI("CLUSTER", "MEET", host, s.Port(), strings.TrimSpace(bus[strings.LastIndexByte(bus, '\n')+1:]))
		}
	}
	c.wait("the servers to know each other", func() bool { return c.all("cluster_known_nodes:6") })
	for i, s := range c.Servers[clusterPrimaries:] {
		s.CLI("CLUSTER", "REPLICATE", c.Servers[i].CLI("CLUSTER", "MYID"))
	}
	c.Settle()
	return c
}

// Addrs returns the addresses of all servers.
func (c *Cluster) Addrs() (addrs []string) {
	for _, s := range c.Servers {
		addrs = append(addrs, s.Addr())
	}
	return addrs
}

// Primaries returns the servers that are primaries now.
func (c *Cluster) Primaries() (all []*Server) {
	for _, s := range c.Servers {
		if s.runs() && strings.HasPrefix(s.CLI("ROLE"), "master") {
			all = append(all, s)
		}
	}
	return all
}

// Failover kills one of the primaries, waits until its replica has taken over, and starts it again. It returns the server
// that was killed.
func (c *Cluster) Failover() *Server {
	c.t.Helper()
	killed := c.Primaries()[0]
	killed.Kill()
	c.wait("the replica to take over", func() bool { return len(c.Primaries()) == clusterPrimaries })
	killed.Restart()
	c.Settle()
	return killed
}

// Settle waits until all servers agree that all slots are served, and each primary has its replica.
func (c *Cluster) Settle() {
	c.t.Helper()
	c.wait("the cluster to settle", func() bool {
		if !c.all("cluster_state:ok") || !c.all("cluster_slots_ok:16384") {
			return false
		}
		primaries := c.Primaries()
		if len(primaries) != clusterPrimaries {
			return false
		}
		for _, s := range primaries {
			if !strings.Contains(s.CLI("INFO", "replication"), "state=online") {
				return false
			}
		}
		for _, s := range c.Servers { // gossip tells late who is the primary now
			nodes := s.CLI("CLUSTER", "NODES")
			if strings.Contains(nodes, "fail") || strings.Count(nodes, "master") != clusterPrimaries {
				return false
			}
		}
		return true
	})
}

func (c *Cluster) all(text string) bool {
	for _, s := range c.Servers {
		if !strings.Contains(s.CLI("CLUSTER", "INFO"), text) {
			return false
		}
	}
	return true
}

func (c *Cluster) wait(what string, ok func() bool) {
	c.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(3 * patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			var text strings.Builder
			for _, s := range c.Servers {
				if s.runs() {
					fmt.Fprintf(&text, "%s:\n%s\n", s.Addr(), s.CLI("CLUSTER", "NODES"))
				}
			}
			c.t.Fatalf("waited in vain for %s\n%s", what, text.String())
		}
	}
}

// runs reports whether the server was started and not killed.
func (s *Server) runs() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cmd != nil
}
