package redisbroker

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
	"github.com/caddyrelay/relay/internal/redistest"
)

// A cluster takes seconds to start, so all checks share one, each with a prefix of its own.
func TestClusterConformance(t *testing.T) {
	c := redistest.StartCluster(t, durable...)
	n := 0
	brokertest.RunStore(t, brokertest.StoreHarness{
		Nodes: true, Durability: broker.AOFEverysec, Unproven: broker.Durability("replicas:3"),
		Backend: func(t testing.TB) brokertest.StoreBackend {
			n++
			prefix, k := fmt.Sprint("check-", n), &knobs{}
			return brokertest.StoreBackend{
				Crash: func(s broker.Store) {
					s.(*Broker).stop() // so that it has no time to depart
					_ = s.Close()
				},
				Advance: k.advance, Mute: k.mute,
				Open: func() broker.Store {
					b, err := New(Options{Address: c.Addrs()[n%6], Prefix: prefix, MaxBackoff: 100 * time.Millisecond, Lease: 2 * time.Second, CheckInterval: time.Second})
					if err != nil {
						t.Fatal(err)
					}
					k.add(b)
					return b
				},
			}
		},
	})
	brokertest.Run(t, brokertest.Harness{Nodes: true, Backend: func(t testing.TB) brokertest.Backend {
		return brokertest.Backend{Open: func() broker.Broker {
			b, err := New(Options{Seeds: c.Addrs(), MaxBackoff: 100 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			return b
		}}
	}})
}

// ids returns destinations, one for each of the cluster's primaries.
func ids(t *testing.T, b *Broker) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for i := 0; len(found) < 3; i++ {
		id := fmt.Sprint("id-", i)
		addr := b.topology.Load().owner(slot(tags[placeOf("c", id).part]))
		if found[addr] == "" {
			found[addr] = id
		}
	}
	return found
}

// I2, I9: while a primary is away the partitions of the others go on, and when its replica has taken over, so do its own. What
// was accepted with a replica's word is there.
func TestI2_ClusterFailover(t *testing.T) {
	c := redistest.StartCluster(t, durable...)
	b := openStore(t, Options{
		Seeds: c.Addrs(), Timeout: time.Second, Settings: Settings{Replicas: 1, ReplicaTimeout: 300 * time.Millisecond},
	}, broker.Policy{})
	until(t, "the store", func() bool { return b.Ready() == nil })
	until(t, "all partitions", func() bool { n, _ := b.Unavailable(); return n == 0 })
	destinations := ids(t, b)
	victim := c.Primaries()[0]
	away := destinations[victim.Addr()]
	holds := make(map[string]*owner)
	for _, id := range destinations {
		o := new(owner)
		mustAttach(t, b, id, o, 1)
		holds[id] = o
	}
	accepted := make(map[string]int)
	store := func(id string) error {
		_, err := b.Append(timeout(t), message(id, "", fmt.Sprint(accepted[id])), broker.AppendOptions{})
		if err == nil {
			accepted[id]++
		}
		return err
	}
	for range 20 {
		for _, id := range destinations {
			if err := store(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	victim.Kill()
	if err := store(away); err == nil || !errors.Is(err, broker.ErrUnavailable) {
		t.Errorf("without its primary: %v", err)
	}
	began := time.Now()
	for _, id := range destinations {
		if id != away {
			if err := store(id); err != nil {
				t.Errorf("the partitions of another primary: %v", err)
			}
		}
	}
	if took := time.Since(began); took > 900*time.Millisecond {
		t.Errorf("they waited for %s", took)
	}
	if err := b.Ready(); err != nil {
		t.Errorf("not ready at all: %v", err)
	}
	if n, total := b.Unavailable(); n == 0 || n > 30 || total != 64 {
		t.Errorf("%d of %d partitions are unavailable", n, total)
	}
	victim.Restart()
	c.Settle()
	until(t, "a message to be accepted", func() bool { return store(away) == nil })
	until(t, "all partitions", func() bool { n, _ := b.Unavailable(); return n == 0 })
	for id, o := range holds {
		if id == away { // at another primary the mailbox is attached anew; see another
			until(t, "the owner to hear of it", func() bool { _, lost := o.heard(); return len(lost) == 1 && errors.Is(lost[0], broker.ErrForgotten) })
		} else if _, lost := o.heard(); len(lost) > 0 {
			t.Errorf("the owner of %s was told %v", id, lost)
		}
		_, page, err := attached(b.Attach(timeout(t), "c", id, new(owner), broker.AttachOptions{Limit: 1000}))
		if err != nil || len(page) != accepted[id] {
			t.Errorf("%s: %d of %d messages are there: %v", id, len(page), accepted[id], err)
		}
	}
}

// Operations follow a slot to another primary, without a failure in between.
func TestClusterSlotsMove(t *testing.T) {
	c := redistest.StartCluster(t, durable...)
	b := openStore(t, Options{Seeds: c.Addrs()[:1]}, broker.Policy{})
	mustAppend(t, b, "01", "0")
	part := placeOf("c", "01").part
	number := slot(tags[part])
	from := b.topology.Load().owner(number)
	o := new(owner)
	mustAttach(t, b, "01", o, 10)
	var source, target *redistest.Server
	for _, s := range c.Primaries() {
		if s.Addr() == from {
			source = s
		} else {
			target = s
		}
	}
	id := func(s *redistest.Server) string { return s.CLI("CLUSTER", "MYID") }
	target.CLI("CLUSTER", "SETSLOT", fmt.Sprint(number), "IMPORTING", id(source))
	source.CLI("CLUSTER", "SETSLOT", fmt.Sprint(number), "MIGRATING", id(target))
	for _, key := range strings.Fields(source.CLI("CLUSTER", "GETKEYSINSLOT", fmt.Sprint(number), "100")) {
		source.CLI("MIGRATE", "127.0.0.1", target.Port(), key, "0", "5000")
	}
	target.CLI("CLUSTER", "SETSLOT", fmt.Sprint(number), "NODE", id(target))
	for _, s := range c.Primaries() {
		s.CLI("CLUSTER", "SETSLOT", fmt.Sprint(number), "NODE", id(target))
	}
	mustAppend(t, b, "01", "1")
	until(t, "the owner to hear that another primary has the mailbox", func() bool { _, lost := o.heard(); return len(lost) > 0 })
	if b.topology.Load().owner(number) != target.Addr() {
		t.Error("the topology was not looked at")
	}
	_, page, err := attached(b.Attach(timeout(t), "c", "01", new(owner), broker.AttachOptions{Limit: 10}))
	if err != nil || len(page) != 2 {
		t.Errorf("%d messages, %v", len(page), err)
	}
}

// A cluster is found out from one address, and a database that it does not have is refused in words.
func TestClusterIsFoundOut(t *testing.T) {
	c := redistest.StartCluster(t, durable...)
	b := openStore(t, Options{Address: c.Addrs()[5]}, broker.Policy{})
	mustAppend(t, b, "01", "x")
	if b.kind.Load() != kindCluster {
		t.Error("it was taken for one server")
	}
	wrong := open(t, Options{Address: c.Addrs()[0], DB: 3})
	if _, err := wrong.Append(timeout(t), message("01", "", "x"), broker.AppendOptions{}); err == nil || !strings.Contains(err.Error(), "database 0 only") {
		t.Errorf("%v", err)
	}
	if _, err := New(Options{Seeds: c.Addrs(), DB: 3}); err == nil || !strings.Contains(err.Error(), "database 0 only") {
		t.Errorf("%v", err)
	}
}

// The rights that errors and docs name are enough on a cluster, too.
func TestClusterRights(t *testing.T) {
	c := redistest.StartCluster(t, durable...)
	o := Options{Seeds: c.Addrs(), Prefix: "mine", Settings: Settings{Username: "u", Password: "pw"}}
	asks := open(t, o)
	asks.store.begun.Store(true) // as if: it is to connect only when the user is there
	named := strings.TrimSuffix(asks.rights(), " and & with each channel's name")
	for _, s := range c.Servers {
		s.CLI(append([]string{"ACL", "SETUSER", "u", "on", ">pw"}, strings.Fields(named)...)...)
	}
	b := open(t, o)
	b.SetPolicies(map[string]broker.Policy{"c": {}})
	useAll(t, b)
	for _, s := range c.Servers {
		if text := s.CLI("ACL", "LOG"); text != "" {
			t.Errorf("denied: %s", text)
		}
	}
}
