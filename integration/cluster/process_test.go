//go:build unix

package cluster

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// caddyBinary is built once for all tests, with the race detector.
var caddyBinary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "relay-cluster")
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

// node is one relay node, a process that is started again and again.
type node struct {
	t                *testing.T
	name             string
	site             site
	admin, http, tcp string
	dir              string // its data
	logs             string // a file for each start goes there
	starts           int

	cmd  *exec.Cmd
	log  string // the file of this start
	done chan struct{}
}

func newNode(t *testing.T, name string, s site, logs string) *node {
	t.Helper()
	n := &node{t: t, name: name, site: s, dir: t.TempDir(), logs: logs}
	n.admin, n.http, n.tcp = s.address(t), s.address(t), s.address(t)
	t.Cleanup(n.end)
	return n
}

// launch runs the process with a Caddyfile; see serves.
func (n *node) launch(config string) {
	n.t.Helper()
	file := filepath.Join(n.dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		n.t.Fatal(err)
	}
	n.starts++
	n.log = filepath.Join(n.logs, fmt.Sprintf("%s.%d.log", n.name, n.starts))
	log, err := os.Create(n.log)
	if err != nil {
		n.t.Fatal(err)
	}
	defer log.Close() // the process has its own
	n.cmd = exec.Command(caddyBinary, "run", "--config", file, "--adapter", "caddyfile")
	n.cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+n.dir, "XDG_CONFIG_HOME="+n.dir, "HOME="+n.dir,
		"GORACE=halt_on_error=1 exitcode=66")
	n.cmd.Stdout, n.cmd.Stderr = log, log
	n.site.command(n.cmd)
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	cmd, done := n.cmd, make(chan struct{})
	n.done = done
	go func() { _ = cmd.Wait(); close(done) }()
}

// serves waits until the process takes messages.
func (n *node) serves() {
	n.t.Helper()
	waitFor(n.t, n.name+" to serve", func() bool {
		select {
		case <-n.done:
			text, _ := os.ReadFile(n.log)
			n.t.Fatalf("%s ended at once:\n%s", n.name, text)
		default:
		}
		text, _ := os.ReadFile(n.log)
		return bytes.Contains(text, []byte("serving initial configuration")) && n.ready()
	})
}

// ready reports whether the node's store takes messages.
func (n *node) ready() bool { return n.metric("caddy_relay_store_ready") == 1 }

// kill ends the process as a power failure would, as far as the process is concerned.
func (n *node) kill() {
	_ = n.cmd.Process.Kill()
	<-n.done
}

// signal sends one.
func (n *node) signal(s syscall.Signal) {
	n.t.Helper()
	if err := n.cmd.Process.Signal(s); err != nil {
		n.t.Errorf("%s: %v", n.name, err)
	}
}

// stop ends the process as an operator would, and checks that it ended well.
func (n *node) stop() {
	n.t.Helper()
	n.signal(syscall.SIGTERM)
	select {
	case <-n.done:
	case <-time.After(30 * time.Second):
		n.t.Errorf("%s did not end within 30s of SIGTERM", n.name)
		n.kill()
		return
	}
	if code := n.cmd.ProcessState.ExitCode(); code != 0 {
		n.t.Errorf("%s ended with exit code %d (66 is a data race)", n.name, code)
	}
}

// end is stop for a process that may be stopped, or was never started.
func (n *node) end() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Signal(syscall.SIGCONT)
	if err := n.died(); err != nil {
		n.t.Error(err)
		return
	}
	n.stop()
}

// died returns an error if the process has ended by itself.
func (n *node) died() error {
	select {
	case <-n.done:
		return fmt.Errorf("%s ended by itself, with exit code %d (66 is a data race): see %s", n.name, n.cmd.ProcessState.ExitCode(), n.log)
	default:
		return nil
	}
}

// load loads a Caddyfile through the admin API.
func (n *node) load(config string) error {
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Post("http://"+n.admin+"/load", "text/caddyfile", bytes.NewReader([]byte(config)))
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %s", n.name, resp.Status, body)
	}
	return nil
}

// metric returns one value from the node's metrics, or -1.
func (n *node) metric(name string) float64 {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + n.admin + "/metrics")
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

// waitFor polls a condition until it holds or a deadline passes.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(60 * time.Second); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
