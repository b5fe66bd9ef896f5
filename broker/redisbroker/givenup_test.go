package redisbroker

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// A caller that gives up while its command is at the server must not look at the answer that comes later.
func TestCommandGivenUp(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr(), Timeout: 20 * time.Second}, broker.Policy{})
	for _, ask := range []func(context.Context){
		func(ctx context.Context) { _, _ = b.store.command(ctx, "PING", "key") },
		func(ctx context.Context) { _ = commander{s: b.store}.Do(ctx, "PING", "key").Err() },
	} {
		// One of a few tries finds the lane idle, so that the command is at the server when its caller gives up.
		for range 5 {
			server.Pause()
			var all sync.WaitGroup
			all.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
				defer cancel()
				ask(ctx)
			})
			all.Wait()
			server.Resume()
			if _, err := b.store.command(timeout(t), "PING", "key"); err != nil { // behind it in the lane
				t.Fatal(err)
			}
		}
	}
}
