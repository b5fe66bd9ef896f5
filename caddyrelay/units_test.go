package caddyrelay

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/wire"
)

func TestSecrets(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("from a file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("RELAY_TEST", "from the environment")
	t.Setenv("RELAY_TEST_EMPTY", "")
	for _, c := range []struct{ configured, want, wantErr string }{
		{"{env.RELAY_TEST}", "from the environment", ""},
		{"{file." + file + "}", "from a file", ""},
		{"hunter2", "", "write a placeholder instead"},
		{"x{env.RELAY_TEST}", "", "write a placeholder instead"},
		{"{env.RELAY_TEST}{env.RELAY_TEST}", "", "write a placeholder instead"},
		{"{env.RELAY_TEST_EMPTY}", "", "the environment variable RELAY_TEST_EMPTY is not set"},
		{"{file." + file + ".gone}", "", "is missing, empty or not readable"},
		{"{nonsense}", "", "stands for nothing"},
	} {
		got, err := secret("the token", c.configured)
		if got != c.want || (err == nil) != (c.wantErr == "") || err != nil && !strings.Contains(err.Error(), c.wantErr) {
			t.Errorf("%s: %q, %v", c.configured, got, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestTokens(t *testing.T) {
	two := newTokens([]string{"old", "new"})
	for token, want := range map[string]bool{"old": true, "new": true, "": false, "ol": false, "older": false} {
		if two.accept(token) != want {
			t.Errorf("%q: %v", token, !want)
		}
	}
	if newTokens(nil).accept("") {
		t.Error("no tokens accept the empty one")
	}
}

func TestCovers(t *testing.T) {
	tcp := func(a string) net.Addr {
		addr, err := net.ResolveTCPAddr("tcp", a)
		if err != nil {
			t.Fatal(err)
		}
		return addr
	}
	unix := &net.UnixAddr{Name: "/run/relay.sock", Net: "unix"}
	for _, c := range []struct {
		listen string
		local  net.Addr
		want   bool
	}{
		{":9000", tcp("127.0.0.1:9000"), true},
		{"0.0.0.0:9000", tcp("10.0.0.1:9000"), true},
		{"[::]:9000", tcp("[::1]:9000"), true},
		{"127.0.0.1:9000", tcp("127.0.0.1:9000"), true},
		{"127.0.0.1:9000", tcp("127.0.0.2:9000"), false},
		{"localhost:9000", tcp("127.0.0.1:9000"), true},
		{":9000", tcp("127.0.0.1:9001"), false},
		{":9000-9005", tcp("127.0.0.1:9003"), true},
		{"fd/3", tcp("127.0.0.1:9000"), true},
		{"unix//run/relay.sock", tcp("127.0.0.1:9000"), false},
		{"unix//run/relay.sock", unix, true},
		{"unix//run/other.sock", unix, false},
		{":9000", unix, false},
	} {
		a, err := caddy.ParseNetworkAddress(c.listen)
		if err != nil {
			t.Fatal(err)
		}
		if got := covers(a, c.local); got != c.want {
			t.Errorf("%s covers %s: %v", c.listen, c.local, got)
		}
	}
	if !covers(anyAddress, tcp("127.0.0.1:1")) || !covers(anyAddress, unix) {
		t.Error("an unknown address must cover all")
	}
}

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var th throttle
		if _, ok := th.allow(); !ok {
			t.Error("the first line was held back")
		}
		for range 5 {
			if _, ok := th.allow(); ok {
				t.Error("a second line within a minute")
			}
		}
		<-time.After(time.Minute)
		if held, ok := th.allow(); !ok || held != 5 {
			t.Errorf("after a minute: %d held back, %v", held, ok)
		}
	})
}

// The two packages cannot share this: wire imports nothing. So they are held against each other here,
// where both are known.
func TestJSONTypesAreTheSameForBrokerAndWire(t *testing.T) {
	for _, contentType := range []string{
		"", "application/json", "application/json; charset=utf-8", "APPLICATION/JSON", "application/problem+json", "text/json",
		"text/plain", "application/jsonp", "application/json;", "; json", "application/x-www-form-urlencoded", "+json", "a/b+json; q",
	} {
		text := string(wire.AppendMessage(nil, &wire.Message{ContentType: contentType, Body: []byte("1")}, true))
		if got, want := strings.HasSuffix(text, `"body":1}`), broker.IsJSON(contentType); got != want {
			t.Errorf("%q: JSON for wire %v, for broker %v", contentType, got, want)
		}
	}
}

// serve lets a provisioned handler answer one request.
func serve(t *testing.T, config string, r *http.Request, srv *caddyhttp.Server, next caddyhttp.Handler) (*httptest.ResponseRecorder, error) {
	t.Helper()
	a := startApp(t, oneChannel)
	h := new(Publish)
	if err := json.Unmarshal([]byte(config), h); err != nil {
		t.Fatal(err)
	}
	if err := h.check(); err != nil {
		t.Fatal(err)
	}
	h.setDefaults()
	h.app, h.generation, h.counts, h.logger = a, a.generation, a.node.counts.channel(h.Channel), a.logger
	w := httptest.NewRecorder()
	r = caddyhttp.PrepareRequest(r, caddy.NewReplacer(), w, srv)
	return w, h.ServeHTTP(w, r, next)
}

const openPublish = `{"channel":"pay","id":"{http.request.header.X-Id}","open":true`

func publishRequest(id, body string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body))
	r.Header.Set("X-Id", id)
	return r
}

func TestPublishAnswers(t *testing.T) {
	w, err := serve(t, openPublish+`,"respond":{"body":"success"}}`, publishRequest("01", "x"), nil, nil)
	if err != nil || w.Code != 200 || w.Body.String() != "success" {
		t.Errorf("respond: %d %q, %v", w.Code, w.Body, err)
	}

	called := false
	next := caddyhttp.HandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		called = true
		repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		if mid, _ := repl.GetString("http.relay.mid"); len(mid) != 26 {
			t.Errorf("mid %q", mid)
		}
		if state, _ := repl.GetString("http.relay.state"); state != "published" {
			t.Errorf("state %q", state)
		}
		body := make([]byte, 10)
		if n, _ := r.Body.Read(body); string(body[:n]) != "x" {
			t.Errorf("the next handler reads %q", body[:n])
		}
		return nil
	})
	if _, err := serve(t, openPublish+`,"pass_through":true}`, publishRequest("01", "x"), nil, next); err != nil || !called {
		t.Errorf("pass_through: %v, next called: %v", err, called)
	}
}

// A request that runs on after its configuration was replaced publishes to the one that rules now, if that
// has the channel.
func TestI8_RequestsOfAnOldConfiguration(t *testing.T) {
	old := startApp(t, oneChannel)
	h := &Publish{Channel: "pay", ID: "01", Open: true}
	h.setDefaults()
	h.app, h.generation, h.counts, h.logger = old, old.generation, old.node.counts.channel("pay"), old.logger
	post := func() *httptest.ResponseRecorder {
		t.Helper()
		w := httptest.NewRecorder()
		r := caddyhttp.PrepareRequest(publishRequest("01", "x"), caddy.NewReplacer(), w, nil)
		if err := h.ServeHTTP(w, r, nil); err != nil {
			t.Fatal(err)
		}
		return w
	}
	replace := func(before *App, config string) *App {
		t.Helper()
		next := startApp(t, config)
		if err := errors.Join(before.Stop(), before.Cleanup()); err != nil {
			t.Fatal(err)
		}
		return next
	}
	if w := post(); w.Code != http.StatusAccepted {
		t.Errorf("before: %d %s", w.Code, w.Body)
	}
	second := replace(old, oneChannel)
	if w := post(); w.Code != http.StatusAccepted {
		t.Errorf("after a reload: %d %s", w.Code, w.Body)
	}
	third := replace(second, `{"channels":{"other":{"delivery":"at_most_once"}}}`)
	if w := post(); w.Code != http.StatusNotFound || !strings.Contains(w.Body.String(), "unknown_channel") {
		t.Errorf("after the channel was removed: %d %s", w.Code, w.Body)
	}
	if err := errors.Join(third.Stop(), third.Cleanup()); err != nil {
		t.Fatal(err)
	}
	if w := post(); w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" || !strings.Contains(w.Body.String(), "not_running") {
		t.Errorf("after the relay was removed: %d %s", w.Code, w.Body)
	}
}

// An encoded slash must not split an ID, and so send the message to another destination.
func TestEncodedSlashIsRefused(t *testing.T) {
	config := `{"channel":"pay","id":"{http.request.uri.path.1}","open":true}`
	for path, status := range map[string]int{"/pay/a%2Fb": 400, "/pay/a%2fb": 400, "/pay/%C3%BC": 202} {
		r := httptest.NewRequest(http.MethodPost, path, strings.NewReader("x"))
		if w, err := serve(t, config, r, nil, nil); err != nil || w.Code != status {
			t.Errorf("%s: %d %s, %v", path, w.Code, w.Body, err)
		}
	}
}

// With handle_errors, the site decides about the answer; without, it is JSON.
func TestRefusalsAndErrorRoutes(t *testing.T) {
	w, err := serve(t, openPublish+`}`, publishRequest("0 1", "x"), nil, nil)
	var body map[string]string
	if e := json.Unmarshal(w.Body.Bytes(), &body); e != nil || err != nil || w.Code != 400 || body["error"] != "bad_id" || body["message"] == "" {
		t.Errorf("without: %d %s, %v", w.Code, w.Body, err)
	}
	srv := &caddyhttp.Server{Errors: &caddyhttp.HTTPErrorConfig{Routes: caddyhttp.RouteList{{}}}}
	r := publishRequest("0 1", "x")
	w, err = serve(t, openPublish+`}`, r, srv, nil)
	var he caddyhttp.HandlerError
	if !errors.As(err, &he) || he.StatusCode != http.StatusBadRequest || w.Body.Len() > 0 {
		t.Errorf("with: %v; %q was written", err, w.Body)
	}
}
