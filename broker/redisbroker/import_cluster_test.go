package redisbroker

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
	"github.com/caddyrelay/relay/internal/redistest"
)

// Messages move to a Redis Cluster as they do to one server.
func TestMigrationToCluster(t *testing.T) {
	addrs := redistest.StartCluster(t, "--appendonly", "yes", "--appendfsync", "always").Addrs()
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
