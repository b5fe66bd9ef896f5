package brokertest

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// memoryBackend is a store in memory. With clock, its time is moved by hand on top of the real one.
func memoryBackend(clock bool) StoreBackend {
	var offset atomic.Int64
	first := NewMemory(MemoryOptions{Interval: 20 * time.Millisecond, Clock: func() time.Time { return time.Now().Add(time.Duration(offset.Load())) }})
	_ = first.Close() // else it sweeps too, and counts what the others should
	b := StoreBackend{
		Open:  func() broker.Store { return first.Another("") },
		Crash: func(s broker.Store) { s.(*Memory).Crash() },
		Stop:  first.Stop, Start: first.Start, Mute: first.Mute,
	}
	if clock {
		b.Advance = func(d time.Duration) { offset.Add(int64(d)) }
	}
	return b
}

func memoryHarness(clock bool) StoreHarness {
	return StoreHarness{
		Nodes: true, Outages: true, Durability: broker.Memory, Unproven: broker.Fsync,
		Backend: func(testing.TB) StoreBackend { return memoryBackend(clock) },
	}
}

// A store without a fault passes.
func TestSoundStore(t *testing.T) { RunStore(t, memoryHarness(true)) }

// So it does by the real clock.
func TestSoundStoreInRealTime(t *testing.T) { RunStore(t, memoryHarness(false)) }

// The store in memory passes what at_most_once brokers do.
func TestSoundMemory(t *testing.T) {
	Run(t, Harness{Nodes: true, Outages: true, Backend: func(testing.TB) Backend {
		b := memoryBackend(false)
		return Backend{Open: func() broker.Broker { return b.Open() }, Stop: b.Stop, Start: b.Start}
	}})
}
