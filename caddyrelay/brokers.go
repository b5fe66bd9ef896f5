package caddyrelay

import (
	"log/slog"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/boltbroker"
)

func init() { caddy.RegisterModule(new(EmbeddedBroker)) }

// BrokerModule is what a guest module in the namespace relay.brokers provides. Its
// Provision and Validate must do no I/O.
type BrokerModule interface {
	caddy.Module

	// Key names the place where the broker keeps its messages. Configurations with
	// the same key share one broker, across reloads; so it holds all that cannot
	// change while a broker runs, and no secret.
	Key() string

	// Open makes the broker. It does no I/O: the broker connects when it is used.
	// The logger outlives the configuration.
	Open(logger *slog.Logger) (broker.Broker, error)

	// Apply hands over the settings that may change while the broker runs, such as
	// a password. The broker was opened by a module with the same key. It is
	// called whenever this configuration becomes the one that rules.
	Apply(broker.Broker)
}

// EmbeddedBroker serves one machine with nothing installed. It passes at_most_once messages
// within the process and stores nothing.
type EmbeddedBroker struct{}

// CaddyModule returns the Caddy module information.
func (*EmbeddedBroker) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "relay.brokers.embedded", New: func() caddy.Module { return new(EmbeddedBroker) }}
}

// Key implements [BrokerModule].
func (*EmbeddedBroker) Key() string { return "embedded" }

// Open implements [BrokerModule].
func (*EmbeddedBroker) Open(logger *slog.Logger) (broker.Broker, error) {
	return boltbroker.New(boltbroker.Options{Logger: logger}), nil
}

// Apply implements [BrokerModule].
func (*EmbeddedBroker) Apply(broker.Broker) {}

// Interface guards
var _ BrokerModule = (*EmbeddedBroker)(nil)
