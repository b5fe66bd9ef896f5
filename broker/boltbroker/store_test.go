package boltbroker

import (
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
)

// crash ends the broker without telling anybody. What was answered is on the disk.
func (b *Broker) crash() {
	b.mu.Lock()
	b.owners = make(map[string]*attachment)
	b.mu.Unlock()
	_ = b.Close()
}

func harness() brokertest.StoreHarness {
	return brokertest.StoreHarness{
		Durability: broker.Fsync, Unproven: broker.Replicas(1, 1),
		Backend: func(t testing.TB) brokertest.StoreBackend {
			path := filepath.Join(t.TempDir(), "relay.db")
			var offset atomic.Int64
			return brokertest.StoreBackend{
				Open: func() broker.Store {
					return New(Options{
						Path: path, SweepInterval: 20 * time.Millisecond,
						Clock: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) },
					})
				},
				Crash:   func(s broker.Store) { s.(*Broker).crash() },
				Advance: func(d time.Duration) { offset.Add(int64(d)) },
			}
		},
	}
}

func TestStoreConformance(t *testing.T) { brokertest.RunStore(t, harness()) }

func TestProperties(t *testing.T) { brokertest.Properties(t, harness()) }
