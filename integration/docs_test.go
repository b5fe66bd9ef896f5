//go:build unix

package integration

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"
)

// documents returns all Markdown of the project, by path.
func documents(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	for _, pattern := range []string{"../*.md", "../docs/*.md", "../docs/*/*.md", "../clients/*.md", "../clients/*/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			found[strings.TrimPrefix(f, "../")] = string(text)
		}
	}
	return found
}

// blocks returns the fenced blocks of a language.
func blocks(text, language string) (found []string) {
	for _, m := range regexp.MustCompile("(?ms)^```"+language+"\n(.*?)^```$").FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

// Every Caddyfile in the documents can be loaded as it stands.
func TestDocsCaddyfiles(t *testing.T) {
	t.Setenv("RELAY_TOKEN", "t0ken")
	t.Setenv("REDIS_PASSWORD", "passw0rd")
	count := 0
	for name, text := range documents(t) {
		for i, block := range blocks(text, "caddyfile") {
			count++
			if got := outcome(block); !strings.HasPrefix(got, "{") {
				t.Errorf("%s, Caddyfile %d: %s\n%s", name, i+1, got, block)
			}
		}
	}
	if count < 6 {
		t.Errorf("found %d Caddyfiles; is the pattern right?", count)
	}
}

// Every link from one document to another leads somewhere.
func TestDocsLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)
	for name, text := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join("..", filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
			}
		}
	}
}

// Every metric that the documents name exists, and the other way round.
func TestDocsMetrics(t *testing.T) {
	ctx, err := caddy.ProvisionContext(&caddy.Config{AppsRaw: caddy.ModuleMap{
		"relay": fmt.Appendf(nil, `{"channels":{"pay":{},"notice":{"delivery":"at_most_once"}},"broker":{"type":"embedded","path":%q}}`,
			filepath.Join(t.TempDir(), "relay.db")),
	}})
	if err != nil {
		t.Fatal(err)
	}
	app, err := ctx.App("relay")
	if err != nil {
		t.Fatal(err)
	}
	if err := app.(caddy.App).Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = app.(caddy.App).Stop()
		_ = app.(caddy.CleanerUpper).Cleanup()
	}()
	families, err := ctx.GetMetricsRegistry().Gather()
	if err != nil {
		t.Fatal(err)
	}
	var exist []string
	for _, f := range families {
		if strings.HasPrefix(f.GetName(), "caddy_relay_") {
			exist = append(exist, f.GetName())
		}
	}
	_ = prometheus.Labels{} // the registry is Prometheus's
	documented := regexp.MustCompile(`caddy_relay_[a-z_]*[a-z]`).FindAllString(documents(t)["docs/operations.md"], -1)
	slices.Sort(documented)
	documented = slices.Compact(documented)
	slices.Sort(exist)
	if !slices.Equal(exist, documented) {
		t.Errorf("metrics exist:     %v\nare documented: %v", exist, documented)
	}
}

// readmeCommands says how each command of the READMEs is run by a test. The commands stand in the order
// of the README; each continues what the one before it began.
func TestREADMECommands(t *testing.T) {
	n := newNode(t)
	n.start(n.example())

	var listened, raw, later outputOf
	starts := 0
	actions := map[string]func(command string){
		// What the process n runs is built from the same directory; the file is the same but for its ports.
		"go run ./cmd/caddy run --config Caddyfile.example": func(string) {
			if starts++; starts == 2 {
				n.start(n.example())
			}
		},
		"go run ./cmd/caddy relay listen 01": func(string) {
			listened.start(t, caddyBinary, "relay", "listen", "01", "--address", n.tcp)
			n.awaitSessions("pay_mq_channel", 1)
		},
		"go run ./cmd/caddy relay publish 01 hello": func(string) {
			out, err := n.command("relay", "publish", "01", "hello", "--url", "http://"+n.http+"/pay/{id}").CombinedOutput()
			if err != nil {
				t.Errorf("publish: %v\n%s", err, out)
			}
			waitFor(t, "hello", func() bool { return strings.Contains(listened.String(), "hello\n") })
		},
		`(printf '02\n'; cat) | nc 127.0.0.1 9000`: func(command string) {
			host, port, _ := strings.Cut(n.tcp, ":")
			raw.start(t, "bash", "-c", strings.Replace(command, "127.0.0.1 9000", host+" "+port, 1))
			n.awaitSessions("pay_mq_channel", 2)
		},
		`curl -d '{"amount":1}' http://127.0.0.1:8080/pay/02`: func(command string) {
			out, err := exec.Command("bash", "-c", strings.Replace(command, "127.0.0.1:8080", n.http, 1)).CombinedOutput()
			if err != nil {
				t.Errorf("curl: %v\n%s", err, out)
			}
			waitFor(t, "the amount", func() bool { return strings.Contains(raw.String(), `{"amount":1}`+"\n") })
		},
		`go run ./cmd/caddy relay publish 03 '{"amount":3}'`: func(string) {
			out, err := n.command("relay", "publish", "03", `{"amount":3}`, "--url", "http://"+n.http+"/pay/{id}").CombinedOutput()
			if err != nil {
				t.Errorf("publish: %v\n%s", err, out)
			}
		},
		// Only this process, and not every one on the machine.
		`pkill -9 -f 'run --config Caddyfile.example'`: func(string) { n.kill() },
		"go run ./cmd/caddy relay listen 03": func(string) {
			later.start(t, caddyBinary, "relay", "listen", "03", "--address", n.tcp)
			waitFor(t, "the payment", func() bool { return strings.Contains(later.String(), `{"amount":3}`+"\n") })
		},
		"make test": func(string) {}, // which runs this
		// "make xcaddy" runs this line, with the pinned xcaddy.
		"xcaddy build v2.11.9 --with github.com/mholt/caddy-l4@v0.1.2 --with github.com/caddyrelay/relay@v0.0.0=.": func(string) {
			makefile, err := os.ReadFile("../Makefile")
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{"build v2.11.9", "--with github.com/mholt/caddy-l4@v0.1.2", "--with github.com/caddyrelay/relay@v0.0.0=."} {
				if !bytes.Contains(makefile, []byte(word)) {
					t.Errorf("the Makefile does not build with %q", word)
				}
			}
		},
	}
	docs := documents(t)
	commands := func(name string) (all []string) {
		for _, block := range blocks(docs[name], "sh") {
			for line := range strings.Lines(block) {
				all = append(all, strings.TrimSpace(line))
			}
		}
		return all
	}
	english := commands("README.md")
	if chinese := commands("README.zh-CN.md"); !slices.Equal(english, chinese) {
		t.Errorf("the READMEs have different commands:\n%q\n%q", english, chinese)
	}
	for _, c := range english {
		run := actions[c]
		if run == nil {
			t.Errorf("no test runs the README's command %q", c)
			continue
		}
		run(c)
	}
}

// outputOf is a process that runs until the test ends, and what it printed.
type outputOf struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *outputOf) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *outputOf) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start starts the process, with an input that stays open, in a process group of its own.
func (o *outputOf) start(t *testing.T, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = o, o
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(fmt.Errorf("%w (make deps installs what the tests need)", err))
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		cancel()
		_ = cmd.Wait()
	})
}
