//go:build unix

package integration

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/caddyrelay/relay/internal/redistest"
)

// nodeProgram starts a program of integration/node, and ends it with the test.
func nodeProgram(t *testing.T, args ...string) *outputOf {
	t.Helper()
	if _, err := os.Stat("node/node_modules/redis"); err != nil {
		t.Fatal(`the npm packages of integration/node are missing: run "make deps"`)
	}
	o := new(outputOf)
	o.start(t, "node", append([]string{"node/" + args[0]}, args[1:]...)...)
	return o
}

// awaitOutput waits for a line that begins with prefix, and returns the rest of it.
func awaitOutput(t *testing.T, o *outputOf, prefix string) (rest string) {
	t.Helper()
	waitFor(t, "the program to print "+prefix, func() bool {
		lines := bufio.NewScanner(strings.NewReader(o.String()))
		for lines.Scan() {
			var found bool
			if rest, found = strings.CutPrefix(lines.Text(), prefix); found {
				return true
			}
		}
		return false
	})
	return rest
}

// What Node publishes with the original's calls reaches the relay's sockets.
func TestNodePublishes(t *testing.T) {
	server := redistest.Start(t)
	n := newNode(t)
	n.start(onRedis(server))
	n.proven()
	s := connect(t, n.tcp, "01", nil)
	n.awaitSessions("pay_mq_channel", 1)
	program := nodeProgram(t, "publisher.js", server.Port(), "01", "hello", `{"amount":1,"note":"收款 <1>"}`, "42", "[1,2]")
	s.await("all four", func(lines []string) bool { return len(lines) == 4 })
	if got := fmt.Sprintf("%q", s.got()); got != `["hello" "{\"amount\":1,\"note\":\"收款 <1>\"}" "42" "[1,2]"]` {
		t.Errorf("got %s", got)
	}
	awaitOutput(t, program, "1") // receivers
}

// What the relay publishes reads the same to a Node subscriber.
func TestNodeSubscribes(t *testing.T) {
	server := redistest.Start(t)
	n := newNode(t)
	n.start(onRedis(server))
	n.proven()
	program := nodeProgram(t, "subscriber.js", server.Port())
	awaitOutput(t, program, "ready")
	n.curl("/pay/01", "hello")
	awaitOutput(t, program, `["pay_mq_channel","01","hello"]`)
	n.post("/pay/02", "application/json", `{"amount":1.50,"note":"收款 <1>"}`)
	awaitOutput(t, program, `["pay_mq_channel","02",{"amount":1.5,"note":"收款 <1>"}]`)
	n.post("/pay/03", "text/plain", `line one
"line two"`)
	awaitOutput(t, program, `["pay_mq_channel","03","line one\n\"line two\""]`)
	n.post("/pay/*", "application/json", `[true,null]`)
	awaitOutput(t, program, `["pay_mq_channel","*",[true,null]]`)
}

// A whole relay in Node, as the original was, is a third node beside two of ours.
func TestNodeAsAThirdNode(t *testing.T) {
	server := redistest.Start(t)
	a, b := twoNodes(t, server)
	program := nodeProgram(t, "node_relay.js", server.Port())
	var web, tcp int
	if _, err := fmt.Sscan(awaitOutput(t, program, "ports "), &web, &tcp); err != nil {
		t.Fatal(err)
	}
	onA := connect(t, a.tcp, "01", nil)
	onB := connect(t, b.tcp, "01", nil)
	onNode := connect(t, fmt.Sprint("127.0.0.1:", tcp), "01", nil)
	a.awaitSessions("pay_mq_channel", 1)
	b.awaitSessions("pay_mq_channel", 1)
	awaitOutput(t, program, "registered 01")

	out, err := exec.Command("curl", "-sS", "-d", `{"from":"node"}`, fmt.Sprintf("http://127.0.0.1:%d/pay/01", web)).CombinedOutput()
	if err != nil || string(out) != "success" {
		t.Errorf("posting to the Node program: %q, %v", out, err)
	}
	a.post("/pay/01", "application/json", `{"from":"a"}`)
	b.curl("/pay/01", "from b")
	for _, s := range []*socket{onA, onB, onNode} {
		for _, text := range []string{`{"from":"node"}`, `{"from":"a"}`, "from b"} {
			s.awaitLine(text)
		}
		if got := s.got(); len(got) != 3 {
			t.Errorf("got %q", got)
		}
	}
}
