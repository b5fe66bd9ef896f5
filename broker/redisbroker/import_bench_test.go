package redisbroker

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/boltbroker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// BenchmarkMigration moves MIGRATE_MESSAGES (20,000) messages of 500 bytes in 500 mailboxes, half of them with a key, to a
// Redis that writes its file once a second. docs/migrate-from-embedded.md has its figure.
func BenchmarkMigration(b *testing.B) {
	messages := 20_000
	if n, err := strconv.Atoi(os.Getenv("MIGRATE_MESSAGES")); err == nil {
		messages = n
	}
	path := filepath.Join(b.TempDir(), "relay.db")
	source := boltbroker.New(boltbroker.Options{Path: path, NoSync: true})
	source.SetPolicies(map[string]broker.Policy{"c": {MaxPending: messages, MaxChannelPending: messages + 1}})
	var workers sync.WaitGroup
	for w := range 500 {
		workers.Go(func() {
			for i := range messages / 500 {
				key, id := "", fmt.Sprint("shop-", w)
				if i%2 == 0 {
					key = fmt.Sprint(i)
				}
				m := &broker.Message{MID: broker.NewMessageID("c", id, key), Channel: "c", ID: id, Key: key, Time: time.Now(), Body: make([]byte, 500)}
				if _, err := source.Append(b.Context(), m, broker.AppendOptions{Key: key}); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	workers.Wait()
	if err := source.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		target, err := New(Options{Address: redistest.Start(b, "--appendonly", "yes").Addr()})
		if err != nil {
			b.Fatal(err)
		}
		defer target.Close()
		b.StartTimer()
		from, err := boltbroker.OpenExport(path)
		if err != nil {
			b.Fatal(err)
		}
		moved, err := broker.Migration{From: from, To: target, Name: "there", Channels: []string{"c"}}.Run(b.Context())
		if err != nil || moved.Items != messages {
			b.Fatal(moved, err)
		}
		_ = from.Close()
		if _, err := boltbroker.Unmove(path); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(messages)*float64(b.N)/b.Elapsed().Seconds(), "messages/s")
}
