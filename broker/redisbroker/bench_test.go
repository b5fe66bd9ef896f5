package redisbroker

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// BenchmarkStore measures what a message costs: appended, and settled, by 64 publishers and 64 owners at once. It
// reports the server's time per script call, and commands per message.
func BenchmarkStore(b *testing.B) {
	server := redistest.Start(b, durable...)
	s, err := New(Options{Address: server.Addr()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	s.SetPolicies(map[string]broker.Policy{"pay_mq_channel": {MaxPending: 1 << 30, MaxChannelPending: 1 << 30, MaxPendingBytes: 1 << 40, MaxChannelBytes: 1 << 40}})
	if err := s.Start(); err != nil {
		b.Fatal(err)
	}
	const ids = 64
	body := []byte(strings.Repeat("x", 200))
	server.CLI("CONFIG", "RESETSTAT")
	b.ResetTimer()
	var wg sync.WaitGroup
	began := time.Now()
	for i := range ids {
		wg.Go(func() {
			id := fmt.Sprintf("merchant-%04d", i)
			for n := i; n < b.N; n += ids {
				key := fmt.Sprintf("%028d", n)
				m := &broker.Message{MID: broker.NewMessageID("pay_mq_channel", id, key), Channel: "pay_mq_channel", ID: id, Key: key, Body: body, Time: began}
				if _, err := s.Append(b.Context(), m, broker.AppendOptions{Key: key, Fingerprint: make([]byte, 32)}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	appended := time.Since(began)
	b.ReportMetric(perCall(server), "us-cpu/append")
	server.CLI("CONFIG", "RESETSTAT")
	began = time.Now()
	for i := range ids {
		wg.Go(func() {
			m, page, err := attached(s.Attach(b.Context(), "pay_mq_channel", fmt.Sprintf("merchant-%04d", i), new(owner), broker.AttachOptions{Window: 16}))
			for err == nil && len(page) > 0 {
				for _, e := range page {
					if _, err := m.Settle(b.Context(), []broker.Outcome{{Seq: e.Seq, MID: e.Message.MID, State: broker.StateAcked, Counts: broker.Counts{Attempts: 1}}}); err != nil {
						b.Error(err)
						return
					}
				}
				page, err = entries(m.Read(b.Context(), page[len(page)-1].Seq, 16, 1<<20))
			}
			if err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(appended.Microseconds())/float64(b.N), "us/append")
	b.ReportMetric(float64(time.Since(began).Microseconds())/float64(b.N), "us/settle")
	b.ReportMetric(perCall(server), "us-cpu/settle")
	b.Log(server.CLI("INFO", "commandstats"))
}

// perCall returns the server's time per script call, in microseconds.
func perCall(server *redistest.Server) float64 {
	_, rest, _ := strings.Cut(server.CLI("INFO", "commandstats"), "cmdstat_evalsha:")
	_, rest, _ = strings.Cut(rest, "usec_per_call=")
	text, _, _ := strings.Cut(rest, ",")
	v, _ := strconv.ParseFloat(text, 64)
	return v
}

// BenchmarkRecordBytes measures what finished records take, with realistic names.
func BenchmarkRecordBytes(b *testing.B) {
	server := redistest.Start(b, durable...)
	s, err := New(Options{Address: server.Addr()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	s.SetPolicies(map[string]broker.Policy{"pay_mq_channel": {MaxPending: 1 << 30}})
	if err := s.Start(); err != nil {
		b.Fatal(err)
	}
	const channel, ids, n = "pay_mq_channel", 1000, 100_000
	used := func() int {
		_, rest, _ := strings.Cut(server.CLI("INFO", "memory"), "used_memory:")
		text, _, _ := strings.Cut(rest, "\r\n")
		v, _ := strconv.Atoi(strings.TrimSpace(strings.SplitN(text, "\n", 2)[0]))
		return v
	}
	for range b.N {
		server.CLI("FLUSHALL")
		before := used()
		var wg sync.WaitGroup
		for w := range 50 {
			wg.Go(func() {
				for i := w; i < n; i += 50 {
					id, key := fmt.Sprintf("merchant-%04d", i%ids), fmt.Sprintf("%028d", i)
					m := &broker.Message{MID: broker.NewMessageID(channel, id, key), Channel: channel, ID: id, Key: key, Ref: fmt.Sprintf("order-%010d", i),
						Body: []byte("x"), Time: time.Now()}
					if _, err := s.Append(b.Context(), m, broker.AppendOptions{Key: key, Fingerprint: make([]byte, 32)}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		pending := used()
		for w := range 50 {
			wg.Go(func() {
				for i := w; i < ids; i += 50 {
					m, page, err := attached(s.Attach(b.Context(), channel, fmt.Sprintf("merchant-%04d", i), new(owner), broker.AttachOptions{Window: 1000}))
					if err != nil {
						b.Error(err)
						return
					}
					var all []broker.Outcome
					for _, e := range page {
						all = append(all, broker.Outcome{Seq: e.Seq, MID: e.Message.MID, State: broker.StateAcked, Counts: broker.Counts{Attempts: 1}})
					}
					if _, err := m.Settle(b.Context(), all); err != nil {
						b.Error(err)
					}
					_ = m.Detach(b.Context(), nil)
				}
			})
		}
		wg.Wait()
		finished := used()
		refs := 0
		for _, key := range strings.Fields(server.CLI("--scan", "--pattern", "*:f:*")) {
			if refs == 0 {
				b.Log("a ref takes ", server.CLI("MEMORY", "USAGE", key))
			}
			refs++
		}
		rec := strings.Fields(server.CLI("--scan", "--pattern", "*:r:*"))[0]
		b.Log("a record takes ", server.CLI("MEMORY", "USAGE", rec), server.CLI("OBJECT", "ENCODING", rec), server.CLI("HGETALL", rec))
		b.ReportMetric(float64(pending-before)/n, "B/pending")
		b.ReportMetric(float64(finished-before)/n, "B/finished")
	}
}
