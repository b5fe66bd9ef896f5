package caddyrelay

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/redisbroker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// classicNode is a node with one classic channel, without Caddy, so that a process can have several.
type classicNode struct {
	t *testing.T
	*node
	b *redisbroker.Broker
	i *intake
	g *generation

	sources []string // of what stored returned
}

func newClassicNode(t *testing.T, server *redistest.Server, channel *Channel) *classicNode {
	t.Helper()
	b, err := redisbroker.New(redisbroker.Options{Address: server.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	v, err := newNode()
	if err != nil {
		t.Fatal(err)
	}
	c := &classicNode{t: t, node: v.(*node), b: b}
	c.g = &generation{broker: b, store: b, channels: map[string]*Channel{"pay": channel}, started: make(chan struct{})}
	close(c.g.started)
	b.SetPolicies(map[string]broker.Policy{"pay": channel.policy()})
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	c.active.Store(c.g)
	if channel.takesIn() {
		c.mu.Lock()
		c.i, err = c.acquireIntakeLocked(b, "pay", channel.topic("pay"))
		c.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(c.end)
	return c
}

func (c *classicNode) end() {
	if c.i != nil {
		c.i.close()
		c.i = nil
	}
	_ = c.b.Close()
}

// awaitCharge waits until the node is the one that stores.
func (c *classicNode) awaitCharge() {
	c.t.Helper()
	c.i.enable(c.g)
	eventually(c.t, "the charge", func() bool { return c.inCharge("pay") })
}

func (c *classicNode) awaitProven() {
	c.t.Helper()
	eventually(c.t, "the classic channel", func() bool { return c.i.err() == nil })
}

// stored returns the bodies that wait for a destination, in order.
func (c *classicNode) stored(id string) (bodies []string) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	m, page, err := c.b.Attach(ctx, "pay", id, noOwner{}, broker.AttachOptions{Limit: 1000, Bytes: 1 << 20})
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = m.Detach(ctx, nil) }()
	for _, e := range page.Entries {
		c.sources = append(c.sources, e.Message.Source)
		bodies = append(bodies, string(e.Message.Body))
	}
	return bodies
}

func (c *classicNode) awaitStored(id string, want ...string) {
	c.t.Helper()
	var got []string
	eventually(c.t, fmt.Sprintf("%q", want), func() bool { got = c.stored(id); return len(got) >= len(want) })
	if !slices.Equal(got, want) {
		c.t.Errorf("%s has %q, want %q", id, got, want)
	}
}

// published is a sink that remembers.
type published struct {
	mu    sync.Mutex
	texts []string
}

func (p *published) Deliver(_ string, v *broker.Publication) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.texts = append(p.texts, string(v.Payload()))
}

func (p *published) StateChanged(string, error) {}

func (p *published) all() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.texts)
}

// noOwner is an owner that does nothing.
type noOwner struct{}

func (noOwner) Ring()                               {}
func (noOwner) Offer(uint64, broker.Entry)          {}
func (noOwner) Lost(error)                          {}
func (noOwner) Withdraw(uint64, string) bool        { return true }
func (noOwner) Attempts(uint64, string) (int, bool) { return 0, false }

func classicRedis(t *testing.T) *redistest.Server { return redistest.Start(t, "--appendonly", "yes") }

// What others publish is stored in order, and what cannot be is counted and logged once.
func TestClassicIn(t *testing.T) {
	server := classicRedis(t)
	c := newClassicNode(t, server, &Channel{Classic: classicIn, RedisChannel: "old", MaxPending: 3})
	c.awaitProven()
	c.awaitCharge()
	for _, text := range []string{
		`{"id":"01","msg":{"amount": 1.50}}`, `{"id":1,"msg":"ein Text"}`, `{"id":"01","msg":[1],"more":true}`,
		`{"id":"01","msg":"same"}`, `{"id":"*","msg":1}`, `no JSON`, `{"id":"0 1","msg":1}`, `{"id":"01"}`, `{"id":"01","msg":"too many"}`,
		`{"id":"02","msg":"behind"}`,
	} {
		server.CLI("PUBLISH", "old", text)
	}
	c.awaitStored("02", "behind")
	c.awaitStored("01", `{"amount": 1.50}`, "[1]", "same")
	c.awaitStored("1", "ein Text")
	for _, source := range c.sources {
		if source != "classic" {
			t.Errorf("the source is %q", source)
		}
	}
	counts := &c.counts.channel("pay").classic
	eventually(c.t, "the counts", func() bool {
		return counts.taken.Load() == 5 && counts.skipped[unfitShape].Load() == 3 && counts.skipped[unfitAll].Load() == 1 &&
			counts.skipped[unfitFull].Load() == 1
	})
}

// Two publications that are equal are two messages.
func TestClassicRepeats(t *testing.T) {
	server := classicRedis(t)
	c := newClassicNode(t, server, &Channel{Classic: classicIn})
	c.awaitProven()
	c.awaitCharge()
	for range 3 {
		server.CLI("PUBLISH", "pay", `{"id":"01","msg":"again"}`)
	}
	c.awaitStored("01", "again", "again", "again")
}

// What a relay published after storing it is never stored again; what it published without storing is.
func TestClassicMarks(t *testing.T) {
	server := classicRedis(t)
	c := newClassicNode(t, server, &Channel{Classic: classicBoth})
	c.awaitProven()
	c.awaitCharge()
	m := &broker.Message{MID: broker.NewMID(), ID: "01", ContentType: "text/plain", Body: []byte("x"), Ref: "order"}
	unstored, err := broker.FromMessage(m)
	if err != nil {
		t.Fatal(err)
	}
	stored, err := broker.FromStored(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*broker.Publication{stored, unstored, stored} {
		if _, err := c.b.Publish(t.Context(), "pay", p); err != nil {
			t.Fatal(err)
		}
	}
	posted := &broker.Message{MID: broker.NewMessageID("pay", "01", ""), Channel: "pay", ID: "01", Body: []byte("posted"), Time: time.Now()}
	if _, err := c.keep(t.Context(), c.g, posted, broker.AppendOptions{}); err != nil {
		t.Fatal(err)
	}
	server.CLI("PUBLISH", "pay", `{"id":"01","msg":"last"}`)
	eventually(c.t, "all", func() bool { return len(c.stored("01")) >= 3 })
	got := c.stored("01")
	slices.Sort(got)
	if !slices.Equal(got, []string{"last", "posted", "x"}) {
		t.Errorf("got %q", got)
	}
	if n := c.counts.channel("pay").classic.mirrored.Load(); n != 1 {
		t.Errorf("%d mirrored", n)
	}
}

// What is stored is published for those who listen, once, and a duplicate is not; what cannot be text is stored all
// the same.
func TestClassicOut(t *testing.T) {
	server := classicRedis(t)
	c := newClassicNode(t, server, &Channel{Classic: classicOut})
	var got published
	sub, err := c.b.Subscribe("pay", &got)
	if err != nil {
		t.Fatal(err)
	}
	eventually(c.t, "the subscription", func() bool { return sub.Err() == nil })
	post := func(contentType, body, key string) broker.Stored {
		t.Helper()
		m := &broker.Message{
			MID: broker.NewMessageID("pay", "01", key), Channel: "pay", ID: "01", Key: key, ContentType: contentType, Body: []byte(body), Time: time.Now(),
		}
		out, err := c.keep(t.Context(), c.g, m, broker.AppendOptions{Key: key})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	post("application/json", `{"a": 1.0}`, "k")
	if !post("application/json", `{"a": 1.0}`, "k").Duplicate {
		t.Error("not a duplicate")
	}
	post("application/octet-stream", "\xff", "")
	post("text/plain", "a text", "")
	eventually(c.t, "both", func() bool { return len(got.all()) >= 2 })
	for i, want := range []string{`{"id":"01","msg":{"a": 1.0},"relay":{`, `{"id":"01","msg":"a text","relay":{`} {
		if text := got.all()[i]; !strings.HasPrefix(text, want) || !strings.Contains(text, `"stored":true`) {
			t.Errorf("got %s, want %s", text, want)
		}
	}
	server.CLI("ACL", "SETUSER", "default", "-publish")
	post("text/plain", "while nothing can be published", "")
	counts := &c.counts.channel("pay").classic
	if counts.mirrored.Load() != 2 || counts.unmirrored.Load() != 2 || len(c.stored("01")) != 4 {
		t.Errorf("mirrored %d, not %d; stored %q", counts.mirrored.Load(), counts.unmirrored.Load(), c.stored("01"))
	}
}

// Redis goes and comes back: nothing is stored twice, and what is published then is stored.
func TestI2_ClassicRedisGone(t *testing.T) {
	server := classicRedis(t)
	c := newClassicNode(t, server, &Channel{Classic: classicIn})
	c.awaitProven()
	c.awaitCharge()
	for i := range 50 {
		server.CLI("PUBLISH", "pay", fmt.Sprintf(`{"id":"01","msg":"%d"}`, i))
	}
	eventually(t, "all", func() bool { return c.counts.channel("pay").classic.taken.Load() == 50 })
	server.Kill()
	eventually(t, "the loss", func() bool { return c.i.err() != nil && !c.inCharge("pay") })
	server.Restart()
	c.awaitProven()
	server.CLI("PUBLISH", "pay", `{"id":"01","msg":"while nobody is in charge"}`)
	eventually(t, "the charge", func() bool { return c.inCharge("pay") })
	server.CLI("PUBLISH", "pay", `{"id":"01","msg":"after"}`)
	eventually(t, "both", func() bool { return len(c.stored("01")) >= 52 })
	if got := c.stored("01"); len(got) != 52 || got[50] != "while nobody is in charge" || got[51] != "after" {
		t.Errorf("%d messages, the last ones %q", len(got), got[50:])
	}
}

// A node whose lease ended in the middle stores what it had begun, once, when it has it again.
func TestI2_ClassicLeaseLost(t *testing.T) {
	server := classicRedis(t)
	c := newClassicNode(t, server, &Channel{Classic: classicIn})
	c.awaitProven()
	c.awaitCharge()
	var want []string
	for i := range 200 {
		want = append(want, fmt.Sprint(i))
		p := broker.FromPayload(fmt.Appendf(nil, `{"id":"01","msg":"%d"}`, i))
		if _, err := c.b.Publish(t.Context(), "pay", p); err != nil {
			t.Fatal(err)
		}
		if i%20 == 10 {
			c.i.setCharge(false) // as if turn had found that another node has it; the next turn takes it again
		}
	}
	c.awaitStored("01", want...)
}
