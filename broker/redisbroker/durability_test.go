package redisbroker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// transcript is a log that a test reads.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *transcript) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// I1, I9: a server that may forget is refused, with the command that mends it, until it is mended.
func TestI1_Preflight(t *testing.T) {
	for _, c := range []struct {
		name, remedy string
		args, mend   []string
	}{
		{"no AOF", "CONFIG SET appendonly yes", nil, []string{"CONFIG", "SET", "appendonly", "yes"}},
		{"evicts", "CONFIG SET maxmemory-policy noeviction", []string{"--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"},
			[]string{"CONFIG", "SET", "maxmemory-policy", "noeviction"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := redistest.Start(t, c.args...)
			log := new(transcript)
			b := open(t, Options{Address: server.Addr(), Logger: slog.New(slog.NewTextHandler(log, nil))})
			b.SetPolicies(map[string]broker.Policy{"c": {}})
			// Without Start: the first append is what connects.
			m := message("01", "", "x")
			stored, err := b.Append(timeout(t), m, broker.AppendOptions{})
			if !errors.Is(err, broker.ErrRefused) || !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), c.remedy) || stored.MID != "" {
				t.Errorf("appended: %+v, %v", stored, err)
			}
			if err := b.Ready(); err == nil || !strings.Contains(err.Error(), c.remedy) {
				t.Errorf("ready: %v", err)
			}
			until(t, "the complaint to be logged", func() bool { return log.count(c.remedy) == 1 })
			if keys := server.CLI("KEYS", "*:[qmr]:*"); keys != "" {
				t.Errorf("stored all the same: %s", keys)
			}
			volatile := open(t, Options{Address: server.Addr()})
			volatile.SetPolicies(map[string]broker.Policy{"c": {AllowVolatile: true}})
			if stored, err := volatile.Append(timeout(t), message("02", "", "x"), broker.AppendOptions{}); err != nil || stored.Durability != broker.Memory {
				t.Errorf("with AllowVolatile: %+v, %v", stored, err)
			}
			server.CLI(c.mend...)
			until(t, "the store to be ready", func() bool { return b.Ready() == nil })
			mustAppend(t, b, "01", "x")
			if n := log.count(c.remedy); n != 1 {
				t.Errorf("logged %d times", n)
			}
		})
	}
}

func TestI1_LevelsAreObserved(t *testing.T) {
	for _, c := range []struct {
		fsync string
		want  broker.Durability
	}{{"always", broker.AOFAlways}, {"everysec", broker.AOFEverysec}, {"no", broker.Memory}} {
		server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", c.fsync)
		b := openStore(t, Options{Address: server.Addr()}, broker.Policy{Durability: broker.AOFAlways})
		stored, err := b.Append(timeout(t), message("01", "", "x"), broker.AppendOptions{})
		if stored.Durability != c.want || stored.MID == "" {
			t.Errorf("appendfsync %s: %+v", c.fsync, stored)
		}
		if met := c.want == broker.AOFAlways; met != (err == nil) || !met && !errors.Is(err, broker.ErrUnproven) || met != (b.Ready() == nil) {
			t.Errorf("appendfsync %s: %v; ready: %v", c.fsync, err, b.Ready())
		}
	}
}

// Without a replica WAIT proves nothing, and with one it does, for a duplicate too.
func TestI1_Replicas(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--repl-diskless-sync-delay", "0")
	b := openStore(t, Options{Address: server.Addr(), Settings: Settings{Replicas: 1}}, broker.Policy{})
	key := func(body string) (broker.Stored, error) {
		return b.Append(timeout(t), message("01", body, body), broker.AppendOptions{Key: body})
	}
	if stored, err := key("a"); !errors.Is(err, broker.ErrUnproven) || stored.MID == "" || stored.Durability != "aof_everysec+replicas:0/1" {
		t.Errorf("without a replica: %+v, %v", stored, err)
	}
	if err := b.Ready(); err == nil || !strings.Contains(err.Error(), "has 0") {
		t.Errorf("ready without a replica: %v", err)
	}
	replica := redistest.Start(t, "--replicaof", "127.0.0.1 "+server.Port())
	until(t, "the replica", func() bool { return strings.Contains(server.CLI("INFO", "replication"), "state=online") })
	until(t, "the replica to confirm", func() bool {
		stored, err := key("a")
		return err == nil && stored.Duplicate && stored.Durability == "aof_everysec+replicas:1/1"
	})
	if stored, err := key("b"); err != nil || stored.Durability != "aof_everysec+replicas:1/1" {
		t.Errorf("with a replica: %+v, %v", stored, err)
	}
	until(t, "the store to be ready", func() bool { return b.Ready() == nil })
	replica.Pause()
	if stored, err := key("a"); !errors.Is(err, broker.ErrUnproven) || !stored.Duplicate {
		t.Errorf("with a replica that stands still: %+v, %v", stored, err)
	}
	replica.Resume()

	b.Configure(Settings{})
	if stored, err := key("c"); err != nil || stored.Durability != "aof_everysec" {
		t.Errorf("after a reload that asks for no replicas: %+v, %v", stored, err)
	}
}

// From Redis 7.2 on WAIT waits for what its connection wrote last, so a duplicate must write something.
func TestI1_DuplicateRaisesTheOffset(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--repl-ping-replica-period", "3600", "--repl-diskless-sync-delay", "0")
	redistest.Start(t, "--replicaof", "127.0.0.1 "+server.Port())
	until(t, "the replica", func() bool { return strings.Contains(server.CLI("INFO", "replication"), "state=online") })
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	// What the sweeper writes would hide it: with nothing due it writes nothing.
	offset := func() int {
		_, rest, _ := strings.Cut(server.CLI("INFO", "replication"), "master_repl_offset:")
		text, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	add := func() broker.Stored {
		stored, err := b.Append(timeout(t), message("01", "k", "x"), broker.AppendOptions{Key: "k"})
		if err != nil {
			t.Fatal(err)
		}
		return stored
	}
	add()
	for _, state := range []broker.State{broker.StateStored, broker.StateAcked} {
		if state == broker.StateAcked {
			m, page := mustAttach(t, b, "01", new(owner), 1)
			mustSettle(t, m, broker.StateAcked, page...)
		}
		ttl := server.CLI("PTTL", recordKey(b, message("01", "k", "x").MID))
		before := offset()
		if stored := add(); !stored.Duplicate || stored.State != state {
			t.Errorf("%+v", stored)
		}
		if after := offset(); after <= before {
			t.Errorf("%s: the offset went from %d to %d", state, before, after)
		}
		now := server.CLI("PTTL", recordKey(b, message("01", "k", "x").MID))
		if a, b := number(t, ttl), number(t, now); b > a || a-b > 60_000 {
			t.Errorf("%s: the record's time to live went from %s to %s", state, ttl, now)
		}
	}
}

func recordKey(b *Broker, mid string) string { key, _ := b.names.record(mid); return key }

func number(t *testing.T, text string) int {
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// I9, I10: at maxmemory appends are refused with nothing half done, and everything that frees memory works.
func TestI9_MaxMemory(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	var mids []string
	for i := range 6 {
		mids = append(mids, mustAppend(t, b, "01", fmt.Sprint(i)))
	}
	key, err := b.Append(timeout(t), message("02", "k", "x"), broker.AppendOptions{Key: "k"})
	if err != nil {
		t.Fatal(err)
	}
	short := message("03", "", "x")
	if _, err := b.Append(timeout(t), short, broker.AppendOptions{TTL: 50 * time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	server.CLI("CONFIG", "SET", "maxmemory", "1")
	dump := server.CLI("KEYS", "*:[qmrnob]*:*[04]*")
	m := message("04", "other", "x")
	m.Ref = "order"
	if stored, err := b.Append(timeout(t), m, broker.AppendOptions{Key: "other"}); !errors.Is(err, broker.ErrRefused) || !errors.Is(err, broker.ErrUnavailable) ||
		!strings.Contains(err.Error(), "raise maxmemory") || stored.MID != "" {
		t.Errorf("appended: %+v, %v", stored, err)
	}
	if now := server.CLI("KEYS", "*:[qmrnob]*:*[04]*"); len(now) > len(dump) {
		t.Errorf("half done:\n%s\nbefore:\n%s", now, dump)
	}
	if again, err := b.Append(timeout(t), message("02", "k", "x"), broker.AppendOptions{Key: "k", Wait: true}); err != nil || again.MID != key.MID {
		t.Errorf("a duplicate: %+v, %v", again, err)
	}
	box, page := mustAttach(t, b, "01", new(owner), 5)
	mustSettle(t, box, broker.StateAcked, page[1])
	mustSettle(t, box, broker.StateStored, page[0])
	mustSettle(t, box, broker.StateDead, page[2])
	mustSettle(t, box, broker.StateAcked, page[0])
	if err := box.Detach(timeout(t), nil); err != nil {
		t.Error(err)
	}
	box, page = mustAttach(t, b, "01", new(owner), 5)
	if len(page) != 3 {
		t.Fatalf("%d entries", len(page))
	}
	mustSettle(t, box, broker.StateAcked, page[:2]...)
	if err := box.Detach(timeout(t), nil); err != nil {
		t.Error(err)
	}
	if c, err := b.Cancel(timeout(t), mids[5]); c != broker.CancelDone || err != nil {
		t.Errorf("cancel: %d, %v", c, err)
	}
	until(t, "the sweep", func() bool { return stateOf(t, b, short.MID) == broker.StateExpired })
	if err := b.Drop(timeout(t), mids[2]); err != nil {
		t.Error(err)
	}
	server.CLI("CONFIG", "SET", "maxmemory", "0")
	if stored, err := b.Append(timeout(t), message("04", "other", "x"), broker.AppendOptions{Key: "other"}); err != nil || stored.Duplicate {
		t.Errorf("with memory again: %+v, %v", stored, err)
	}
}

// I1, I2: what was accepted survives SIGKILL of redis-server, and the broker goes on by itself. The scripts are
// unknown to the new server.
func TestI1_ServerIsKilled(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	b := openStore(t, Options{Address: server.Addr(), MaxBackoff: 50 * time.Millisecond}, broker.Policy{})
	o := new(owner)
	m, _ := mustAttach(t, b, "01", o, 100)
	accepted := make(map[string]bool)
	var mu sync.Mutex
	var publishers sync.WaitGroup
	stop := make(chan struct{})
	for range 4 {
		publishers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				stored, err := b.Append(ctx, message("01", "", "x"), broker.AppendOptions{})
				cancel()
				if err == nil {
					mu.Lock()
					accepted[stored.MID] = true
					mu.Unlock()
				}
			}
		})
	}
	some := func(n int) {
		mu.Lock()
		want := len(accepted) + n
		mu.Unlock()
		until(t, "messages", func() bool { mu.Lock(); defer mu.Unlock(); return len(accepted) >= want })
	}
	for range 3 {
		some(50)
		server.Kill()
		server.Restart()
	}
	some(50)
	close(stop)
	publishers.Wait()
	var page []broker.Entry
	until(t, "the mailbox", func() bool {
		var err error
		page, err = entries(m.Read(timeout(t), 0, 1_000_000, 1<<30))
		return err == nil
	})
	got := make(map[string]int)
	for _, e := range page {
		got[e.Message.MID]++
	}
	for mid := range accepted {
		if got[mid] != 1 {
			t.Fatalf("%s is there %d times, of %d accepted and %d found", mid, got[mid], len(accepted), len(page))
		}
	}
	if _, lost := o.heard(); len(lost) > 0 {
		t.Errorf("lost: %v", lost)
	}
}

// A store of another format is neither read nor changed.
func TestForeignFormat(t *testing.T) {
	server := redistest.Start(t, durable...)
	server.CLI("HSET", "relay:meta", "format", "2", "partitions", "64")
	b := open(t, Options{Address: server.Addr()})
	b.SetPolicies(map[string]broker.Policy{"c": {}})
	check := func(what string, err error) {
		t.Helper()
		if !errors.Is(err, broker.ErrFormat) || !strings.Contains(err.Error(), "format 2") || !strings.Contains(err.Error(), "format 1") {
			t.Errorf("%s: %v", what, err)
		}
	}
	check("start", b.Start())
	_, err := b.Append(timeout(t), message("01", "", "x"), broker.AppendOptions{})
	check("append", err)
	if !errors.Is(err, broker.ErrRefused) {
		t.Errorf("append: %v", err)
	}
	check("ready", b.Ready())
	if n := server.CLI("DBSIZE"); n != "1" {
		t.Errorf("%s keys", n)
	}
	server.CLI("DEL", "relay:meta")
	until(t, "the store to be ready", func() bool { return b.Ready() == nil })
	mustAppend(t, b, "01", "x")
}
