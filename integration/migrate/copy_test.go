//go:build unix

package migrate

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker/boltbroker"
	"github.com/caddyrelay/relay/internal/redistest"
)

const (
	boxes, each = 500, 20 // mailboxes, and messages in each
	touched     = 50      // mailboxes that a back end was seen for
	kills       = 5       // during the copy
)

// box is one mailbox.
type box struct{ number int }

func (b box) id() string { return fmt.Sprintf("shop-%03d", b.number) }

func (b box) path() string {
	if b.number%4 == 3 {
		return "/refund/" + b.id()
	}
	return "/pay/" + b.id()
}

func (b box) addr(n *node) string {
	if b.number%4 == 3 {
		return n.back
	}
	return n.pay
}

// key is what message i of the mailbox is published with; not all have one.
func (b box) key(i int) string {
	if b.number%5 == 4 {
		return ""
	}
	return fmt.Sprintf("order-%d-%d", b.number, i)
}

func (b box) body(i int) string { return fmt.Sprintf(`{"box":%d,"n":%d}`, b.number, i) }

// eachBox calls f for some mailboxes, several at once.
func eachBox(t *testing.T, from, to int, f func(b box) error) {
	t.Helper()
	queue, errs := make(chan box), make(chan error, to-from)
	var workers sync.WaitGroup
	for range 64 {
		workers.Go(func() {
			for b := range queue {
				if err := f(b); err != nil {
					errs <- fmt.Errorf("%s: %w", b.id(), err)
				}
			}
		})
	}
	for i := from; i < to; i++ {
		queue <- box{i}
	}
	close(queue)
	workers.Wait()
	close(errs)
	shown := 0
	for err := range errs {
		t.Error(err)
		if shown++; shown == 10 {
			break
		}
	}
	if shown > 0 {
		t.FailNow()
	}
}

// fill publishes, and has back ends acknowledge the first message of some mailboxes, give up the second, ask for the third
// again, and say nothing of the fourth. It returns the MIDs.
func fill(t *testing.T, n *node) *[boxes][each]string {
	t.Helper()
	var mids [boxes][each]string
	eachBox(t, 0, boxes, func(b box) error {
		for i := range each {
			status, fields, err := n.post(b.path(), b.key(i), b.body(i))
			if err != nil || status != 202 {
				return fmt.Errorf("message %d is answered %d %v: %w", i, status, fields, err)
			}
			mids[b.number][i] = fields["mid"].(string)
		}
		return nil
	})
	eachBox(t, 0, touched, func(b box) error {
		c, err := connect(b.addr(n), b.id(), 4)
		if err != nil {
			return err
		}
		defer c.conn.Close()
		for i, answer := range []string{
			`{"op":"ack","mid":%q,"reply":{"paid":true}}`, `{"op":"nack","mid":%q,"terminate":true,"reason":"no such order"}`, `{"op":"nack","mid":%q,"delay":1}`,
		} {
			m, err := c.next()
			if err == nil && m.Body.N != i {
				err = fmt.Errorf("got message %d, want %d", m.Body.N, i)
			}
			if err != nil {
				return err
			}
			if err := c.say(answer, m.MID); err != nil {
				return err
			}
		}
		return nil
	})
	n.wait("what the back ends said", func() bool {
		text := n.ask("/relay/channels")
		return strings.Contains(text, fmt.Sprintf(`"pending":%d`, 3*boxes*each/4-2*38)) && strings.Contains(text, fmt.Sprintf(`"pending":%d`, boxes*each/4-2*12))
	})
	return &mids
}

// collect has back ends for all mailboxes, which must get what was not finished, in order, and once each.
func collect(t *testing.T, n *node, mids *[boxes][each]string) {
	t.Helper()
	eachBox(t, 0, boxes, func(b box) error {
		c, err := connect(b.addr(n), b.id(), 8)
		if err != nil {
			return err
		}
		defer c.conn.Close()
		first := 0
		if b.number < touched {
			first = 2
		}
		for i := first; i < each; i++ {
			m, err := c.next()
			if err != nil {
				return fmt.Errorf("message %d: %w", i, err)
			}
			if m.Body.N != i || m.Body.Box != b.number || m.MID != mids[b.number][i] {
				return fmt.Errorf("got %+v, want message %d, %s", m, i, mids[b.number][i])
			}
			// The third was refused; those behind it may have been in the window.
			seen := b.number < touched && i == 2
			if mayBe := b.number < touched && i > 2 && i < 6; (m.Attempt > 1) != seen && !mayBe {
				return fmt.Errorf("message %d is attempt %d", i, m.Attempt)
			}
			if err := c.say(`{"op":"ack","mid":%q}`, m.MID); err != nil {
				return err
			}
		}
		return c.say(`{"op":"goodbye"}`)
	})
	n.wait("everything to be acknowledged", func() bool { return strings.Count(n.ask("/relay/channels"), `"pending":0`) == 2 })
}

// killWhileCopying starts the configuration, and kills the process at random moments of the copy.
func killWhileCopying(t *testing.T, n *node, broker string) {
	t.Helper()
	longest := 1500 * time.Millisecond
	for hits, starts := 0, 0; hits < kills; starts++ {
		if starts == 10*kills {
			t.Fatalf("of %d processes only %d could be killed while they copied", starts, hits)
		}
		n.launch(broker)
		n.logged("messages move; until that is done")
		pause := rand.N(longest)
		timer := time.NewTimer(pause)
		<-timer.C
		n.kill()
		move, moved, err := boltbroker.Moved(n.file)
		if err != nil {
			t.Fatal(err)
		}
		if moved && !move.Done.IsZero() {
			// Too late: as if it had been killed just before the end.
			longest = pause * 3 / 4
			if _, err := boltbroker.Unmove(n.file); err != nil {
				t.Fatal(err)
			}
			continue
		}
		hits++
	}
}

// migrate does all of it on one form of Redis; broker is its block without migrate_from.
func migrate(t *testing.T, broker string) {
	n := newNode(t)
	n.start(embedded)
	mids := fill(t, n)
	n.kill()
	began := time.Now()
	moving := strings.TrimSuffix(strings.TrimSpace(broker), "}") + "\tmigrate_from embedded {FILE}\n\t\t}"
	killWhileCopying(t, n, moving)
	n.start(moving)
	n.logged("the messages have moved")
	t.Logf("killed %d times and copied in %.1fs: %s", kills, time.Since(began).Seconds(), lineOf(n.log.String(), "the messages have moved"))

	// The same keys are the same messages, the dead letters are there.
	eachBox(t, 0, boxes, func(b box) error {
		for i := range each {
			if b.key(i) == "" || i%7 > 0 && b.number >= touched {
				continue
			}
			status, fields, err := n.post(b.path(), b.key(i), b.body(i))
			if err != nil || fields["mid"] != mids[b.number][i] {
				return fmt.Errorf("key %s again: %d %v %w, want %s", b.key(i), status, fields, err, mids[b.number][i])
			}
		}
		return nil
	})
	dead := n.ask("/relay/dead/pay_mq_channel?limit=1000") + n.ask("/relay/dead/refunds?limit=1000")
	if got := strings.Count(dead, "no such order"); got != touched {
		t.Errorf("%d dead letters, want %d", got, touched)
	}
	for i := range touched {
		if !strings.Contains(dead, mids[i][1]) {
			t.Errorf("the dead letter of %s is not there", box{i}.id())
		}
		if text := n.ask("/relay/messages/" + mids[i][0]); !strings.Contains(text, `"acked"`) || !strings.Contains(text, "paid") {
			t.Errorf("the receipt of %s: %s", box{i}.id(), text)
		}
	}
	collect(t, n, mids)

	// It may stay in the configuration.
	n.stop()
	n.start(moving)
	if text := n.log.String(); !strings.Contains(text, "has moved already") {
		t.Errorf("the second start says nothing of the move:\n%s", text)
	}
	n.stop()
	n.launch(embedded)
	<-n.done
	for _, want := range []string{"has moved to redis ", "caddy relay unmove " + n.file} {
		if !strings.Contains(n.log.String(), want) {
			t.Errorf("the embedded store is refused without %q:\n%s", want, n.log)
		}
	}
}

func lineOf(text, want string) string {
	for line := range strings.Lines(text) {
		if strings.Contains(line, want) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}

// onCluster is broker redis on a cluster, with one more option.
func onCluster(c *redistest.Cluster, option string) string {
	return "redis {\n\t\t\taddress " + strings.Join(c.Addrs(), " ") + "\n\t\t\tmode cluster\n\t\t\t" + option + "\n\t\t}"
}

// I2, I3, I6: 10,000 messages in 500 mailboxes move, whatever the process was at when it was killed.
func TestI2_MigrationKilled(t *testing.T) {
	t.Run("standalone", func(t *testing.T) {
		s := redistest.Start(t, "--appendonly", "yes")
		migrate(t, "redis {\n\t\t\taddress "+s.Addr()+"\n\t\t}")
	})
	t.Run("cluster", func(t *testing.T) {
		migrate(t, onCluster(redistest.StartCluster(t, "--appendonly", "yes"), "durability replicas 1 500ms"))
	})
	t.Run("sentinel", func(t *testing.T) {
		s := redistest.StartSentinels(t, 1, "--appendonly", "yes")
		migrate(t, "redis {\n\t\t\taddress "+strings.Join(s.Addrs, " ")+"\n\t\t\tmaster_name "+s.Name+"\n\t\t\tdurability replicas 1 500ms\n\t\t}")
	})
}

// I8: a reload cannot move messages under the hands of those who store and deliver; it is refused, and nothing changes.
func TestI8_ReloadDoesNotMigrate(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes")
	n := newNode(t)
	n.start(embedded)
	if status, fields, err := n.post("/pay/01", "", `{"box":0,"n":0}`); err != nil || status != 202 {
		t.Fatal(status, fields, err)
	}
	moving := "redis {\n\t\t\taddress " + s.Addr() + "\n\t\t\tmigrate_from embedded {FILE}\n\t\t}"
	resp, err := client.Post("http://"+n.admin+"/load", "application/json", strings.NewReader(string(adapt(t, n.config(moving)))))
	if err != nil {
		t.Fatal(err)
	}
	text := new(strings.Builder)
	_, err = fmt.Fprint(text, resp.StatusCode, " ")
	if _, e := io.Copy(text, resp.Body); errors.Join(err, e) != nil || !strings.Contains(text.String(), "stop Caddy, and start it") {
		t.Errorf("the reload: %s %v", text, err)
	}
	c, err := connect(n.pay, "01", 1)
	if err != nil {
		t.Fatal(err)
	}
	defer c.conn.Close()
	if m, err := c.next(); err != nil || m.Body.N != 0 {
		t.Errorf("%+v, %v", m, err)
	}
}
