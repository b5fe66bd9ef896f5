package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker"
)

// Mode says what kind of Redis there is.
type Mode uint8

// The modes. Auto asks the server whether it is a node of a cluster; a user that may not ask is taken for one of a server
// that is none.
const (
	Auto Mode = iota
	Standalone
	Cluster
)

// What a broker knows of that.
const (
	kindUnknown = iota
	kindSingle
	kindCluster
)

// topologyInterval is the time between two looks at who has which slots, while all is well; topologyPause that between two
// while something is wrong.
const topologyInterval, topologyPause = 5 * time.Second, 100 * time.Millisecond

// topology is which primary has which slots of a cluster. It does not change.
type topology struct{ ranges []slotRange }

type slotRange struct {
	first, last int
	addr        string
}

// owner returns the primary of a slot, or nothing if no primary has it.
func (t *topology) owner(slot int) string {
	for _, r := range t.ranges {
		if r.first <= slot && slot <= r.last {
			return r.addr
		}
	}
	return ""
}

// primaries returns the addresses of those that have slots.
func (t *topology) primaries() (addrs []string) {
	for _, r := range t.ranges {
		addrs = append(addrs, r.addr)
	}
	slices.Sort(addrs)
	return slices.Compact(addrs)
}

// discover finds out what kind of Redis there is, once.
func (b *Broker) discover(ctx context.Context) error {
	if b.kind.Load() != kindUnknown {
		return nil
	}
	b.discovering.Lock()
	defer b.discovering.Unlock()
	if b.kind.Load() != kindUnknown {
		return nil
	}
	client := b.clientAt(b.o.Network, b.o.Address)
	defer func() { _ = client.Close() }()
	ctx, cancel := context.WithTimeout(ctx, b.o.Timeout)
	defer cancel()
	text, err := client.Do(ctx, "INFO", "cluster").Text()
	var refused redis.Error
	mayNot := errors.As(err, &refused) && strings.Contains(err.Error(), "NOPERM")
	switch {
	case err != nil && !mayNot:
		return err
	case strings.Contains(text, "cluster_enabled:1"):
		if b.o.DB != 0 {
			return fmt.Errorf("it is a node of a Redis Cluster, which has database 0 only, and the broker's database is %d: take that out", b.o.DB)
		}
		b.kind.Store(kindCluster)
	default:
		b.kind.Store(kindSingle)
	}
	return nil
}

// clientAt returns a client for one server, whatever its role.
func (b *Broker) clientAt(network, addr string) *redis.Client {
	o := b.newClientOptions(func(ctx context.Context, _, _ string) (net.Conn, error) { return b.connect(ctx, network, addr) })
	o.Network, o.Addr, o.OnConnect, o.DB = network, addr, nil, 0
	return redis.NewClient(o)
}

// primaryOf returns the address of the primary of a slot; nothing if there is only one primary, for whoever dials to find.
func (b *Broker) primaryOf(ctx context.Context, slot int) (string, error) {
	if err := b.discover(ctx); err != nil {
		return "", err
	}
	if b.kind.Load() == kindSingle {
		return "", nil
	}
	t := b.topology.Load()
	if t == nil {
		if err := b.refresh(ctx); err != nil {
			return "", err
		}
		t = b.topology.Load()
	}
	addr := t.owner(slot)
	if addr == "" {
		wake(b.stale)
		return "", &dialError{fmt.Errorf("no primary of the cluster has slot %d at the moment", slot)}
	}
	return addr, nil
}

// refresh asks the nodes of the cluster who has which slots.
func (b *Broker) refresh(ctx context.Context) error {
	b.refreshing.Lock()
	defer b.refreshing.Unlock()
	addrs := slices.Clone(b.o.Seeds)
	if t := b.topology.Load(); t != nil {
		addrs = append(t.primaries(), addrs...)
	}
	var failures []error
	seen := make(map[string]bool)
	for _, addr := range addrs {
		if seen[addr] {
			continue
		}
		seen[addr] = true
		t, err := b.askTopology(ctx, addr)
		if err == nil {
			b.setTopology(t)
			return nil
		}
		failures = append(failures, fmt.Errorf("%s: %w", addr, err))
	}
	return &dialError{fmt.Errorf("no node of the cluster tells who has which slots: %w", errors.Join(failures...))}
}

func (b *Broker) askTopology(ctx context.Context, addr string) (*topology, error) {
	ctx, cancel := context.WithTimeout(ctx, b.o.Timeout/2) // the others are to have their turn
	defer cancel()
	client := b.clientAt("tcp", addr)
	defer func() { _ = client.Close() }()
	// Not CLUSTER SHARDS, which names a primary that has failed beside its successor.
	all, err := client.ClusterSlots(ctx).Result() //nolint:staticcheck // it is deprecated in the driver only for that
	if err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(addr)
	t := new(topology)
	for _, s := range all {
		if len(s.Nodes) == 0 {
			continue
		}
		primary := s.Nodes[0].Addr
		if h, port, err := net.SplitHostPort(primary); err == nil && h == "" {
			primary = net.JoinHostPort(host, port) // it does not know its own address, which we have reached it by
		}
		t.ranges = append(t.ranges, slotRange{s.Start, s.End, primary})
	}
	if len(t.ranges) == 0 {
		return nil, errors.New("it knows of no slots")
	}
	return t, nil
}

// setTopology notes who has which slots.
func (b *Broker) setTopology(t *topology) {
	before := b.topology.Swap(t)
	if before == nil || slices.Equal(before.ranges, t.ranges) {
		return
	}
	b.o.Logger.Warn("the redis cluster has changed", "primaries", t.primaries())
	b.moves.Add(1) // publications may have another primary
	for _, e := range []*ear{b.ear, b.nodeEar} {
		if was, is := before.owner(keySlot(e.key)), t.owner(keySlot(e.key)); was != is && is != "" {
			e.endSession(fmt.Errorf("%s is the primary now, instead of %s", is, was))
		}
	}
	b.store.another(func(part int) bool { n := slot(tags[part]); return before.owner(n) != t.owner(n) })
}

// topologyLoop looks who has which slots: now and then, and as soon as something looks wrong.
func (b *Broker) topologyLoop() {
	tick := time.NewTicker(topologyInterval)
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
		case <-b.stale:
			b.wait(topologyPause)
		}
		if b.kind.Load() != kindCluster {
			continue
		}
		ctx, cancel := context.WithTimeout(b.ctx, 5*b.o.Timeout)
		_ = b.refresh(ctx) // whoever has to connect says so
		cancel()
	}
}

// dialKey connects to the primary that has a key.
func (b *Broker) dialKey(ctx context.Context, network, key string) (net.Conn, error) {
	addr, err := b.primaryOf(ctx, keySlot(key))
	if err != nil {
		return nil, &dialError{err}
	}
	if addr == "" {
		return b.dialPrimary(ctx, network)
	}
	conn, err := b.connect(ctx, network, addr)
	if err != nil {
		wake(b.stale)
	}
	return conn, err
}

// spublish publishes on a sharded channel, which only the primary of its slot knows.
func (s *store) spublish(ctx context.Context, channel string, payload []byte) (broker.Published, error) {
	v, err := s.command(ctx, "SPUBLISH", channel, payload)
	n, _ := v.(int64)
	return broker.Published{Receivers: int(n)}, err
}

// Unavailable returns how many of the store's partitions cannot take messages now, and how many there are. It does no
// I/O, so it can be a moment old.
func (b *Broker) Unavailable() (unavailable, total int) {
	known := make(map[*shard]bool)
	for part := range partitions {
		sh := b.store.ofPart(part)
		if sh == nil {
			unavailable++
			continue
		}
		ok, asked := known[sh]
		if !asked {
			ok = sh.ready() == nil
			known[sh] = ok
		}
		if !ok {
			unavailable++
		}
	}
	return unavailable, partitions
}

// primaries returns the addresses of all primaries, as far as they are known.
func (b *Broker) primaries() []string {
	if t := b.topology.Load(); t != nil {
		return t.primaries()
	}
	if b.kind.Load() == kindSingle {
		return []string{""}
	}
	return nil
}

// redirected reports whether an error says that another server has the keys: nothing was done.
func redirected(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "MOVED ")
}
