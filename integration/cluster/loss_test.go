//go:build unix

package cluster

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
	"github.com/caddyrelay/relay/internal/relaytest"
)

// The test must be able to find what it looks for: a Redis that forgets, and is killed together with a node that was cut off
// and for which messages wait.
func TestLossIsFound(t *testing.T) {
	net := newNetwork(t)
	form := &standalone{t, redistest.Start(t, "--bind", net.redisHost(), "--protected-mode", "no")}
	f := startFleet(t, net, form, "allow_volatile", t.TempDir())
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	crew := startCrew(ctx, t, f, relaytest.Plan{Grace: 3 * time.Second})
	victim := f.nodes[0]
	connected := crew.Connected()
	if err := victim.site.cut(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "messages to wait for the node", func() bool {
		waiting := 0
		for _, m := range crew.Missing() {
			if id, _, _ := strings.Cut(m, "/"); connected[id] == victim.tcp {
				waiting++
			}
		}
		return waiting > 10
	})
	// The node too, or it might still get what Redis had told it.
	victim.kill()
	form.killPrimary()
	stop()
	if err := victim.site.heal(); err != nil {
		t.Fatal(err)
	}
	victim.launch(f.config(victim, ""))
	victim.serves()
	if found := crew.Finish(); found.Lost == 0 {
		t.Errorf("nothing is lost: %s", found)
	} else {
		t.Logf("a Redis without a file and a node that was cut off are killed, durability %s: %s", crew.Durability(), found)
	}
}
