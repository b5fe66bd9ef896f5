//go:build unix

// Package migrate has the tests of a relay that moves from the embedded store to Redis: whole processes, killed while
// they copy.
package migrate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/caddyrelay/relay"
	"github.com/caddyrelay/relay/internal/freeport"
)

// caddyBinary is built once for all tests, with the race detector.
var caddyBinary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "relay-migrate")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		caddyBinary = filepath.Join(dir, "caddy")
		build := exec.Command("go", "build", "-race", "-o", caddyBinary, "../../cmd/caddy")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building cmd/caddy: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// client keeps its connections.
var client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 128}}

// patience is how long tests wait for what must come.
const patience = time.Minute

// node is a Caddy process, and the ones after it with the same data and addresses.
type node struct {
	t                      *testing.T
	admin, http, pay, back string // host:port; pay and back are the sockets of two channels
	dir, file              string // its data; the embedded store
	without                string // a channel that is at_most_once instead
	cmd                    *exec.Cmd
	log                    *logBuffer
	done                   chan struct{}
}

// logBuffer keeps a process's output.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func newNode(t *testing.T) *node {
	t.Helper()
	dir := t.TempDir()
	return &node{
		t: t, admin: freeport.Addr(t), http: freeport.Addr(t), pay: freeport.Addr(t), back: freeport.Addr(t), dir: dir,
		file: filepath.Join(dir, "store.db"),
	}
}

// config is a configuration with two channels.
func (n *node) config(broker string) string {
	_, port, _ := net.SplitHostPort(n.http)
	text := text
	if n.without != "" {
		text = strings.Replace(text, "channel "+n.without+"\n", "channel "+n.without+" {\n\t\t\tdelivery at_most_once\n\t\t}\n", 1)
	}
	return strings.NewReplacer("{ADMIN}", n.admin, "{HTTP}", port, "{PAY}", n.pay, "{BACK}", n.back, "{FILE}", n.file).Replace(strings.Replace(text, "{BROKER}", broker, 1))
}

const text = `{
	admin {ADMIN}
	persist_config off
	relay {
		broker {BROKER}
		channel pay_mq_channel
		channel refunds
	}
	layer4 {
		{PAY} {
			route {
				relay pay_mq_channel {
					auth none
					protocol json
				}
			}
		}
		{BACK} {
			route {
				relay refunds {
					auth none
					protocol json
				}
			}
		}
	}
}
http://:{HTTP} {
	bind 127.0.0.1
	relay_publish /pay/* pay_mq_channel {
		id {path.1}
		open
	}
	relay_publish /refund/* refunds {
		id {path.1}
		open
	}
}
`

const embedded = "embedded {\n\t\t\tpath {FILE}\n\t\t}"

func adapt(t *testing.T, caddyfile string) []byte {
	t.Helper()
	out, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		t.Fatalf("adapting: %v\n%s", err, caddyfile)
	}
	return out
}

func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command(caddyBinary, args...)
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+n.dir, "XDG_CONFIG_HOME="+n.dir, "HOME="+n.dir, "GORACE=halt_on_error=1 exitcode=66")
	return cmd
}

// launch runs the process, and does not wait.
func (n *node) launch(broker string) {
	n.t.Helper()
	config := filepath.Join(n.dir, "caddy.json")
	if err := os.WriteFile(config, adapt(n.t, n.config(broker)), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.log = new(logBuffer)
	n.cmd = n.command("run", "--config", config)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	cmd, done, log := n.cmd, make(chan struct{}), n.log
	n.done = done
	go func() { _ = cmd.Wait(); close(done) }()
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-done
		if n.t.Failed() {
			n.t.Logf("log of a node:\n%s", log)
		}
	})
}

// start runs the process until it serves.
func (n *node) start(broker string) {
	n.t.Helper()
	n.launch(broker)
	n.logged("serving initial configuration")
}

// logged waits until the process has logged a text.
func (n *node) logged(text string) {
	n.t.Helper()
	n.wait("the log line "+text, func() bool {
		if strings.Contains(n.log.String(), text) {
			return true
		}
		select {
		case <-n.done:
			n.t.Fatalf("the node ended:\n%s", n.log)
		default:
		}
		return false
	})
}

// stop ends the process as an operator would, kill as a power failure would.
func (n *node) stop() { n.end(syscall.SIGTERM) }
func (n *node) kill() { n.end(syscall.SIGKILL) }

func (n *node) end(s syscall.Signal) {
	n.t.Helper()
	_ = n.cmd.Process.Signal(s)
	select {
	case <-n.done:
	case <-time.After(patience):
		n.t.Fatalf("the node did not end after %v", s)
	}
}

func (n *node) wait(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			n.t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// post publishes, with a key if that is not empty, and returns the answer.
func (n *node) post(path, key, body string) (status int, fields map[string]any, err error) {
	req, err := http.NewRequest(http.MethodPost, "http://"+n.http+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	err = json.NewDecoder(resp.Body).Decode(&fields)
	return resp.StatusCode, fields, err
}

// ask asks the admin endpoint.
func (n *node) ask(path string) string {
	n.t.Helper()
	resp, err := http.Get("http://" + n.admin + path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}
