//go:build unix

package cluster

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
)

// asker is a connection to a redis-server that is not the relay's.
type asker struct {
	in  *bufio.Reader
	out io.Writer
}

// newAsker connects from where a node runs. bash is the one program that is there for sure and can hold a connection.
func newAsker(t *testing.T, s site, addr string) *asker {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/%s/%s; cat <&3 & cat >&3; kill $!", host, port))
	s.command(cmd)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	return &asker{bufio.NewReader(out), in}
}

// ask asks a question; its answer comes on the channel.
func (a *asker) ask() <-chan string {
	answer := make(chan string, 1)
	fmt.Fprint(a.out, "PING\r\n")
	go func() {
		line, err := a.in.ReadString('\n')
		if err != nil {
			line = err.Error()
		}
		answer <- strings.TrimSpace(line)
	}()
	return answer
}

// within returns what comes in time.
func within(d time.Duration, answer <-chan string) string {
	select {
	case text := <-answer:
		return text
	case <-time.After(d):
		return "nothing"
	}
}

// A cut is silent: a connection over it does not end, and what was said meanwhile arrives when it is mended.
func TestCutIsSilent(t *testing.T) {
	for name, net := range map[string]network{
		"the best that this machine allows": newNetwork(t),
		"loopback":                          &loopback{why: errors.New("this test wants it so")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Log(net)
			server := redistest.Start(t, serverArgs(net)...)
			s := net.site(t, 0)
			a := newAsker(t, s, s.redis(t, server.Addr()))
			if got := within(20*time.Second, a.ask()); got != "+PONG" {
				t.Fatalf("the node gets %q", got)
			}
			if err := errors.Join(s.cut(), s.cut()); err != nil {
				t.Fatal(err)
			}
			answer := a.ask()
			if got := within(500*time.Millisecond, answer); got != "nothing" {
				t.Fatalf("the node gets %q over a cut cable", got)
			}
			if err := errors.Join(s.heal(), s.heal()); err != nil {
				t.Fatal(err)
			}
			if got := within(20*time.Second, answer); got != "+PONG" {
				t.Errorf("the node gets %q when the cable is mended", got)
			}
		})
	}
}

// What a test left that was killed is removed by the next, and what a running one uses is not.
func TestLeftoversAreRemoved(t *testing.T) {
	if _, err := newNamespaces(t); err != nil {
		t.Logf("there can be no namespaces here, so there is nothing to remove: %v", err)
		return
	}
	gone := exec.Command("true")
	if err := gone.Run(); err != nil {
		t.Fatal(err)
	}
	dead, mine := fmt.Sprintf("rc%dx1", gone.Process.Pid), fmt.Sprintf("rc%dx99", os.Getpid())
	t.Cleanup(func() {
		_, _ = run("ip", "netns", "del", mine+"n2")
		_, _ = run("ip", "link", "del", mine+"f")
	})
	for _, name := range []string{dead, mine} {
		if err := all([][]string{{"netns", "add", name + "n2"}, {"link", "add", name + "f", "type", "bridge"}}); err != nil {
			t.Fatal(err)
		}
	}
	left := exec.Command("ip", "netns", "exec", dead+"n2", "sleep", "600")
	if err := left.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = left.Wait(); close(ended) }()
	t.Cleanup(func() { _ = left.Process.Kill(); <-ended })
	waitFor(t, "the process to be in its namespace", func() bool {
		pids, err := run("ip", "netns", "pids", dead+"n2")
		return err == nil && pids != ""
	})
	if err := removeLeftovers(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the process to be killed", func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	})
	spaces, err := run("ip", "netns", "list")
	if err != nil {
		t.Fatal(err)
	}
	links, err := run("ip", "-o", "link", "show")
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{spaces, links} {
		if strings.Contains(text, dead) || !strings.Contains(text, mine) {
			t.Errorf("of %s and %s there is\n%s", dead, mine, text)
		}
	}
}

// Publishers and clients begin at different nodes, go around, and pass over what has just failed.
func TestAddresses(t *testing.T) {
	a := &addresses{list: []string{"a", "b", "c"}, last: make(map[int]int), benched: make(map[string]time.Time)}
	got := a.next(0) + a.next(1) + a.next(5) + a.next(0) + a.next(0) + a.next(0)
	if got != "abcbca" {
		t.Errorf("they go to %s", got)
	}
	a.failed("b")
	if got := a.next(0) + a.next(0) + a.next(0); got != "cac" {
		t.Errorf("without b they go to %s", got)
	}
	a.failed("a")
	a.failed("c")
	if got := a.next(0); got == "" {
		t.Error("with all of them failed, they go nowhere")
	}
}
