//go:build unix

package integration

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
)

// I4: what a channel does with a second socket for an ID holds across nodes.
func TestI4_DuplicateIDs(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	redis := "broker redis {\n\t\t\taddress " + server.Addr() + "\n\t\t}"
	for _, mode := range []string{"takeover", "reject", "standby"} {
		t.Run(mode, func(t *testing.T) {
			server.CLI("FLUSHALL")
			a, b := newNode(t), newNode(t)
			a.start(atLeastOnce(redis, "on_duplicate_id "+mode))
			b.start(atLeastOnce(redis, "on_duplicate_id "+mode))
			first := connectJSON(t, a.tcp, "01")
			second := connect(t, b.tcp, `{"op":"hello","v":1,"id":"01"}`, nil)
			second.awaitLine(`"op"`)
			publish := func() {
				t.Helper()
				if got := a.post("/pay/01", "application/json", `{"n":1}`); got.status != 202 {
					t.Fatalf("%+v", got)
				}
			}
			switch mode {
			case "takeover":
				first.awaitLine(`{"op":"goodbye","code":"taken_over","reconnect":false`)
				publish()
				second.awaitLine(`"op":"message"`)
			case "reject":
				second.awaitLine(`{"op":"error","code":409`)
				publish()
				first.awaitLine(`"op":"message"`)
			case "standby":
				second.awaitLine(`"standby":true`)
				publish()
				first.awaitLine(`"op":"message"`)
				first.conn.Close()
				began := time.Now()
				if v := object(t, second.awaitLine(`"op":"message"`)); v["attempt"] != 2.0 {
					t.Errorf("the second was sent %v", v)
				}
				t.Logf("promoted after %s", time.Since(began).Round(time.Millisecond))
				if lines := second.got(); len(lines) != 3 || !strings.Contains(lines[1], `"fence"`) || strings.Contains(lines[1], "standby") {
					t.Errorf("the second was told %q", lines)
				}
			}
		})
	}
}

// I8: while Redis is away sockets stay; after isolate_after they are asked to try another node.
func TestI8_Isolation(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	n := newNode(t)
	n.start(atLeastOnce("broker redis {\n\t\t\taddress "+server.Addr()+"\n\t\t\tisolate_after 4s\n\t\t}", ""))
	s := connectJSON(t, n.tcp, "01")
	server.Kill()
	pauseFor(1500 * time.Millisecond)
	server.Restart()
	n.wait("redis to be back", func() bool { return n.metric("caddy_relay_store_ready") == 1 })
	if ended := n.metric(`caddy_relay_ended_total{reason="isolated"}`); ended != 0 {
		t.Errorf("%v sockets were isolated by a blip", ended)
	}
	server.Kill()
	began := time.Now()
	s.awaitLine(`{"op":"goodbye","code":"isolated","reconnect":true`)
	if away := time.Since(began); away < 2500*time.Millisecond {
		t.Errorf("it was told so after %s", away)
	}
	if lines := n.log.lines("the store has been out of reach for so long that the sockets are asked to try another node; see why this node cannot reach it"); len(lines) != 1 {
		t.Errorf("%d log lines", len(lines))
	}
}

// Any node tells who is online, and where.
func TestPresence(t *testing.T) {
	server := redistest.Start(t, "--appendonly", "yes")
	redis := "broker redis {\n\t\t\taddress " + server.Addr() + "\n\t\t}"
	a, b := newNode(t), newNode(t)
	a.start(atLeastOnce(redis, ""))
	b.start(atLeastOnce(redis, ""))
	first := connectJSON(t, a.tcp, "01")
	connectJSON(t, b.tcp, "ü%2F/x")
	presence := func(n *node, path string) answer {
		t.Helper()
		req, err := http.NewRequest(http.MethodGet, "http://"+n.admin+"/relay/presence/pay_mq_channel"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		return do(t, req)
	}
	for _, n := range []*node{a, b} {
		got := presence(n, "/01")
		if got.status != 200 || got.fields["id"] != "01" || got.fields["address"] != first.conn.LocalAddr().String() || got.fields["window"] != 16.0 || got.fields["node"] == "" {
			t.Errorf("%+v", got)
		}
		if got := presence(n, ""); got.status != 200 || len(got.fields["online"].([]any)) != 2 {
			t.Errorf("%+v", got)
		}
		if got := presence(n, "/02"); got.status != 404 {
			t.Errorf("%+v", got)
		}
	}
	if got := presence(a, "?limit=0"); got.status != 400 {
		t.Errorf("%+v", got)
	}
	first.conn.Close()
	b.wait("the socket to be offline", func() bool { return presence(b, "/01").status == 404 })
}
