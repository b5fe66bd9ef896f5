package redisbroker

import (
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
	"github.com/caddyrelay/relay/internal/redistest"
)

func TestConformance(t *testing.T) {
	brokertest.Run(t, brokertest.Harness{Nodes: true, Outages: true, Backend: func(t testing.TB) brokertest.Backend {
		server := redistest.Start(t)
		return brokertest.Backend{
			Stop: server.Kill, Start: server.Restart,
			Open: func() broker.Broker {
				b, err := New(Options{Address: server.Addr(), MaxBackoff: 100 * time.Millisecond})
				if err != nil {
					t.Fatal(err)
				}
				return b
			},
		}
	}})
}
