//go:build unix

package integration

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
)

// site is a whole site on its way from the Node.js relay to this one.
type site struct {
	t      *testing.T
	redis  *redistest.Server
	blocks []string // the Caddyfiles of the migration page, by step - 1
	old    *oldRelay
	a, b   *node
	shops  []*shop
	others *outputOf // an old subscriber

	mayLose bool // the step that comes is at most once, and does what loses messages then
}

// How many messages of a step an old subscriber is to hear.
const (
	none = iota
	some
	nearly // but a few
	all
)

// caddyfile returns the migration page's Caddyfile of a step, with this site's addresses.
func (s *site) caddyfile(step int, n *node) string {
	text := strings.NewReplacer("127.0.0.1:6379", s.redis.Addr(), "127.0.0.1:9000", n.tcp, "127.0.0.1:3000", s.old.http,
		":8080 {", ":{HTTP} {\n\tbind 127.0.0.1").Replace(s.blocks[step-1])
	if global, ok := strings.CutPrefix(text, "{\n"); ok {
		return "{\n" + header + global
	}
	return "{\n" + header + "}\n" + text
}

// load loads a step's Caddyfile on some nodes, one after another.
func (s *site) load(step int, nodes ...*node) {
	s.t.Helper()
	for _, n := range nodes {
		if err := n.reload(s.caddyfile(step, n)); err != nil {
			s.t.Fatal(err)
		}
	}
}

// move moves back ends to the TCP ports of some nodes.
func (s *site) move(addresses ...string) {
	s.t.Helper()
	for i, shop := range s.shops {
		shop.move(addresses[i%len(addresses)])
	}
	for _, shop := range s.shops {
		shop.settled()
	}
}

// hop has back ends end their sockets, and come back a moment later at other addresses, a few times.
func (s *site) hop(addresses ...string) {
	for times := range 4 {
		for i, shop := range s.shops {
			shop.now.end()
			pauseFor(5 * time.Millisecond)
			shop.now = shop.open(addresses[(i+times+1)%len(addresses)])
		}
	}
}

// post has senders post to some addresses.
func (s *site) post(addresses ...string) {
	for i, shop := range s.shops {
		mine := []string{addresses[i%len(addresses)], addresses[(i+1)%len(addresses)]}
		shop.post.Store(&mine)
	}
}

// step runs one step under load, and prints and checks what became of the messages. Nothing may be lost unless mayLose
// is set: whatever else a step may lose is lost around failures, of which there are none here.
func (s *site) step(name string, others int, change func()) {
	s.t.Helper()
	load := startShops(s.shops, nil)
	change()
	pauseFor(600 * time.Millisecond) // of load on the site as it is now
	load.stop()
	sum := load.settle()
	heard := load.heardBy(s.others)
	for wait := time.Now().Add(3 * time.Second); others == all && heard < sum.sent && time.Now().Before(wait); heard = load.heardBy(s.others) {
		pauseFor(20 * time.Millisecond)
	}
	s.t.Logf("%-48s sent %5d, delivered %5d, lost %d, doubled %d; tries again %d; old subscriber heard %d",
		name, sum.sent, sum.delivered, sum.lost, sum.doubled, sum.again, heard)
	if sum.lost > 0 && !s.mayLose || sum.invented > 0 || sum.sent == 0 {
		s.t.Errorf("%s: lost %d, of unknown origin %d, sent %d", name, sum.lost, sum.invented, sum.sent)
	}
	if others == all && heard < sum.sent || others == nearly && heard < sum.sent-5 || others == none && heard > 0 {
		s.t.Errorf("%s: the old subscriber heard %d of %d", name, heard, sum.sent)
	}
}

// inCharge waits until one of the nodes stores what Node publishes.
func (s *site) inCharge(nodes ...*node) {
	s.t.Helper()
	waitFor(s.t, "a node in charge", func() bool {
		sum := 0.0
		for _, n := range nodes {
			sum += n.metric(`caddy_relay_classic_in_charge{channel="pay_mq_channel"}`)
		}
		return sum == 1
	})
}

// newSite starts what there is before the first step.
func newSite(t *testing.T) *site {
	s := &site{t: t, redis: redistest.Start(t, "--appendonly", "yes"), a: newNode(t), b: newNode(t)}
	s.blocks = blocks(documents(t)["docs/migrate-from-node.md"], "caddyfile")
	if len(s.blocks) != 5 {
		t.Fatalf("the migration page has %d Caddyfiles, want one for each of its 5 steps", len(s.blocks))
	}
	s.old = startOldRelay(t, s.redis.Port())
	s.others = nodeProgram(t, "subscriber.js", s.redis.Port())
	awaitOutput(t, s.others, "ready")
	for i := range 20 {
		s.shops = append(s.shops, newShop(t, fmt.Sprintf("shop%d-%02d", 1+i%2, i), s.old.tcp))
	}
	s.post(s.old.http)
	waitFor(t, "the back ends to be registered", func() bool {
		return strings.Count(s.old.output.String(), "registered") == len(s.shops)
	})
	return s
}

// The migration page, forth and back, with a Node program that has the original's calls.
func TestMigrateFromNode(t *testing.T) {
	s := newSite(t)
	a, b := s.a, s.b
	s.step("0 the original", all, func() {})
	s.step("1 Caddy in front", all, func() {
		a.start(s.caddyfile(1, a))
		b.start(s.caddyfile(1, b))
		s.post(a.http, b.http)
	})
	s.step("2 sockets first", all, func() {
		s.load(2, a, b)
		a.proven()
		b.proven()
		s.move(a.tcp, b.tcp)
	})
	s.mayLose = true
	s.step("2 back ends that end their old socket first", all, func() { s.hop(b.tcp, a.tcp) })
	s.mayLose = false
	s.step("3 at_least_once with classic in, node by node", all, func() {
		s.load(3, a)
		s.inCharge(a)
		s.load(3, b)
	})
	s.step("3 back ends that end their old socket first", all, func() { s.hop(a.tcp, b.tcp) })
	s.step("4 publishers: the first route", all, func() { s.load(4, a, b) })
	rest := s.blocks[3]
	s.step("4 publishers: all routes", all, func() {
		s.blocks[3] = strings.Replace(rest, "/pay/shop1-*", "/pay/*", 1)
		s.load(4, a, b)
	})
	s.step("5 classic off", some, func() { s.load(5, a, b) })
	s.step("5 Node off", none, func() { s.old.stop() })

	s.step("back to 4", some, func() {
		s.old = startOldRelay(t, s.redis.Port())
		s.blocks[3] = rest
		s.load(4, a, b)
	})
	// A post that is under way when the mirror is taken out is stored and delivered, and may not be mirrored.
	s.step("back to 3", nearly, func() { s.load(3, a, b) })
	s.step("back to 2", all, func() { s.backToStep2() })
	s.step("back to 1", all, func() {
		s.move(s.old.tcp)
		s.load(1, a, b)
	})
	s.step("back to 0", all, func() { s.post(s.old.http) })
}

// backToStep2 is the page's way back from step 3.
func (s *site) backToStep2() {
	a, b := s.a, s.b
	s.move(b.tcp)
	refused := 0
	for deadline := time.Now().Add(2 * time.Second); ; refused++ {
		err := a.reload(s.caddyfile(2, a))
		if err == nil {
			break
		}
		if !strings.Contains(err.Error(), "would leave messages behind") {
			s.t.Fatal(err)
		}
		if time.Now().After(deadline) { // there was no moment without unfinished messages
			a.stop()
			a.start(s.caddyfile(2, a))
			break
		}
	}
	a.proven()
	s.move(a.tcp)
	s.post(a.http)
	b.stop()
	b.start(s.caddyfile(2, b))
	b.proven()
	s.post(a.http, b.http)
	s.move(a.tcp, b.tcp)
	forget := fmt.Sprintf("redis-cli -p %[1]s --scan --pattern 'relay:*' | xargs redis-cli -p %[1]s del", s.redis.Port())
	var done outputOf
	done.start(s.t, "bash", "-c", forget)
	waitFor(s.t, "Redis to be empty", func() bool { return s.redis.CLI("DBSIZE") == "0" })
	s.t.Logf("the first node's reload was refused %d times", refused)
}

// oldRelay is a Node program in the manner of the original.
type oldRelay struct {
	http, tcp string
	output    *outputOf
	cmd       *exec.Cmd
	once      sync.Once
}

func startOldRelay(t *testing.T, redisPort string) *oldRelay {
	t.Helper()
	o := &oldRelay{output: new(outputOf), cmd: exec.Command("node", "node/node_relay.js", redisPort)}
	o.cmd.Stdout, o.cmd.Stderr = o.output, o.output
	if err := o.cmd.Start(); err != nil {
		t.Fatal(fmt.Errorf("%w (make deps installs what the tests need)", err))
	}
	t.Cleanup(o.stop)
	var web, tcp int
	if _, err := fmt.Sscan(awaitOutput(t, o.output, "ports "), &web, &tcp); err != nil {
		t.Fatal(err)
	}
	o.http, o.tcp = fmt.Sprint("127.0.0.1:", web), fmt.Sprint("127.0.0.1:", tcp)
	return o
}

func (o *oldRelay) stop() {
	o.once.Do(func() {
		_ = o.cmd.Process.Signal(syscall.SIGTERM)
		_ = o.cmd.Wait()
	})
}
