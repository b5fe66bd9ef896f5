package caddyrelay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyevents"
	"go.uber.org/zap"
	"go.uber.org/zap/exp/zapslog"
)

func init() { caddy.RegisterModule(new(App)) }

// App is the relay: it takes notifications that arrive over HTTP to the raw TCP sockets that
// back ends registered under their destination IDs, on this machine or on another one.
//
// The HTTP handler relay_publish and the layer-4 handler relay both refer to its channels.
type App struct {
	// How nodes hear of messages: a module in the namespace relay.brokers, chosen by
	// "type". Default: embedded, which serves one machine with nothing installed.
	BrokerRaw json.RawMessage `json:"broker,omitempty" caddy:"namespace=relay.brokers inline_key=type"`

	// The channels, by name. A name has 1 to 64 letters, digits, or any of _ . : -
	Channels map[string]*Channel `json:"channels,omitempty"`

	// The most sockets this node holds at once, registered or not. More are told to come
	// back later. Default 10000, or three quarters of the open-file limit if that is less:
	// a node that runs out of files stops accepting for good.
	MaxSockets int `json:"max_sockets,omitempty"`

	// The time over which clients that are sent away are asked to come back, each after a
	// random part of it. Default 5s.
	ReconnectSpread caddy.Duration `json:"reconnect_spread,omitempty"`

	// How long the sockets may take, when Caddy exits, to take their goodbye. Default 5s.
	ShutdownGrace caddy.Duration `json:"shutdown_grace,omitempty"`

	// How many sockets a second get their goodbye when Caddy exits. Default 1000, or as many as it
	// takes to tell all in half of shutdown_grace.
	DrainRate int `json:"drain_rate,omitempty"`

	// How many reloads a TLS socket may outlive before it is asked to reconnect. TLS keeps
	// the configuration that it began with in memory for as long as it lasts; plain
	// sockets do not. Default 16.
	MaxGenerations int `json:"max_generations,omitempty"`

	node         *node
	generation   *generation
	brokerModule BrokerModule
	logger       *zap.Logger
	pooled       bool // the node's reference is held
	drained      chan struct{}
	leaving      context.Context // ends when Caddy begins to exit
	leave        context.CancelFunc
}

// CaddyModule returns the Caddy module information.
func (*App) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "relay", New: func() caddy.Module { return new(App) }}
}

// Provision implements [caddy.Provisioner]. It does no I/O and changes nothing that a running
// configuration uses.
func (a *App) Provision(ctx caddy.Context) error {
	a.logger = ctx.Logger()
	if err := a.setDefaults(); err != nil {
		return err
	}
	if err := a.loadBroker(ctx); err != nil {
		return err
	}
	n, _, err := nodes.LoadOrNew(nodeKey, newNode)
	if err != nil {
		return err
	}
	a.node, a.pooled = n.(*node), true
	// The broker outlives this configuration, and so does what it logs to.
	b, err := openBroker(a.brokerModule, slog.New(zapslog.NewHandler(a.logger.Core(), zapslog.WithName("relay.broker"))))
	if err != nil {
		return fmt.Errorf("opening the broker: %w", err)
	}
	a.generation = &generation{
		number: a.node.nextNumber(), app: a, broker: b, key: brokerKey(a.brokerModule), channels: a.Channels,
		listens: make(map[string][]caddy.NetworkAddress), started: make(chan struct{}), stopped: make(chan struct{}),
	}
	if err := a.generation.findStore(); err != nil {
		return err
	}
	if err := registerMetrics(ctx, a.node); err != nil {
		return err
	}
	return a.watchExit(ctx)
}

func (a *App) setDefaults() error {
	if len(a.Channels) == 0 {
		return errors.New("the relay has no channel: write at least one, such as \"channel pay_mq_channel\"")
	}
	for _, name := range slices.Sorted(maps.Keys(a.Channels)) {
		if a.Channels[name] == nil {
			a.Channels[name] = new(Channel)
		}
		if err := a.Channels[name].check(name); err != nil {
			return err
		}
	}
	if err := a.checkTopics(); err != nil {
		return err
	}
	for what, v := range map[string]int{"max_sockets": a.MaxSockets, "max_generations": a.MaxGenerations, "drain_rate": a.DrainRate} {
		if v < 0 {
			return fmt.Errorf("%s is %d: it must be positive, or left out for the default", what, v)
		}
	}
	for what, d := range map[string]caddy.Duration{"reconnect_spread": a.ReconnectSpread, "shutdown_grace": a.ShutdownGrace} {
		if d < 0 {
			return fmt.Errorf("%s is %s: it must be positive, or left out for the default", what, time.Duration(d))
		}
	}
	if a.MaxSockets == 0 {
		a.MaxSockets = defaultMaxSockets()
	}
	if a.ReconnectSpread == 0 {
		a.ReconnectSpread = caddy.Duration(5 * time.Second)
	}
	if a.ShutdownGrace == 0 {
		a.ShutdownGrace = caddy.Duration(5 * time.Second)
	}
	if a.MaxGenerations == 0 {
		a.MaxGenerations = 16
	}
	return nil
}

// checkTopics says so if two channels would hear each other's messages.
func (a *App) checkTopics() error {
	topics := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(a.Channels)) {
		topic := a.Channels[name].topic(name)
		if other, taken := topics[topic]; taken {
			return fmt.Errorf("channels %s and %s share the broker channel %q: give one of them another redis_channel", other, name, topic)
		}
		topics[topic] = name
	}
	return nil
}

func (a *App) loadBroker(ctx caddy.Context) error {
	if len(a.BrokerRaw) == 0 {
		a.BrokerRaw = json.RawMessage(`{"type":"embedded"}`)
	}
	m, err := ctx.LoadModule(a, "BrokerRaw")
	if err != nil {
		return fmt.Errorf("loading the broker: %w", err)
	}
	b, ok := m.(BrokerModule)
	if !ok {
		return fmt.Errorf("the module %T is not a broker of the relay", m)
	}
	a.brokerModule = b
	return nil
}

// Start implements [caddy.App]: this configuration rules from here on. A broker that cannot be
// reached does not keep Caddy from starting: publishers are answered 503 until it can.
func (a *App) Start() error {
	if err := a.node.start(a.generation); err != nil {
		return fmt.Errorf("starting the relay: %w", err)
	}
	a.logger.Info("relay started", zap.String("broker", a.brokerModule.Key()),
		zap.Strings("channels", slices.Sorted(maps.Keys(a.Channels))), zap.Int("max_sockets", a.MaxSockets))
	return nil
}

// Stop implements [caddy.App]. On a reload the next configuration rules by now, and sockets that it
// does not serve get a goodbye. On exit all of them do, within shutdown_grace.
func (a *App) Stop() error {
	if caddy.Exiting() {
		a.drain()
	}
	a.node.stop(a.generation)
	return nil
}

// Cleanup implements [caddy.CleanerUpper]. It undoes Provision, and Start if Stop did not.
func (a *App) Cleanup() error {
	var err error
	if a.leave != nil {
		a.leave()
	}
	if g := a.generation; g != nil {
		a.generation = nil
		a.node.stop(g)
		err = a.node.release(g)
	}
	if a.pooled {
		a.pooled = false
		if _, e := nodes.Delete(nodeKey); e != nil {
			err = errors.Join(err, e)
		}
	}
	return err
}

// watchExit begins to drain as soon as Caddy begins to exit. Caddy stops its apps in random order,
// and stopping HTTP may wait for a request as long as that takes: the sockets should
// not hear of the exit only when that is over.
func (a *App) watchExit(ctx caddy.Context) error {
	a.leaving, a.leave = context.WithCancel(context.Background())
	a.drained = make(chan struct{}, 1)
	a.drained <- struct{}{}
	app, err := ctx.App("events")
	if err != nil {
		return fmt.Errorf("getting the events app: %w", err)
	}
	return app.(*caddyevents.App).On("stopping", exitWatcher{a})
}

// exitWatcher is the event handler of watchExit.
type exitWatcher struct{ app *App }

// Handle implements [caddyevents.Handler].
func (w exitWatcher) Handle(context.Context, caddy.Event) error {
	if caddy.Exiting() {
		go w.app.drain()
	}
	return nil
}

// drain says goodbye to all sockets and waits for their ends, within shutdown_grace. Whoever calls
// it later waits for the one under way.
func (a *App) drain() {
	if _, first := <-a.drained; !first {
		return
	}
	defer close(a.drained)
	a.leave() // requests that wait for a back end's answer hear that their message is stored
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(a.ShutdownGrace))
	defer cancel()
	a.node.hub.Drain(ctx, a.spread(), a.DrainRate)
}

func (a *App) spread() time.Duration { return time.Duration(a.ReconnectSpread) }

// Bus returns the bus, for other Caddy modules: get the app with ctx.App("relay") in Provision,
// and listen there.
func (a *App) Bus() *Bus { return &Bus{node: a.node, generation: a.generation} }

// Interface guards
var (
	_ caddy.App          = (*App)(nil)
	_ caddy.Provisioner  = (*App)(nil)
	_ caddy.CleanerUpper = (*App)(nil)
)
