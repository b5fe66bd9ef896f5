package redisbroker

import (
	"context"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// settler is an owner that acknowledges what it is handed, several at once if they come at once, as a session does.
type settler struct {
	owner
	mu      sync.Mutex
	through uint64
	more    bool
	todo    []broker.Outcome
	wake    chan struct{}
	done    *atomic.Int64
}

func (s *settler) Ring() { s.mu.Lock(); s.more = true; s.mu.Unlock(); wake(s.wake) }

func (s *settler) Offer(prev uint64, e broker.Entry) {
	s.mu.Lock()
	switch {
	case e.Seq <= s.through:
	case prev > s.through:
		s.more = true
	default:
		s.takeLocked(e)
	}
	s.mu.Unlock()
	wake(s.wake)
}

func (s *settler) takeLocked(e broker.Entry) {
	s.through = e.Seq
	s.todo = append(s.todo, broker.Outcome{Seq: e.Seq, MID: e.Message.MID, State: broker.StateAcked, Counts: broker.Counts{Attempts: 1}})
}

func (s *settler) run(ctx context.Context, m broker.Mailbox) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		s.mu.Lock()
		more, after := s.more, s.through
		s.more = false
		s.mu.Unlock()
		if more {
			page, err := m.Read(ctx, after, 32, 1<<20)
			if err != nil {
				return err
			}
			s.mu.Lock()
			for _, e := range page.Entries {
				if e.Seq > s.through {
					s.takeLocked(e)
				}
			}
			s.through = max(s.through, page.Through)
			if s.more = s.more || page.More; s.more {
				wake(s.wake)
			}
			s.mu.Unlock()
		}
		s.mu.Lock()
		todo := s.todo
		s.todo = nil
		s.mu.Unlock()
		if len(todo) == 0 {
			continue
		}
		if _, err := m.Settle(ctx, todo); err != nil && ctx.Err() == nil {
			return err
		}
		s.done.Add(int64(len(todo)))
	}
}

var commandCalls = regexp.MustCompile(`cmdstat_([^:|]+)(?:\|[^:]+)?:calls=(\d+),usec=(\d+)`)

// cost returns what the server did since the last reset: commands that clients sent, and its CPU in microseconds.
func cost(b *testing.B, server *redistest.Server) (commands, micros float64) {
	b.Helper()
	for _, m := range commandCalls.FindAllStringSubmatch(server.CLI("INFO", "commandstats"), -1) {
		if inScripts[m[1]] {
			continue
		}
		n, _ := strconv.ParseFloat(m[2], 64)
		commands += n
	}
	for line := range strings.Lines(server.CLI("INFO", "cpu")) {
		for _, name := range []string{"used_cpu_user:", "used_cpu_sys:"} {
			if text, ok := strings.CutPrefix(strings.TrimSpace(line), name); ok {
				v, err := strconv.ParseFloat(text, 64)
				if err != nil {
					b.Fatal(err)
				}
				micros += v * 1e6
			}
		}
	}
	return commands, micros
}

// inScripts are commands that scripts run, which INFO counts as if clients had sent them.
var inScripts = map[string]bool{
	"time": true, "hmget": true, "hget": true, "hset": true, "hdel": true, "hincrby": true, "rpush": true, "lpop": true,
	"lindex": true, "llen": true, "lrange": true, "lset": true, "zadd": true, "zrem": true, "zrange": true, "zcard": true, "sadd": true, "pexpireat": true,
	"pttl": true, "persist": true, "del": true, "lrem": true, "srem": true, "zremrangebyrank": true,
	"publish": true, "info": true, "config": true,
}

// BenchmarkNodes shows what one stored and acknowledged message costs Redis with 1 to 20 nodes: commands, and CPU time. All nodes
// are in this process, each with its own broker; publishers and owners are spread over them, so with 20 nodes
// 19 of 20 messages are for a socket on another node. "full" is as fast as it goes, so that batches are large; at "2000" messages a
// second nearly every message has commands of its own.
func BenchmarkNodes(b *testing.B) {
	for _, rate := range []int{0, 2000} {
		for _, nodes := range []int{1, 2, 5, 10, 20} {
			name := "full"
			if rate > 0 {
				name = strconv.Itoa(rate)
			}
			b.Run(fmt.Sprintf("rate=%s/nodes=%d", name, nodes), func(b *testing.B) { benchmarkNodes(b, nodes, rate) })
		}
	}
}

func benchmarkNodes(b *testing.B, nodes, rate int) {
	server := redistest.Start(b, durable...)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var done atomic.Int64
	all := make([]*Broker, nodes)
	for i := range all {
		s, err := New(Options{Address: server.Addr(), Node: fmt.Sprint("node-", i)})
		if err != nil {
			b.Fatal(err)
		}
		defer s.Close()
		s.SetPolicies(map[string]broker.Policy{"c": {MaxChannelPending: 10_000_000}})
		all[i] = s
	}
	const ids = 200
	var owners sync.WaitGroup
	for i := range ids {
		o := &settler{wake: make(chan struct{}, 1), done: &done}
		m, page, err := all[i%nodes].Attach(ctx, "c", fmt.Sprint("merchant-", i), o, broker.AttachOptions{Window: 16})
		if err != nil {
			b.Fatal(err)
		}
		o.mu.Lock()
		o.through = max(o.through, page.Through)
		o.mu.Unlock()
		owners.Go(func() {
			if err := o.run(ctx, m); err != nil {
				b.Error(err)
			}
		})
	}
	body := []byte(strings.Repeat("x", 128))
	time.Sleep(2 * time.Second) // until all nodes have connected and looked at the server
	server.CLI("CONFIG", "RESETSTAT")
	_, before := cost(b, server)
	began := time.Now()
	b.ResetTimer()
	var next atomic.Int64
	var publishers sync.WaitGroup
	for range 32 {
		publishers.Go(func() {
			for i := next.Add(1) - 1; i < int64(b.N); i = next.Add(1) - 1 {
				if rate > 0 {
					time.Sleep(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
				}
				id := fmt.Sprint("merchant-", rand.N(ids))
				m := &broker.Message{MID: broker.NewMessageID("c", id, ""), Channel: "c", ID: id, Body: body, Time: time.Now()}
				if _, err := all[i%int64(nodes)].Append(ctx, m, broker.AppendOptions{}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	publishers.Wait()
	for done.Load() < int64(b.N) {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	took := time.Since(began)
	commands, micros := cost(b, server)
	b.ReportMetric(commands/float64(b.N), "commands/msg")
	b.ReportMetric((micros-before)/float64(b.N), "redis-us/msg")
	b.ReportMetric(float64(b.N)/took.Seconds(), "msg/s")
	cancel()
	owners.Wait()
}
