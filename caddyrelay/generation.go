package caddyrelay

import (
	"net"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyrelay/relay/broker"
)

// generation is one configuration that has been provisioned, and perhaps started.
type generation struct {
	// Fixed by the app's Provision.
	number   uint64
	app      *App
	broker   broker.Broker
	key      string              // of the broker in its pool
	channels map[string]*Channel // by name
	store    broker.Store        // the broker, if any channel is at_least_once; else nil

	// Filled while other modules of the same configuration are provisioned, which
	// Caddy does one after the other and before Start.
	listens map[string][]caddy.NetworkAddress // by channel; see serves

	// started is closed by Start, and stopped when the generation is released.
	started, stopped chan struct{}

	// Set by Start before the generation rules, fixed from then on.
	routes map[string]*feed // by channel; at_most_once ones only

	// Guarded by node.mu.
	feeds     map[string]*feed // by topic; each is held once
	intakes   []*intake        // of channels with classic in
	listeners []*busListener   // on the bus
	released  bool             // it takes no more listeners
}

// anyAddress stands for a listener whose addresses are not known, such as one that wraps a listener
// of the HTTP app.
var anyAddress = caddy.NetworkAddress{Network: "any"}

// serves reports whether this configuration accepts sockets for channel at local.
func (g *generation) serves(channel string, local net.Addr) bool {
	for _, a := range g.listens[channel] {
		if covers(a, local) {
			return true
		}
	}
	return false
}

// covers reports whether a connection whose local address is local can come from a listener on
// a. In doubt it says yes: a socket that stays too long does less harm than one that is cut off.
func covers(a caddy.NetworkAddress, local net.Addr) bool {
	switch local := local.(type) {
	case *net.TCPAddr:
		if a.IsUnixNetwork() {
			return false
		}
		if a == anyAddress || a.IsFdNetwork() {
			return true
		}
		if port := uint(local.Port); port < a.StartPort || port > a.EndPort {
			return false
		}
		ip := net.ParseIP(a.Host)
		return ip == nil || ip.IsUnspecified() || ip.Equal(local.IP)
	case *net.UnixAddr:
		return a == anyAddress || a.IsFdNetwork() || a.IsUnixNetwork() && a.Host == local.Name
	}
	return true
}

// waitStarted waits until the configuration has started, for a bounded time: Caddy starts the apps
// of one configuration in any order, so a listener may accept before the relay has started.
func (g *generation) waitStarted(bound time.Duration) bool {
	select {
	case <-g.started:
		return true
	default:
	}
	timer := time.NewTimer(bound)
	defer timer.Stop()
	select {
	case <-g.started:
		return true
	case <-timer.C:
		return false
	}
}
