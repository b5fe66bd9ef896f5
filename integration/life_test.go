//go:build unix

package integration

import (
	"crypto/tls"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/freeport"
)

// "caddy validate" beside a running server provisions the same configuration and touches nothing.
func TestValidateBesideARunningServer(t *testing.T) {
	n := newNode(t)
	n.start(oneChannel(""))
	s := connectJSON(t, n.tcp, "01")
	for range 3 {
		out, err := n.command("validate", "--config", filepath.Join(n.dir, "caddy.json")).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Valid configuration") {
			t.Fatalf("validate: %v\n%s", err, out)
		}
	}
	n.curl("/pay/01", "still here")
	s.awaitLine("still here")
}

func TestExitSaysGoodbye(t *testing.T) {
	n := newNode(t)
	n.start(oneChannel(""))
	js, plain := connectJSON(t, n.tcp, "01"), connect(t, n.tcp, "01", nil)
	n.awaitSessions("pay_mq_channel", 2)
	n.stop()
	js.awaitEnd()
	g := object(t, js.awaitLine("goodbye"))
	if g["code"] != "shutdown" || g["reconnect"] != true || g["after_ms"].(float64) > 5000 {
		t.Errorf("goodbye: %v", g)
	}
	plain.awaitEnd()
	if got := plain.got(); len(got) != 0 {
		t.Errorf("the plain socket read %q", got)
	}
}

// A socket that does not even read its goodbye holds up the exit for shutdown_grace and no longer.
func TestExitIsBounded(t *testing.T) {
	n := newNode(t)
	n.start(strings.Replace(oneChannel("shutdown_grace 1s"), "auth none", "auth none\n\t\t\t\t\tqueue 1000 1GiB", 1))
	s := connect(t, n.tcp, "01", func(string) { select {} }) // reads one line, then stands still
	n.awaitSessions("pay_mq_channel", 1)
	big := strings.Repeat("x", 500<<10)
	for range 40 { // more than the kernel's buffers take
		n.post("/pay/01", "text/plain", big)
	}
	begin := time.Now()
	n.stop()
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("the exit took %s", took)
	}
	_ = s.conn.Close()
}

// The relay's secrets stay out of what Caddy shows and keeps.
func TestSecretsAreNotShown(t *testing.T) {
	n := newNode(t)
	n.env = []string{"RELAY_TOKEN=s3cret-of-the-test"}
	n.start(strings.NewReplacer("auth none", "auth token {env.RELAY_TOKEN}", "\topen", "\ttoken {env.RELAY_TOKEN}").Replace(oneChannel("")))
	bad := connect(t, n.tcp, "01 wrong", nil)
	bad.awaitLine("error 401")
	bad.awaitEnd()
	good := connect(t, n.tcp, "01 s3cret-of-the-test", nil)
	n.awaitSessions("pay_mq_channel", 1)
	if a := n.curl("/pay/01", "x"); a.status != 401 || a.fields["error"] != "unauthorized" {
		t.Errorf("answer: %d %s", a.status, a.text)
	}
	_ = good.conn.Close()
	n.awaitSessions("pay_mq_channel", 0)
	n.stop()
	autosave, err := os.ReadFile(filepath.Join(n.dir, "caddy", "autosave.json"))
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"the log": n.log.String(), "autosave.json": string(autosave)} {
		if strings.Contains(text, "s3cret-of-the-test") {
			t.Errorf("%s shows the token", what)
		}
	}
}

// TLS sockets keep their old configuration in memory, so the oldest are asked to reconnect.
func TestI8_TLSSocketsBeyondMaxGenerations(t *testing.T) {
	n := newNode(t)
	config := strings.Replace(oneChannel("max_generations 2"), "relay pay_mq_channel {", "tls\n\t\t\t\trelay pay_mq_channel {", 1)
	config += "\nhttps://localhost:{HTTPS} {\n\ttls internal\n\tbind 127.0.0.1\n\trespond ok\n}\n"
	https := freeport.Addr(t)
	config = strings.ReplaceAll(config, "localhost:{HTTPS}", "localhost:"+https[strings.LastIndex(https, ":")+1:])
	config = strings.Replace(config, header, header+"\tskip_install_trust\n\tauto_https disable_redirects\n", 1)
	n.start(config)
	var conn *tls.Conn
	n.wait("the certificate", func() (ok bool) {
		var err error
		conn, err = tls.Dial("tcp", n.tcp, &tls.Config{ServerName: "localhost", InsecureSkipVerify: true}) //nolint:gosec // Caddy's own test authority
		return err == nil
	})
	defer conn.Close()
	if _, err := io.WriteString(conn, `{"op":"hello","v":1,"id":"01"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	n.awaitSessions("pay_mq_channel", 1)
	json := n.adapt(config)
	for {
		if err := n.load(json); err != nil {
			t.Fatal(err)
		}
		// Not the calls of load: it may have loaded twice.
		reloads := len(n.log.lines("relay started")) - 1
		if reloads > 2 {
			break
		}
		if got := n.metric(`caddy_relay_sessions{channel="pay_mq_channel"}`); got != 1 {
			t.Fatalf("after %d reloads %v sessions are left", reloads, got)
		}
	}
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	text, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(text), `"goodbye","code":"config_pinned"`) {
		t.Errorf("read %q, %v", text, err)
	}
}

// SIGUSR1 and friends are Caddy's; SIGTERM while a reload is under way must not hang either.
func TestExitDuringReload(t *testing.T) {
	n := newNode(t)
	n.start(oneChannel(""))
	connectJSON(t, n.tcp, "01")
	json := n.adapt(variant(1, ""))
	done := make(chan struct{})
	go func() { defer close(done); _ = n.load(json) }()
	_ = n.cmd.Process.Signal(syscall.SIGTERM)
	<-done
	n.stop()
}
