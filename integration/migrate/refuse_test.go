//go:build unix

package migrate

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker/boltbroker"
	"github.com/caddyrelay/relay/internal/freeport"
	"github.com/caddyrelay/relay/internal/redistest"
)

// onRedis is broker redis with migrate_from.
func onRedis(addr, from string) string {
	return "redis {\n\t\t\taddress " + addr + "\n\t\t\tmigrate_from embedded " + from + "\n\t\t}"
}

// fails launches a configuration that must not start, and must say why.
func (n *node) fails(broker string, want ...string) {
	n.t.Helper()
	n.launch(broker)
	select {
	case <-n.done:
	case <-time.After(patience):
		n.t.Fatal("it runs")
	}
	for _, w := range want {
		if !strings.Contains(n.log.String(), w) {
			n.t.Errorf("it does not say %q:\n%s", w, n.log)
		}
	}
}

// stored publishes with the embedded broker, and stops it.
func (n *node) stored(path string, messages int) {
	n.t.Helper()
	n.start(embedded)
	var workers sync.WaitGroup
	for w := range 20 {
		workers.Go(func() {
			for i := w; i < messages; i += 20 {
				status, fields, err := n.post(fmt.Sprintf("%s/%02d", path, w), "", fmt.Sprintf(`{"box":%d,"n":%d}`, w, i))
				if err != nil || status != 202 {
					n.t.Error(status, fields, err)
				}
			}
		})
	}
	workers.Wait()
	n.stop()
}

// What cannot be moved is said before anything is noted in the file, with what to do.
func TestMigrationRefused(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes")
	n := newNode(t)
	n.fails(onRedis(s.Addr(), "{FILE}"), "migrate_from: the store "+n.file, "no such file", "correct the path, or take migrate_from out")
	n.start(onRedis(s.Addr(), ""))
	if !strings.Contains(n.log.String(), "there is no embedded store to move messages from") {
		t.Errorf("without a file:\n%s", n.log)
	}
	n.stop()

	n.stored("/refund", 1)
	refunds := strings.Replace(onRedis(s.Addr(), "{FILE}"), "redis {", "redis {\n\t\t\tprefix other", 1)
	n.without = "refunds"
	n.fails(refunds, "messages of channel refunds, 1 unfinished and 0 dead letters", "configure it, until they are delivered or dropped")
	n.without = ""
	nobody := freeport.Addr(t)
	n.fails(onRedis(nobody, "{FILE}"), "is redis-server running there?", "when that is mended, start Caddy again")
	if m, moved, err := boltbroker.Moved(n.file); moved || err != nil {
		t.Errorf("noted: %+v, %v", m, err)
	}
	volatile := redistest.Start(t)
	n.fails(onRedis(volatile.Addr(), "{FILE}"), "may forget messages", "appendonly yes")

	n.start(refunds)
	n.stop()
	n.start(strings.Replace(refunds, "127.0.0.1", "localhost", 1)) // the same Redis by another name
	if !strings.Contains(n.log.String(), "has moved already") {
		t.Errorf("by another name:\n%s", n.log)
	}
	n.stop()
	n.fails(onRedis(s.Addr(), "{FILE}"), "the store has moved elsewhere: to redis tcp "+s.Addr()+" db=0 prefix=other", "caddy relay unmove "+n.file)
}

// servesNobody fails the test if the node takes a message or welcomes a socket. Caddy starts its parts in any order, so it
// may not listen yet.
func (n *node) servesNobody() {
	n.t.Helper()
	if status, fields, err := n.post("/pay/01", "", "{}"); err == nil && status != 503 {
		n.t.Errorf("while messages move a post is answered %d %v", status, fields)
	}
	c, err := connect(n.pay, "01", 1)
	if err != nil {
		return
	}
	defer c.conn.Close()
	if !c.in.Scan() {
		return
	}
	if text := c.in.Text(); !strings.Contains(text, `"op":"error"`) || !strings.Contains(text, "503") {
		n.t.Errorf("while messages move a socket is told %s", text)
	}
}

// Whoever gives a move up can go back: nothing but the note in the file has changed.
func TestMigrationGivenUp(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes")
	n := newNode(t)
	n.stored("/pay", 2000)
	n.launch(onRedis(s.Addr(), "{FILE}"))
	n.wait("the copy to begin", func() bool { return strings.TrimSpace(s.CLI("KEYS", "relay:*:q:*")) != "" })
	s.Pause() // as if it hung
	n.servesNobody()
	began := time.Now()
	n.stop()
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %s to end while Redis hung", d)
	}
	s.Resume()
	if m, moved, err := boltbroker.Moved(n.file); !moved || !m.Done.IsZero() || err != nil {
		t.Fatalf("%+v, %t, %v: the test has to be quicker", m, moved, err)
	}
	n.fails(embedded, "began to move to redis", "start the configuration with migrate_from again", "caddy relay unmove "+n.file)
	out, err := n.command("relay", "unmove", n.file).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "broker embedded can use "+n.file+" again. It began to move on") {
		t.Fatalf("%v\n%s", err, out)
	}
	n.start(embedded)
	n.wait("the messages", func() bool { return strings.Contains(n.ask("/relay/channels"), `"pending":2000`) })
	n.stop()
	if out, err := n.command("relay", "unmove", n.file).CombinedOutput(); err == nil || !strings.Contains(string(out), "it has not moved") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := n.command("relay", "unmove", filepath.Join(n.dir, "none")).CombinedOutput(); err == nil || !strings.Contains(string(out), "no such file") {
		t.Errorf("%v\n%s", err, out)
	}
	// And from there it can move after all.
	s.CLI("FLUSHALL")
	n.start(onRedis(s.Addr(), "{FILE}"))
	n.wait("the messages", func() bool { return strings.Contains(n.ask("/relay/channels"), `"pending":2000`) })
}

// I2: Redis is killed while messages are copied, and comes back.
func TestI2_RedisKilledWhileMigrating(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes")
	n := newNode(t)
	n.start(embedded)
	mids := fill(t, n)
	n.kill()
	n.launch(onRedis(s.Addr(), "{FILE}"))
	n.wait("the copy to begin", func() bool { return strings.TrimSpace(s.CLI("KEYS", "relay:*:q:*")) != "" })
	s.Kill()
	s.Restart()
	n.logged("serving initial configuration")
	collect(t, n, mids)
}

// I2, I3: a primary is killed while messages are copied. What the new one does not have is copied again.
func TestI2_FailoverWhileMigrating(t *testing.T) {
	copied := func(s *redistest.Server) bool { return strings.TrimSpace(s.CLI("KEYS", "relay:*:q:*")) != "" }
	t.Run("sentinel", func(t *testing.T) {
		s := redistest.StartSentinels(t, 2, "--appendonly", "yes")
		broker := "redis {\n\t\t\taddress " + strings.Join(s.Addrs, " ") + "\n\t\t\tmaster_name " + s.Name + "\n\t\t\tmigrate_from embedded {FILE}\n\t\t}"
		migrateAcross(t, broker, func() bool { return copied(s.Primary()) }, s.Failover)
	})
	t.Run("cluster", func(t *testing.T) {
		c := redistest.StartCluster(t, "--appendonly", "yes")
		first := c.Servers[0]
		migrateAcross(t, onCluster(c, "migrate_from embedded {FILE}"), func() bool { return copied(first) }, func() { c.Failover() })
	})
}

// migrateAcross moves messages, while something happens as soon as the copy has begun.
func migrateAcross(t *testing.T, broker string, begun func() bool, happens func()) {
	n := newNode(t)
	n.start(embedded)
	mids := fill(t, n)
	n.kill()
	n.launch(broker)
	n.wait("the copy to begin", begun)
	happens()
	for tries := 0; ; tries++ {
		n.wait("the copy to end", func() bool {
			select {
			case <-n.done:
				return true
			default:
			}
			return strings.Contains(n.log.String(), "serving initial configuration")
		})
		if strings.Contains(n.log.String(), "serving initial configuration") {
			break
		}
		if tries == 2 {
			t.Fatalf("the copy fails:\n%s", n.log)
		}
		t.Logf("started again after: %s", lineOf(n.log.String(), "migrate_from: "))
		n.launch(broker)
	}
	t.Log(lineOf(n.log.String(), "the messages have moved"))
	collect(t, n, mids)
}
