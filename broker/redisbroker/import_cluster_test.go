package redisbroker

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
	"github.com/caddyrelay/relay/internal/redistest"
)

// startPrimaries starts a cluster of three primaries without replicas, and returns their addresses.
func startPrimaries(t *testing.T) (addrs []string) {
	t.Helper()
	var servers []*redistest.Server
	for range 3 {
		s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always", "--cluster-enabled", "yes")
		servers, addrs = append(servers, s), append(addrs, s.Addr())
	}
	create := append(append([]string{"--cluster", "create"}, addrs...), "--cluster-yes")
	if text := servers[0].CLI(create...); !strings.Contains(text, "All 16384 slots covered") {
		t.Fatal(text)
	}
	for _, s := range servers {
		until(t, "the cluster", func() bool { return strings.Contains(s.CLI("CLUSTER", "INFO"), "cluster_state:ok") })
	}
	return addrs
}

// Messages move to a Redis Cluster as they do to one server.
func TestMigrationToCluster(t *testing.T) {
	addrs := startPrimaries(t)
	var opened atomic.Int32
	h := migrationHarness()
	h.Audit = nil // it looks at one server
	h.Target.Backend = func(t testing.TB) brokertest.StoreBackend {
		prefix := fmt.Sprint("check", opened.Add(1)) // to each check the cluster is empty
		return brokertest.StoreBackend{Open: func() broker.Store {
			b, err := New(Options{Seeds: addrs, Prefix: prefix, MaxBackoff: 100 * time.Millisecond, Lease: 2 * time.Second, CheckInterval: time.Second})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}}
	}
	brokertest.RunMigration(t, h)
}
