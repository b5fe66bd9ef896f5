//go:build unix

package integration

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
	"github.com/caddyrelay/relay/internal/relaytest"
)

// I1, I2, I3, I9: the primary is killed at random moments, and Sentinels promote a replica. What was accepted was
// confirmed by all replicas, so none of it is lost. Publishers post to one node and clients are on another one; sockets
// stay.
func TestI2_SentinelFailovers(t *testing.T) {
	s := redistest.StartSentinels(t, 2, "--appendonly", "yes")
	config := atLeastOnce("broker redis {\n\t\t\taddress "+strings.Join(s.Addrs, " ")+"\n\t\t\tmaster_name "+s.Name+
		"\n\t\t\tdurability replicas 2 500ms\n\t\t}", "ack_timeout 30s")
	a, b := newNode(t), newNode(t)
	a.start(config)
	b.start(config)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	crew := relaytest.Start(ctx, t, relaytest.Plan{Destinations: 12, Post: a.httpAddress, Dial: b.tcpAddress})
	times, longest := failovers(t), time.Duration(0)
	for i := range times {
		if i > 0 {
			s.Settle()
		}
		pauseFor(500*time.Millisecond + rand.N(500*time.Millisecond))
		began := time.Now()
		s.Failover()
		longest = max(longest, time.Since(began))
	}
	pauseFor(time.Second)
	stop()
	ended := b.metric(`caddy_relay_ended_total{reason="client_closed"}`) + b.metric(`caddy_relay_ended_total{reason="taken_over"}`)
	f := crew.Finish()
	t.Logf("%d failovers, the longest until the old primary was a replica took %.2fs: %s", times, longest.Seconds(), f)
	if f.Faults() > 0 || f.Accepted == 0 {
		t.Error("the promises were broken")
	}
	if ended > 0 {
		t.Errorf("%v sockets ended", ended)
	}
}
