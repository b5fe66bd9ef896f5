package boltbroker

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	brokertest.Run(t, brokertest.Harness{Backend: func(testing.TB) brokertest.Backend {
		return brokertest.Backend{Open: func() broker.Broker { return New(Options{}) }}
	}})
}
