//go:build unix

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2/caddyconfig"
	_ "github.com/caddyserver/caddy/v2/modules/standard"
	_ "github.com/mholt/caddy-l4/modules/l4tls"

	_ "github.com/caddyrelay/relay"
	"github.com/caddyrelay/relay/internal/freeport"
	"github.com/caddyrelay/relay/internal/relaytest"
)

// caddyBinary is built once for all tests, with the race detector.
var caddyBinary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "relay-integration")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		caddyBinary = filepath.Join(dir, "caddy")
		build := exec.Command("go", "build", "-race", "-o", caddyBinary, "../cmd/caddy")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "building cmd/caddy: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// node is one Caddy process.
type node struct {
	t     *testing.T
	admin string // host:port
	http  string // host:port, to be used as :PORT in the configuration
	tcp   string
	tcp2  string
	dir   string // its data
	env   []string
	cmd   *exec.Cmd
	log   *logBuffer
	done  chan struct{}
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

// lines returns the log lines that have msg as message.
func (l *logBuffer) lines(msg string) (found []map[string]any) {
	for line := range strings.Lines(l.String()) {
		var v map[string]any
		if json.Unmarshal([]byte(line), &v) == nil && v["msg"] == msg {
			found = append(found, v)
		}
	}
	return found
}

// newNode reserves addresses for a process.
func newNode(t *testing.T) *node {
	t.Helper()
	return &node{t: t, admin: freeport.Addr(t), http: freeport.Addr(t), tcp: freeport.Addr(t), tcp2: freeport.Addr(t), dir: t.TempDir()}
}

// expand puts the node's addresses into a configuration: {ADMIN}, {TCP}, {TCP2} as host:port, {HTTP} as
// the port.
func (n *node) expand(config string) string {
	_, port, _ := net.SplitHostPort(n.http)
	return strings.NewReplacer("{ADMIN}", n.admin, "{HTTP}", port, "{TCP}", n.tcp, "{TCP2}", n.tcp2).Replace(config)
}

// adapt turns a Caddyfile into JSON.
func (n *node) adapt(caddyfile string) []byte {
	n.t.Helper()
	out, err := adapt(n.expand(caddyfile))
	if err != nil {
		n.t.Fatalf("adapting: %v\n%s", err, caddyfile)
	}
	return out
}

// adapt does what "caddy adapt" does, without the second that a process with the race detector takes
// to start.
func adapt(caddyfile string) ([]byte, error) {
	out, _, err := caddyconfig.GetAdapter("caddyfile").Adapt([]byte(caddyfile), map[string]any{"filename": "Caddyfile"})
	return out, err
}

func (n *node) command(args ...string) *exec.Cmd {
	cmd := exec.Command(caddyBinary, args...)
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+n.dir, "XDG_CONFIG_HOME="+n.dir, "HOME="+n.dir,
		"GORACE=halt_on_error=1 exitcode=66")
	cmd.Env = append(cmd.Env, n.env...)
	return cmd
}

// start runs the process with a Caddyfile, and waits until it serves.
func (n *node) start(caddyfile string) *node {
	n.t.Helper()
	config := filepath.Join(n.dir, "caddy.json")
	if err := os.WriteFile(config, n.adapt(caddyfile), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.log = new(logBuffer)
	n.cmd = n.command("run", "--config", config)
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.done = make(chan struct{})
	go func() { _ = n.cmd.Wait(); close(n.done) }()
	n.t.Cleanup(func() {
		n.stop()
		if n.t.Failed() {
			n.t.Logf("log of the node at %s:\n%s", n.admin, n.log)
		}
	})
	n.wait("the node to serve", func() bool {
		select {
		case <-n.done:
			n.t.Fatalf("the node ended at once:\n%s", n.log)
		default:
		}
		return len(n.log.lines("serving initial configuration")) > 0
	})
	return n
}

// stop ends the process as an operator would, and checks that it ended well.
func (n *node) stop() {
	n.t.Helper()
	select {
	case <-n.done:
		return
	default:
	}
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-n.done:
	case <-time.After(30 * time.Second):
		_ = n.cmd.Process.Kill()
		n.t.Errorf("the node did not end within 30s of SIGTERM")
		<-n.done
	}
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		n.t.Errorf("the node ended with exit code %d (66 is a data race)", code)
	}
}

// reload loads a Caddyfile through the admin API, and returns its error.
func (n *node) reload(caddyfile string) error {
	n.t.Helper()
	return n.load(n.adapt(caddyfile))
}

// load loads a configuration through the admin API. Each load replaces the admin endpoint too, so the
// request may meet the old one as it closes: then it is made again, as loading twice does no harm.
func (n *node) load(config []byte) (err error) {
	for range 20 {
		var req *http.Request
		if req, err = http.NewRequest(http.MethodPost, "http://"+n.admin+"/load", bytes.NewReader(config)); err != nil {
			return err
		}
		req.Close = true
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Cache-Control", "must-revalidate") // load even if nothing changed
		var resp *http.Response
		if resp, err = http.DefaultClient.Do(req); err != nil {
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s", resp.Status, body)
		}
		return nil
	}
	return err
}

// metric returns one value from the node's metrics, such as `caddy_relay_sockets`, or -1.
func (n *node) metric(name string) float64 {
	resp, err := http.Get("http://" + n.admin + "/metrics")
	if err != nil {
		return -1
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return -1
	}
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindSubmatch(body)
	if m == nil {
		return -1
	}
	v, err := strconv.ParseFloat(string(m[1]), 64)
	if err != nil {
		return -1
	}
	return v
}

// awaitSessions waits until the node holds that many registered sockets on a channel.
func (n *node) awaitSessions(channel string, count int) {
	n.t.Helper()
	n.wait(fmt.Sprintf("%d sessions on %s", count, channel), func() bool {
		return n.metric(`caddy_relay_sessions{channel="`+channel+`"}`) == float64(count)
	})
}

func (n *node) wait(what string, ok func() bool) {
	n.t.Helper()
	waitFor(n.t, what, ok)
}

// waitFor polls a condition until it holds or a deadline passes.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("timed out waiting for %s", what)
		case <-tick.C:
		}
	}
}

// pauseFor is the pace of somebody who takes part in a run, not a wait for something to happen.
func pauseFor(d time.Duration) { relaytest.Pause(d) }

// header is the global options that every test's configuration begins with.
const header = "admin {ADMIN}\n"

// oneChannel is a small whole configuration; broker is put into the relay block.
func oneChannel(broker string) string {
	return `{
	` + header + `
	relay {
		` + broker + `
		channel pay_mq_channel {
			delivery at_most_once
		}
	}
	layer4 {
		{TCP} {
			route {
				relay pay_mq_channel {
					auth none
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
	respond "no such path" 404
}
`
}
