//go:build unix

package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/relaytest"
)

// rounds is how often everything goes wrong for each form of Redis, and for how long each time: CHAOS_ROUNDS times at length
// in "make chaos".
func rounds(t *testing.T) (int, scale) {
	t.Helper()
	text := os.Getenv("CHAOS_ROUNDS")
	if text == "" {
		return 1, short
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("CHAOS_ROUNDS=%q is not a positive number", text)
	}
	return n, long
}

// I1, I2, I3, I4, I9: three nodes under load, and one thing after another goes wrong. What was accepted arrives, in order;
// sockets stay when only Redis is away.
func TestI2_Chaos(t *testing.T) {
	times, s := rounds(t)
	t.Logf("%s; %s", newNetwork(t), redisVersion(t))
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			if s == short {
				t.Parallel() // at length, one form after another, so that they do not slow each other down
			}
			logs := logDir(t)
			net := newNetwork(t)
			f := startFleet(t, net, form.start(t, net), form.channel, logs)
			count := 0
			for round := range times {
				for _, fault := range faults {
					if fault.rare && s == short {
						continue
					}
					victim := f.nodes[count%len(f.nodes)]
					name := fmt.Sprintf("%c%02d", 'a'+round%26, count)
					count++
					t.Run(fault.name, func(t *testing.T) {
						c := &chaos{t: t, fleet: f, fault: fault, victim: victim, name: name, scale: s}
						if line := c.run(); line != "" {
							t.Logf("%s, %s, %s", form.name, fault.name, line)
						}
					})
				}
			}
		})
	}
}

// redisVersion says which server is run.
func redisVersion(t *testing.T) string {
	t.Helper()
	binary := os.Getenv("REDIS_SERVER")
	if binary == "" {
		binary = "redis-server"
	}
	out, err := exec.Command(binary, "--version").Output()
	if err != nil {
		t.Fatalf("%s --version: %v: run \"make deps\", or set REDIS_SERVER to the path of a server", binary, err)
	}
	words := strings.Fields(string(out))
	return strings.Join(words[:min(3, len(words))], " ")
}

// logDir returns a directory for the nodes' logs. It stays if the test fails.
func logDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "relay-chaos")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("what the nodes wrote, and the histories of lost messages, are in %s", dir)
			return
		}
		_ = os.RemoveAll(dir)
	})
	return dir
}

// destinations is how many there are in a run, four on each node.
const destinations = 12

// startCrew has publishers and clients come to all nodes, and waits until every destination hears.
func startCrew(ctx context.Context, t *testing.T, f *fleet, plan relaytest.Plan) *relaytest.Crew {
	t.Helper()
	posts, dials := f.addresses(func(n *node) string { return n.http }), f.addresses(func(n *node) string { return n.tcp })
	plan.Destinations, plan.Pace, plan.Work = destinations, 40*time.Millisecond, 20*time.Millisecond
	plan.Post, plan.PostFailed, plan.PostTimeout = posts.next, posts.failed, 2*time.Second
	plan.Dial, plan.Patience = dials.next, 4*time.Second
	crew := relaytest.Start(ctx, t, plan)
	began := time.Now()
	waitFor(t, "every destination to hear", func() bool { return crew.HeardSince(began) })
	return crew
}

// chaos is one fault under load.
type chaos struct {
	t      *testing.T
	fleet  *fleet
	fault  fault
	victim *node
	name   string
	scale  scale
	crew   *relaytest.Crew
}

// run has the fault happen, and returns what it did. It checks the promises.
func (c *chaos) run() string {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	c.crew = startCrew(ctx, c.t, c.fleet, relaytest.Plan{Name: c.name, Vanishing: c.fault.vanishing})

	if c.fault.calm {
		c.fleet.form.calm()
	}
	relaytest.Pause(rand.N(500 * time.Millisecond))

	before := c.crew.Connected()
	struck := time.Now()
	err := c.fault.strike(c.fleet, c.victim, c.scale)
	mended := time.Now()
	notHere := errors.Is(err, errNotHere)
	if err != nil && !notHere {
		c.t.Fatal(err)
	}
	c.recovers(mended)
	stop()
	found := c.crew.Finish()
	closed, wrongly := c.closed(struck)
	if found.Faults() > 0 || found.Accepted == 0 {
		c.evidence()
		c.t.Error("the promises were broken")
	}
	for _, e := range wrongly {
		c.t.Errorf("the socket of %s at %s ended %.2fs after the fault began, and should not have: %s",
			e.Destination, e.Address, e.At.Sub(struck).Seconds(), e.Why)
	}
	c.revive()
	if notHere {
		c.t.Skip(err)
	}
	return fmt.Sprintf("durability %s: %s, sockets closed %d, fault lasted %.1fs, delivery resumed after %.2fs",
		c.crew.Durability(), found, closed, mended.Sub(struck).Seconds(), c.crew.Silence(struck, c.harmed(before)).Seconds())
}

// recovers waits until all nodes take messages, and every destination hears again.
func (c *chaos) recovers(since time.Time) {
	c.t.Helper()
	for deadline := since.Add(90 * time.Second); ; relaytest.Pause(50 * time.Millisecond) {
		ready := true
		for _, n := range c.fleet.nodes {
			ready = ready && n.ready()
			if n.died() != nil {
				return // see revive
			}
		}
		if ready && c.crew.HeardSince(since) {
			return
		}
		if time.Now().After(deadline) {
			c.t.Errorf("90s after the fault was mended, not all nodes are ready or not all destinations hear")
			return
		}
	}
}

// revive looks for nodes that have ended by themselves, and starts them again for the faults to come.
func (c *chaos) revive() {
	c.t.Helper()
	for _, n := range c.fleet.nodes {
		if err := n.died(); err != nil {
			c.t.Error(err)
			n.launch(c.fleet.config(n, ""))
			n.serves()
		}
	}
}

// harmed returns the destinations that the fault is felt by.
func (c *chaos) harmed(connected map[string]string) (all []string) {
	for id, address := range connected {
		if c.fault.harms == everybody || address == c.victim.tcp {
			all = append(all, id)
		}
	}
	return all
}

// closed returns how many sockets ended since a moment, and those of them that should not have. Nobody's place is taken while
// he is there, since each destination has one client: one that is told so does not come back, if it does as it is told.
func (c *chaos) closed(since time.Time) (count int, wrongly []relaytest.Ending) {
	for _, e := range c.crew.Endings() {
		if e.At.Before(since) {
			continue
		}
		count++
		if e.Why == `"taken_over"` || c.fault.closes == nobody || c.fault.closes == victims && e.Address != c.victim.tcp {
			wrongly = append(wrongly, e)
		}
	}
	return count, wrongly
}

// evidence writes down what is known of lost messages, beside the logs.
func (c *chaos) evidence() {
	var lines []string
	for _, m := range c.crew.Missing() {
		id, number, _ := strings.Cut(m, "/")
		n, _ := strconv.Atoi(number)
		lines = append(lines, "lost: "+m)
		lines = append(lines, c.crew.History(id, n-2, n+2)...)
	}
	for _, e := range c.crew.Endings() {
		lines = append(lines, fmt.Sprintf("%s socket of %s at %s ended: %s", e.At.Format("15:04:05.000"), e.Destination, e.Address, e.Why))
	}
	name := filepath.Join(c.victim.logs, c.name+".txt")
	if err := os.WriteFile(name, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		c.t.Error(err)
	}
	c.t.Logf("%s: the first of %d lines:\n%s", name, len(lines), strings.Join(lines[:min(20, len(lines))], "\n"))
}
