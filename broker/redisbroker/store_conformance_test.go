package redisbroker

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/brokertest"
	"github.com/caddyrelay/relay/internal/redistest"
)

func TestStoreConformance(t *testing.T) { brokertest.RunStore(t, storeHarness()) }

func TestProperties(t *testing.T) { brokertest.Properties(t, storeHarness()) }

func storeHarness() brokertest.StoreHarness {
	return brokertest.StoreHarness{
		Nodes: true, Outages: true, Durability: broker.AOFAlways, Unproven: broker.Durability("replicas:1"),
		Backend: func(t testing.TB) brokertest.StoreBackend {
			server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
			k := &knobs{}
			return brokertest.StoreBackend{
				Crash: func(s broker.Store) {
					s.(*Broker).stop() // so that it has no time to depart
					_ = s.Close()
				},
				Stop: server.Kill, Start: server.Restart, Advance: k.advance, Mute: k.mute,
				Open: func() broker.Store {
					b, err := New(Options{Address: server.Addr(), MaxBackoff: 100 * time.Millisecond, Lease: 2 * time.Second, CheckInterval: time.Second})
					if err != nil {
						t.Fatal(err)
					}
					k.add(b)
					return b
				},
			}
		},
	}
}

// knobs turn what brokers of one server cannot be told otherwise.
type knobs struct {
	mu    sync.Mutex
	all   []*Broker
	shift time.Duration
	muted bool
}

func (k *knobs) add(b *Broker) {
	k.mu.Lock()
	defer k.mu.Unlock()
	// A new process takes the server's clock as it is, and has no way to know that it was ahead. The suite
	// would have it know.
	for _, other := range k.all {
		b.store.clock.last = other.store.clock.now()
	}
	k.all = append(k.all, b)
	b.store.muted.Store(k.muted)
	moveClock(b, k.shift)
}

func (k *knobs) mute(on bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.muted = on
	for _, b := range k.all {
		b.store.muted.Store(on)
	}
}

// advance moves the clock that scripts read.
func (k *knobs) advance(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.shift += d
	for _, b := range k.all {
		moveClock(b, k.shift)
		c := b.store.clock
		c.mu.Lock()
		if !c.told.IsZero() {
			c.told = c.told.Add(d)
		}
		c.mu.Unlock()
	}
}

// moveClock has a broker's scripts read a clock that is ahead of the server's. What they tell Redis to do at a time
// is told in the server's.
func moveClock(b *Broker, shift time.Duration) {
	if shift == 0 {
		return
	}
	var mu sync.Mutex
	moved := make(map[*script]*script)
	rewrite := func(s *script) *script {
		mu.Lock()
		defer mu.Unlock()
		if moved[s] == nil {
			text := strings.Replace(s.text, "* 1000000 +", fmt.Sprintf("* 1000000 + %d +", shift.Microseconds()), 1)
			lines := strings.Split(text, "\n")
			for i, line := range lines {
				if strings.Contains(line, "'PEXPIREAT'") {
					lines[i] = strings.Replace(line, "fmt(", fmt.Sprintf("fmt(%d + ", -shift.Milliseconds()), 1)
				}
			}
			moved[s] = newScript(s.name, strings.Join(lines, "\n"))
		}
		return moved[s]
	}
	b.store.rewrite.Store(&rewrite)
}
