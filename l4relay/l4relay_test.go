package l4relay

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"testing"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
	_ "github.com/mholt/caddy-l4/modules/l4subroute"
	"go.uber.org/zap"
)

// pair returns two ends of a TCP connection.
func pair(t *testing.T) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); s.Close() })
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

func wrap(c net.Conn) *layer4.Connection { return layer4.WrapConnection(c, []byte{}, zap.NewNop()) }

// raw is a wrapper such as go-proxyproto's.
type raw struct{ net.Conn }

func (r raw) Raw() net.Conn { return r.Conn }

func TestConnFindsWhatIsWrapped(t *testing.T) {
	_, server := pair(t)
	secure := tls.Server(wrap(server), &tls.Config{})
	p1, p2 := net.Pipe()
	defer p1.Close()
	defer p2.Close()
	for _, c := range []struct {
		name     string
		conn     net.Conn
		tcp, tls bool
	}{
		{"TCP", server, true, false},
		{"TCP in caddy-l4", wrap(server), true, false},
		{"TLS", secure, true, true},
		{"PROXY protocol", raw{wrap(server)}, true, false},
		{"TLS in PROXY protocol", tls.Server(raw{wrap(server)}, &tls.Config{}), true, true},
		{"something else", p1, false, false},
	} {
		got := newConn(wrap(c.conn))
		if (got.tcp != nil) != c.tcp || (got.tls != nil) != c.tls {
			t.Errorf("%s: TCP %v, TLS %v", c.name, got.tcp != nil, got.tls != nil)
		}
	}
}

// The peer reads the last frame and then the end, while its own direction is still open.
func TestCloseWrite(t *testing.T) {
	client, server := pair(t)
	c := newConn(wrap(server))
	if _, err := c.Write([]byte("last")); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(client); err != nil || string(got) != "last" {
		t.Errorf("the peer read %q, %v", got, err)
	}
	if _, err := client.Write([]byte("still open")); err != nil {
		t.Errorf("the other direction: %v", err)
	}
}

func TestHasHandler(t *testing.T) {
	for _, c := range []struct {
		raw  string
		want bool
	}{
		{`{"handler":"relay","channel":"pay"}`, true},
		{`{"handler":"relay","channel":"other"}`, false},
		{`{"handler":"echo","channel":"pay"}`, false},
		{`{"handler":"subroute","routes":[{"handle":[{"handler":"tls"},{"handler":"relay","channel":"pay"}]}]}`, true},
		{`[]`, false},
	} {
		var v any
		if err := json.Unmarshal([]byte(c.raw), &v); err != nil {
			t.Fatal(err)
		}
		if got := hasHandler(v, "relay", "pay"); got != c.want {
			t.Errorf("%s: %v", c.raw, got)
		}
	}
}

// locator is a handler that notes where it was found.
type locator struct {
	Channel string `json:"channel"`
}

var located = make(map[string]bool)

func init() { caddy.RegisterModule(new(locator)) }

func (*locator) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "layer4.handlers.locator", New: func() caddy.Module { return new(locator) }}
}

func (l *locator) Provision(ctx caddy.Context) error {
	for _, a := range addresses(ctx, "locator", l.Channel) {
		located[fmt.Sprint(l.Channel, " ", a.StartPort)] = true
	}
	return nil
}

func (*locator) Handle(*layer4.Connection, layer4.Handler) error { return nil }

// This leans on when Caddy clears the raw JSON of routes: should that change, it shows here.
func TestAddressesAreFoundWhileProvisioning(t *testing.T) {
	const config = `{"apps":{"layer4":{"servers":{
		"a":{"listen":["127.0.0.1:1"],"routes":[{"handle":[{"handler":"locator","channel":"pay"}]}]},
		"b":{"listen":["127.0.0.1:2","127.0.0.1:3"],"routes":[
			{"handle":[{"handler":"subroute","routes":[{"handle":[{"handler":"locator","channel":"pay"}]}]}]}]},
		"c":{"listen":["127.0.0.1:4"],"routes":[{"handle":[{"handler":"locator","channel":"other"}]}]}
	}}}}`
	for range 5 { // caddy-l4 provisions its servers in random order
		var c caddy.Config
		if err := json.Unmarshal([]byte(config), &c); err != nil {
			t.Fatal(err)
		}
		clear(located)
		if err := caddy.Validate(&c); err != nil {
			t.Fatal(err)
		}
		want := map[string]bool{"pay 1": true, "pay 2": true, "pay 3": true, "other 4": true}
		if !maps.Equal(located, want) {
			t.Fatalf("found %v, want %v", located, want)
		}
	}
}

// A handler serves what caddy-l4 prefetched, too.
func TestHandle(t *testing.T) {
	ctx, err := caddy.ProvisionContext(&caddy.Config{AppsRaw: caddy.ModuleMap{
		"relay": json.RawMessage(`{"channels":{"pay":{"delivery":"at_most_once"}}}`),
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
	m, err := ctx.LoadModuleByID("layer4.handlers.relay", json.RawMessage(`{"channel":"pay","auth":{"none":true}}`))
	if err != nil {
		t.Fatal(err)
	}
	client, server := pair(t)
	done := make(chan error, 1)
	go func() {
		defer server.Close()
		done <- m.(*Handler).Handle(layer4.WrapConnection(server, []byte(`{"op":"hello",`), zap.NewNop()), nil)
	}()
	if _, err := client.Write([]byte(`"v":1,"id":"01"}` + "\n" + `{"op":"goodbye"}` + "\n")); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(client)
	if err != nil || !bytes.HasPrefix(got, []byte(`{"op":"welcome"`)) {
		t.Errorf("got %q, %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}
