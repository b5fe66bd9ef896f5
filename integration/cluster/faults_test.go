//go:build unix

package cluster

import (
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/caddyrelay/relay/internal/relaytest"
)

// fault is something that goes wrong, and how it is put right.
type fault struct {
	name string

	// strike has it happen to a node, and returns when all is as before. An error that wraps errNotHere says that it
	// cannot happen here.
	strike func(f *fleet, victim *node, s scale) error

	// harms says whose destinations feel it: those of the victim, or of all nodes.
	harms reach

	// closes says which sockets may end: those of the victim, all, or none.
	closes reach

	// vanishing is what clients do meanwhile, and before.
	vanishing relaytest.Vanishing

	// rare says that what it is for happens by chance in one of many runs: it is left to the long form.
	rare bool

	// calm says that the servers must agree with each other before.
	calm bool
}

type reach uint8

const (
	nobody reach = iota
	victims
	everybody
)

// scale is how long the faults last.
type scale struct {
	pause, cut          time.Duration
	stall, watchedStall time.Duration // of a server alone, and of one that another can take the place of
	isolate, isolated   time.Duration // isolate_after, and a cut that is longer
}

// The short form is CI's. In the long one a node is stopped, and cut off, for longer than its lease of 15s and the 15s after
// which a silent socket is closed; and a Redis stalls for longer than Sentinels and Clusters wait until they promote a replica.
var (
	short = scale{
		pause: 6 * time.Second, cut: 2500 * time.Millisecond,
		stall: 2500 * time.Millisecond, watchedStall: 300 * time.Millisecond,
		isolate: 2 * time.Second, isolated: 5 * time.Second,
	}
	long = scale{
		pause: 35 * time.Second, cut: 20 * time.Second,
		stall: 20 * time.Second, watchedStall: 5 * time.Second,
		isolate: 10 * time.Second, isolated: 30 * time.Second,
	}
)

// errNotHere says that a fault cannot happen in this place, or not with this release.
var errNotHere = errors.New("not run")

// faults are in an order in which Redis comes to rest while nodes are harmed.
var faults = []fault{
	{name: "kill a node", strike: killNode, harms: victims, closes: victims},
	{name: "kill the primary", strike: killPrimary, harms: everybody, closes: nobody, calm: true},
	{name: "stop a node and continue it", strike: pauseNode, harms: victims, closes: victims},
	{name: "cut a node off for less than isolate_after", strike: cutNode, harms: victims, closes: nobody},
	{name: "cut a node off for longer than isolate_after", strike: isolateNode, harms: victims, closes: victims},
	{name: "cut a node off while clients change nodes", strike: cutNode, harms: victims, closes: nobody,
		vanishing: relaytest.Vanishing{Close: 60, Hang: 60}},
	{name: "stall redis", strike: stallRedis, harms: everybody, closes: nobody, calm: true},
	{name: "kill a node and the primary", strike: killBoth, harms: everybody, closes: victims, calm: true},
	{name: "restart all nodes one after another", strike: restartAll, harms: everybody, closes: everybody},
}

func killNode(f *fleet, victim *node, _ scale) error {
	victim.kill()
	relaytest.Pause(time.Second)
	victim.launch(f.config(victim, ""))
	victim.serves()
	return nil
}

// pauseNode is what a machine does that sleeps, or whose hypervisor moves it: for a while nothing, then everything it was
// about to do.
func pauseNode(_ *fleet, victim *node, s scale) error {
	victim.signal(syscall.SIGSTOP)
	relaytest.Pause(s.pause)
	victim.signal(syscall.SIGCONT)
	return nil
}

func killPrimary(f *fleet, _ *node, _ scale) error {
	f.form.killPrimary()
	return nil
}

// killBoth is a node that dies while nobody can note it: its sockets are taken over when Redis is back, perhaps elsewhere.
func killBoth(f *fleet, victim *node, _ scale) error {
	victim.kill()
	f.form.killPrimary()
	victim.launch(f.config(victim, ""))
	victim.serves()
	return nil
}

func stallRedis(f *fleet, _ *node, s scale) error {
	f.form.stall(s)
	return nil
}

func cutNode(_ *fleet, victim *node, s scale) error { return cutFor(victim, s.cut) }

func cutFor(victim *node, d time.Duration) error {
	if err := victim.site.cut(); errors.Is(err, errNoCut) {
		return fmt.Errorf("%w: %w", errNotHere, err)
	} else if err != nil {
		return err
	}
	relaytest.Pause(d)
	return victim.site.heal()
}

func isolateNode(f *fleet, victim *node, s scale) error {
	if err := victim.load(f.config(victim, "isolate_after "+s.isolate.String())); err != nil {
		return fmt.Errorf("setting isolate_after: %w", err)
	}
	err := cutFor(victim, s.isolated)
	return errors.Join(err, victim.load(f.config(victim, "")))
}

func restartAll(f *fleet, _ *node, _ scale) error {
	for _, n := range f.nodes {
		n.stop()
		n.launch(f.config(n, ""))
		n.serves()
	}
	return nil
}
