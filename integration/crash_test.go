//go:build unix

package integration

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
	"github.com/caddyrelay/relay/internal/relaytest"
)

// kills is how often something is killed in one run: a few times in CI, CRASH_KILLS times in "make crash".
func kills(t *testing.T) int { t.Helper(); return times(t, "CRASH_KILLS", 5) }

// failovers is how often a primary is killed in one run: FAILOVERS times in "make chaos".
func failovers(t *testing.T) int { t.Helper(); return times(t, "FAILOVERS", 2) }

func times(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q is not a positive number", name, text)
	}
	return n
}

// atLeastOnce is a whole configuration with one stored channel.
func atLeastOnce(broker, options string) string {
	text := strings.Replace(oneChannel(broker), "delivery at_most_once", options, 1)
	return strings.Replace(text, "auth none", "auth none\n\t\t\t\t\tack line", 1)
}

// kill ends the process as a power failure would, as far as the process is concerned.
func (n *node) kill() {
	n.t.Helper()
	if err := n.cmd.Process.Kill(); err != nil {
		n.t.Fatal(err)
	}
	<-n.done
}

func (n *node) httpAddress(int) string { return n.http }
func (n *node) tcpAddress(int) string  { return n.tcp }

// I1, I2, I3: the relay is killed at random moments while publishers and clients go on. What was accepted
// arrives, in order.
func TestI2_RelayKilled(t *testing.T) {
	for _, c := range []struct {
		name   string
		broker func(t *testing.T) string
	}{
		{"embedded", func(*testing.T) string { return "broker embedded" }},
		{"redis", func(t *testing.T) string {
			s := redistest.Start(t, "--appendonly", "yes")
			return "broker redis {\n\t\t\taddress " + s.Addr() + "\n\t\t}"
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			config := atLeastOnce(c.broker(t), "ack_timeout 5s")
			n.start(config)
			ctx, stop := context.WithCancel(context.Background())
			defer stop()
			crew := relaytest.Start(ctx, t, relaytest.Plan{Destinations: 12, Post: n.httpAddress, Dial: n.tcpAddress, Vanishing: relaytest.Vanishing{Close: 200}})
			times := kills(t)
			for range times {
				pauseFor(50*time.Millisecond + rand.N(800*time.Millisecond))
				n.kill()
				n.start(config)
			}
			pauseFor(300 * time.Millisecond)
			stop()
			f := crew.Finish()
			t.Logf("%s: relay killed %d times: %s", c.name, times, f)
			if f.Faults() > 0 || f.Accepted == 0 {
				t.Error("the promises were broken")
			}
		})
	}
}

// I1, I2, I9: redis-server is killed at random moments; with appendfsync always nothing that it has answered is
// lost. The relay and its sockets stay.
func TestI2_RedisKilled(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	n := newNode(t)
	n.start(atLeastOnce("broker redis {\n\t\t\taddress "+server.Addr()+"\n\t\t}", "durability aof_always"))
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	crew := relaytest.Start(ctx, t, relaytest.Plan{Destinations: 12, Post: n.httpAddress, Dial: n.tcpAddress})
	times, away := kills(t), time.Duration(0)
	for range times {
		pauseFor(100*time.Millisecond + rand.N(800*time.Millisecond))
		killed := time.Now()
		server.Kill()
		pauseFor(rand.N(300 * time.Millisecond))
		server.Restart()
		away = max(away, time.Since(killed))
	}
	pauseFor(300 * time.Millisecond)
	stop()
	ended := n.metric(`caddy_relay_ended_total{reason="client_closed"}`)
	f := crew.Finish()
	t.Logf("redis-server killed %d times, and away for up to %.2fs: %s", times, away.Seconds(), f)
	if f.Faults() > 0 || f.Accepted == 0 {
		t.Error("the promises were broken")
	}
	if ended > 0 {
		t.Errorf("%v sockets ended", ended)
	}
}

// I2, I5: clients vanish without a FIN in the middle of a message, and connect anew.
func TestI5_ClientsVanish(t *testing.T) {
	n := newNode(t)
	n.start(atLeastOnce("broker embedded", "ack_timeout 5s"))
	ctx, stop := context.WithTimeout(context.Background(), 3*time.Second)
	defer stop()
	crew := relaytest.Start(ctx, t, relaytest.Plan{Destinations: 12, Post: n.httpAddress, Dial: n.tcpAddress, Vanishing: relaytest.Vanishing{Close: 50, Hang: 20}})
	f := crew.Finish()
	t.Logf("clients vanish: %s", f)
	if f.Faults() > 0 || f.Accepted == 0 {
		t.Error("the promises were broken")
	}
	if f.Duplicates == 0 {
		t.Error("no client vanished with a message in its hands: the test shows nothing")
	}
}
