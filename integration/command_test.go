//go:build unix

package integration

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is a command of the command line, running.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    *logBuffer
	status *logBuffer
	done   chan struct{}
}

// relay starts "caddy relay" with arguments.
func (n *node) relay(args ...string) *process {
	n.t.Helper()
	p := &process{t: n.t, cmd: n.command(append([]string{"relay"}, args...)...), out: new(logBuffer), status: new(logBuffer),
		done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.status
	if err := p.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	n.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	return p
}

func (n *node) listen(args ...string) *process {
	n.t.Helper()
	return n.relay(append([]string{"listen", "--address", n.tcp}, args...)...)
}

// publish publishes with the command line, and returns what it printed.
func (n *node) publish(args ...string) (out, status string, code int) {
	n.t.Helper()
	p := n.relay(append([]string{"publish", "--url", "http://" + n.http + "/pay/{id}"}, args...)...)
	code = p.end()
	return p.out.String(), p.status.String(), code
}

func (p *process) await(what string, in *logBuffer, text string, times int) {
	p.t.Helper()
	waitFor(p.t, what, func() bool {
		select {
		case <-p.done:
			if strings.Count(in.String(), text) < times {
				p.t.Fatalf("waiting for %s: the command ended, with status\n%s", what, p.status)
			}
		default:
		}
		return strings.Count(in.String(), text) >= times
	})
}

// end waits for the end of the command and returns its exit code.
func (p *process) end() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		p.t.Fatalf("the command did not end; status:\n%s", p.status)
	}
	return p.cmd.ProcessState.ExitCode()
}

func TestCommandsListenAndPublish(t *testing.T) {
	n := newNode(t)
	n.start(oneChannel(""))
	l := n.listen("01", "--count", "3")
	l.await("registration", l.status, "listening as 01 on "+n.tcp, 1)
	for _, body := range []string{"hello", `{"amount": 1.0,"note":"<ü>"}`} {
		out, status, code := n.publish("01", body)
		if a := object(t, out); code != 0 || status != "" || a["state"] != "published" || a["id"] != "01" {
			t.Errorf("publish %s: exit code %d, %s %s", body, code, out, status)
		}
	}
	stdin := n.command("relay", "publish", "--url", "http://"+n.http+"/pay/{id}", "*", "-")
	stdin.Stdin = bytes.NewReader([]byte("to everyone,\nfrom stdin"))
	if out, err := stdin.CombinedOutput(); err != nil {
		t.Errorf("publish from stdin: %v\n%s", err, out)
	}
	if code := l.end(); code != 0 {
		t.Errorf("listen ended with exit code %d, %s", code, l.status)
	}
	if got, want := l.out.String(), "hello\n{\"amount\": 1.0,\"note\":\"<ü>\"}\nto everyone,\nfrom stdin\n"; got != want {
		t.Errorf("listen printed %q, want %q", got, want)
	}
	n.wait("the goodbye", func() bool {
		ends := n.log.lines("socket ended")
		return len(ends) == 1 && ends[0]["reason"] == "client_goodbye"
	})
	for _, test := range []struct{ id, body, want string }{
		{"a,b", "x", "400 Bad Request: bad_id"},
		{"01", "", "400 Bad Request: body_empty"},
		{"01", "\xff", "415 Unsupported Media Type: not_utf8"},
	} {
		if out, status, code := n.publish(test.id, test.body); code != 1 || out != "" || !strings.Contains(status, test.want) {
			t.Errorf("publish %q %q: exit code %d, %s %s, want %s", test.id, test.body, code, out, status, test.want)
		}
	}
	l = n.listen("a,b")
	if code := l.end(); code != 1 || !strings.Contains(l.status.String(), "the relay refused: 400 the ID contains ','") {
		t.Errorf("listen with a bad ID: exit code %d, %s", code, l.status)
	}
}

func TestCommandsWithToken(t *testing.T) {
	n := newNode(t)
	n.env = []string{"RELAY_TOKEN=s3cret-of-the-test"}
	n.start(strings.NewReplacer("auth none", "auth token {env.RELAY_TOKEN}", "\topen", "\ttoken {env.RELAY_TOKEN}").Replace(oneChannel("")))
	fromEnv := n.listen("01", "--count", "1", "--json")
	n.env = []string{"RELAY_TOKEN="}
	file := filepath.Join(n.dir, "token")
	if err := os.WriteFile(file, []byte("s3cret-of-the-test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fromFile := n.listen("01", "--count", "1", "--token-file", file)
	n.awaitSessions("pay_mq_channel", 2)

	wrong := filepath.Join(n.dir, "wrong")
	if err := os.WriteFile(wrong, []byte("wrong\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"01"}, {"01", "--token-file", wrong}} {
		l := n.listen(args...)
		if code := l.end(); code != 1 || !strings.Contains(l.status.String(), "401 wrong or missing token; name the file") {
			t.Errorf("listen %s: exit code %d, %s", args, code, l.status)
		}
		_, status, code := n.publish(append(args, "x")...)
		if code != 1 || !strings.Contains(status, "401 Unauthorized: unauthorized") {
			t.Errorf("publish %s: exit code %d, %s", args, code, status)
		}
	}
	out, status, code := n.publish("01", "let in", "--token-file", file)
	if code != 0 {
		t.Fatalf("publish with the token: exit code %d, %s", code, status)
	}
	if fromEnv.end() != 0 || fromFile.end() != 0 {
		t.Errorf("listen with the token: %s%s", fromEnv.status, fromFile.status)
	}
	m := object(t, fromEnv.out.String())
	if m["op"] != "message" || m["body"] != "let in" || m["mid"] != object(t, out)["mid"] {
		t.Errorf("listen --json printed %s", fromEnv.out)
	}
	if got := fromFile.out.String(); got != "let in\n" {
		t.Errorf("listen printed %q", got)
	}
}

// listen is there before the server, outlives a stop, a kill and a reload of it, and leaves on Ctrl-C.
func TestListenOutlivesTheServer(t *testing.T) {
	n := newNode(t)
	l := n.listen("01")
	l.await("an attempt", l.status, "nothing listens on "+n.tcp+"; start it with: caddy run", 1)
	if out, status, code := n.publish("01", "x"); code != 1 || out != "" || !strings.Contains(status, "nothing listens on "+n.http) {
		t.Errorf("publish without a server: exit code %d, %s %s", code, out, status)
	}
	publish := func(body string) {
		t.Helper()
		n.awaitSessions("pay_mq_channel", 1)
		if a := n.curl("/pay/01", body); a.status != 202 {
			t.Errorf("answer: %d %s", a.status, a.text)
		}
		l.await(body, l.out, body+"\n", 1)
	}
	n.start(oneChannel(""))
	publish("first")
	n.stop()
	l.await("the goodbye", l.status, "the relay said goodbye: shutdown; trying again in ", 1)
	n.start(oneChannel(""))
	publish("after a stop")
	_ = n.cmd.Process.Kill()
	<-n.done
	l.await("the loss", l.status, "connection lost: ", 1)
	n.start(oneChannel(""))
	publish("after a kill")
	if err := n.reload(variant(1, "")); err != nil {
		t.Fatal(err)
	}
	publish("after a reload")
	if got := strings.Count(l.status.String(), "listening as 01 on "+n.tcp); got != 3 {
		t.Errorf("registered %d times, want 3:\n%s", got, l.status)
	}
	_ = l.cmd.Process.Signal(syscall.SIGINT)
	if code := l.end(); code != 0 {
		t.Errorf("listen ended with exit code %d, %s", code, l.status)
	}
	n.wait("the goodbye", func() bool {
		ends := n.log.lines("socket ended")
		return len(ends) == 1 && ends[0]["reason"] == "client_goodbye"
	})
}
