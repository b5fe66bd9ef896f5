package boltbroker

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// unlimited is a policy whose limits no benchmark reaches.
var unlimited = map[string]broker.Policy{channel: {
	MaxPending: 1 << 30, MaxChannelPending: 1 << 30, MaxPendingBytes: 1 << 40, MaxChannelBytes: 1 << 40,
}}

// benchMessage has an ID, a key and a ref of realistic lengths.
func benchMessage(id string, n int, body []byte) *broker.Message {
	key := fmt.Sprintf("%028d", n)
	return &broker.Message{
		MID: broker.NewMessageID(channel, id, key), Channel: channel, ID: id, Key: key, Ref: fmt.Sprintf("order-%010d", n), Body: body, Time: time.Now(),
	}
}

// BenchmarkStore measures what a message costs, appended and settled one by one, by 64 publishers and 64 owners at once.
func BenchmarkStore(b *testing.B) {
	s := newStore(b, Options{})
	s.SetPolicies(unlimited)
	const ids = 64
	body := []byte(strings.Repeat("x", 200))
	each := func(f func(id string, i int) error) time.Duration {
		began := time.Now()
		var wg sync.WaitGroup
		for i := range ids {
			wg.Go(func() {
				if err := f(fmt.Sprintf("merchant-%04d", i), i); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
		return time.Since(began)
	}
	b.ResetTimer()
	appended := each(func(id string, i int) error {
		for n := i; n < b.N; n += ids {
			m := benchMessage(id, n, body)
			if _, err := s.Append(b.Context(), m, broker.AppendOptions{Key: m.Key, Fingerprint: make([]byte, 32)}); err != nil {
				return err
			}
		}
		return nil
	})
	settled := each(func(id string, _ int) error { return drain(b.Context(), s, id, 16, 1) })
	b.ReportMetric(float64(appended.Microseconds())/float64(b.N), "us/append")
	b.ReportMetric(float64(settled.Microseconds())/float64(b.N), "us/settle")
}

// drain acknowledges all messages of a mailbox, batch at a time.
func drain(ctx context.Context, s *Broker, id string, window, batch int) error {
	m, page, err := attached(s.Attach(ctx, channel, id, nobody{}, broker.AttachOptions{Window: window}))
	for err == nil && len(page) > 0 {
		last := page[len(page)-1].Seq
		for len(page) > 0 {
			some := page[:min(batch, len(page))]
			page = page[len(some):]
			outcomes := make([]broker.Outcome, len(some))
			for i, e := range some {
				outcomes[i] = broker.Outcome{Seq: e.Seq, MID: e.Message.MID, State: broker.StateAcked, Counts: broker.Counts{Attempts: 1}}
			}
			if _, err := m.Settle(ctx, outcomes); err != nil {
				return err
			}
		}
		page, err = entries(m.Read(ctx, last, window, 1<<20))
	}
	if err != nil {
		return err
	}
	return m.Detach(ctx, nil)
}

// BenchmarkRecordBytes measures what records take in the file and in memory: pending with a body of one byte, and finished.
func BenchmarkRecordBytes(b *testing.B) {
	const ids, n = 1000, 200_000
	for range b.N {
		s := newStore(b, Options{})
		s.SetPolicies(unlimited)
		empty := heapBytes()
		var wg sync.WaitGroup
		for w := range 64 {
			wg.Go(func() {
				for i := w; i < n; i += 64 {
					m := benchMessage(fmt.Sprintf("merchant-%04d", i%ids), i, []byte("x"))
					if _, err := s.Append(b.Context(), m, broker.AppendOptions{Key: m.Key, Fingerprint: make([]byte, 32)}); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		b.ReportMetric(float64(size(b, s.o.Path))/n, "file-B/pending")
		b.ReportMetric(float64(heapBytes()-empty)/n, "heap-B/pending")
		for i := range ids {
			if err := drain(b.Context(), s, fmt.Sprintf("merchant-%04d", i), 1000, 1000); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(size(b, s.o.Path))/n, "file-B/finished")
		b.ReportMetric(float64(heapBytes()-empty)/n, "heap-B/finished")
		s.Close()
		began := time.Now()
		again := newStore(b, Options{Path: s.o.Path})
		if err := again.Start(); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(began).Seconds()/n*1e6, "s-open/million")
		again.Close()
	}
}

func size(b *testing.B, path string) int64 {
	b.Helper()
	info, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	return info.Size()
}

func heapBytes() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
