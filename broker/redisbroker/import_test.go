package redisbroker

import (
	"path/filepath"
	"testing"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/boltbroker"
	"github.com/caddyrelay/relay/broker/brokertest"
)

func TestMigration(t *testing.T) {
	brokertest.RunMigration(t, brokertest.MigrationHarness{
		Target: storeHarness(),
		Audit: func(t testing.TB, target broker.Store) {
			b := target.(*Broker)
			auditAt(t, b.o.Address, b)
		},
		Source: func(t testing.TB) (brokertest.StoreBackend, func() brokertest.SourceExport) {
			path := filepath.Join(t.TempDir(), "relay.db")
			open := func() broker.Store { return boltbroker.New(boltbroker.Options{Path: path, NoSync: true, Node: "one"}) }
			return brokertest.StoreBackend{Open: open}, func() brokertest.SourceExport {
				e, err := boltbroker.OpenExport(path)
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
		},
	})
}
