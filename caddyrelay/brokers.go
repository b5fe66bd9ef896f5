package caddyrelay

import (
	"log/slog"
	"path/filepath"

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
	// The logger outlives the configuration. For at_least_once channels it must be a
	// [broker.Store]; one that has a method Start() error has it called before it is used, by
	// each configuration with such a channel.
	Open(logger *slog.Logger) (broker.Broker, error)

	// Proves names the best durability that an append can prove, or is empty if the broker stores
	// nothing. A channel that demands more is an error of the configuration.
	Proves() broker.Durability

	// Apply hands over the settings that may change while the broker runs, such as
	// a password. The broker was opened by a module with the same key. It is
	// called whenever this configuration becomes the one that rules.
	Apply(broker.Broker)
}

// EmbeddedBroker serves one machine with nothing installed. Messages of at_least_once channels are
// kept in one file; each accepted one is on the disk (fsync) before the answer. Those of
// at_most_once channels pass within the process and are not stored.
type EmbeddedBroker struct {
	// The file. Default relay/relay.db in Caddy's data directory. Only one process can have it
	// open. It is made when the first at_least_once channel is configured.
	Path string `json:"path,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*EmbeddedBroker) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "relay.brokers.embedded", New: func() caddy.Module { return new(EmbeddedBroker) }}
}

// Provision implements [caddy.Provisioner].
func (b *EmbeddedBroker) Provision(caddy.Context) error {
	if b.Path == "" {
		b.Path = filepath.Join(caddy.AppDataDir(), "relay", "relay.db")
	}
	b.Path = caddy.NewReplacer().ReplaceAll(b.Path, "")
	path, err := filepath.Abs(b.Path) // so that one file has one name
	if err != nil {
		return err
	}
	b.Path = path
	return nil
}

// Key implements [BrokerModule].
func (b *EmbeddedBroker) Key() string { return b.Path }

// Open implements [BrokerModule].
func (b *EmbeddedBroker) Open(logger *slog.Logger) (broker.Broker, error) {
	return boltbroker.New(boltbroker.Options{Logger: logger, Path: b.Path}), nil
}

// Proves implements [BrokerModule].
func (*EmbeddedBroker) Proves() broker.Durability { return broker.Fsync }

// Apply implements [BrokerModule].
func (*EmbeddedBroker) Apply(broker.Broker) {}

// Interface guards
var (
	_ BrokerModule      = (*EmbeddedBroker)(nil)
	_ caddy.Provisioner = (*EmbeddedBroker)(nil)
)
