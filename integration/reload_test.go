//go:build unix

package integration

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
)

// underReloads runs a load of 500 posts a second to 200 sockets while reload is called again and again,
// and checks that nobody noticed (I8).
func underReloads(t *testing.T, n *node, count int, reload func(i int)) {
	t.Helper()
	l := startLoad(t, "pay_mq_channel", 200, n)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { l.run(ctx, 500) })
	for i := range count {
		reload(i)
		// A tenth of a second's posts between two reloads.
		waitFor(t, "posts to be accepted", func() bool { return l.accepted.Load() > int64(50*(i+1)) })
	}
	cancel()
	wg.Wait()
	sum := l.settle()
	t.Logf("%d reloads: %s; sockets dropped %d, posts refused %d, posts sent again after a connection error %d",
		count, sum, l.dropped.Load(), l.refused.Load(), l.retried.Load())
	if sum.accepted == 0 || sum.lost+sum.doubled+sum.invented+sum.disordered > 0 {
		t.Errorf("the books do not balance: %s", sum)
	}
	if l.dropped.Load() > 0 || l.refused.Load() > 0 {
		t.Errorf("%d sockets dropped, %d posts refused", l.dropped.Load(), l.refused.Load())
	}
}

// variant is a configuration that differs in a setting from the ones before and after it, and has a
// further channel every other time.
func variant(i int, broker string) string {
	config := strings.Replace(oneChannel(broker), "auth none", fmt.Sprintf("auth none\n\t\t\t\t\theartbeat %ds", 30+i%60), 1)
	if i%2 == 1 {
		config = strings.Replace(config, "channel pay_mq_channel", "channel further {\n\t\t\tdelivery at_most_once\n\t\t}\n\t\tchannel pay_mq_channel", 1)
	}
	return config
}

func TestI8_FiftyReloadsUnderLoad(t *testing.T) {
	for _, broker := range []string{"embedded", "redis"} {
		t.Run(broker, func(t *testing.T) {
			n := newNode(t)
			config := "broker embedded"
			if broker == "redis" {
				config = "broker redis {\n\t\t\taddress " + redistest.Start(t).Addr() + "\n\t\t}"
			}
			n.start(variant(0, config))
			// Adapting takes a process each; the reloads are to come in a row.
			variants := [][]byte{n.adapt(variant(1, config)), n.adapt(variant(2, config)), n.adapt(variant(4, config))}
			underReloads(t, n, 50, func(i int) {
				if err := n.load(variants[i%len(variants)]); err != nil {
					t.Errorf("reload %d: %v", i, err)
				}
			})
		})
	}
}

// I8 for a reload that fails, in provisioning and in starting, and for one that changes the broker.
func TestI8_ReloadsThatFailAndThatChangeTheBroker(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	server, second := redistest.Start(t), redistest.Start(t)
	redis := func(s *redistest.Server) string { return "broker redis {\n\t\t\taddress " + s.Addr() + "\n\t\t}" }

	n := newNode(t)
	n.start(variant(0, "broker embedded"))
	good := [][]byte{
		n.adapt(variant(1, redis(server))), n.adapt(variant(2, "broker embedded")), n.adapt(variant(3, redis(second))), n.adapt(variant(4, redis(server))),
	}
	unknown := []byte(strings.Replace(string(good[0]), `"handler":"relay"`, `"handler":"nonsense"`, 1))
	noStart := n.adapt(variant(5, "broker embedded") + "\nhttp://:" + port(taken) + " {\n\tbind 127.0.0.1\n\trespond ok\n}\n")
	underReloads(t, n, 24, func(i int) {
		switch i % 3 {
		case 0:
			if err := n.load(good[i/3%len(good)]); err != nil {
				t.Errorf("reload %d: %v", i, err)
			}
		case 1:
			if err := n.load(unknown); err == nil || !strings.Contains(err.Error(), "nonsense") {
				t.Errorf("a configuration with an unknown handler was loaded: %v", err)
			}
		case 2:
			if err := n.load(noStart); err == nil || !strings.Contains(err.Error(), "address already in use") {
				t.Errorf("a configuration that cannot start was loaded: %v", err)
			}
		}
	})
}

func port(ln net.Listener) string {
	_, p, _ := net.SplitHostPort(ln.Addr().String())
	return p
}

// I8, its exceptions: what is removed says goodbye, and nothing else is touched.
func TestI8_RemovedListenerChannelAndApp(t *testing.T) {
	two := `{
	` + header + `
	relay {
		channel pay_mq_channel {
			delivery at_most_once
		}
		channel notice_channel {
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
		{TCP2} {
			route {
				relay %s {
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
}
`
	t.Run("listener", func(t *testing.T) {
		n := newNode(t)
		n.start(fmt.Sprintf(two, "pay_mq_channel"))
		stays, goes, plain := connectJSON(t, n.tcp, "01"), connectJSON(t, n.tcp2, "01"), connect(t, n.tcp2, "01", nil)
		n.awaitSessions("pay_mq_channel", 3)
		if err := n.reload(oneChannel("")); err != nil {
			t.Fatal(err)
		}
		goes.awaitEnd()
		g := object(t, goes.awaitLine("goodbye"))
		if g["code"] != "listener_removed" || g["reconnect"] != true {
			t.Errorf("goodbye: %v", g)
		}
		plain.awaitEnd()
		if got := plain.got(); len(got) != 0 {
			t.Errorf("the plain socket read %q", got)
		}
		n.curl("/pay/01", "still here")
		stays.awaitLine("still here")
	})
	// The listener stays, but for another channel: its sockets were of the first.
	t.Run("listener of another channel now", func(t *testing.T) {
		n := newNode(t)
		n.start(fmt.Sprintf(two, "pay_mq_channel"))
		stays, goes := connectJSON(t, n.tcp, "01"), connectJSON(t, n.tcp2, "01")
		if err := n.reload(fmt.Sprintf(two, "notice_channel")); err != nil {
			t.Fatal(err)
		}
		goes.awaitLine("listener_removed")
		goes.awaitEnd()
		n.curl("/pay/01", "still here")
		stays.awaitLine("still here")
	})
	t.Run("channel", func(t *testing.T) {
		n := newNode(t)
		n.start(fmt.Sprintf(two, "notice_channel"))
		stays, goes := connectJSON(t, n.tcp, "01"), connectJSON(t, n.tcp2, "01")
		if err := n.reload(oneChannel("")); err != nil {
			t.Fatal(err)
		}
		goes.awaitLine("channel_removed")
		goes.awaitEnd()
		n.curl("/pay/01", "still here")
		stays.awaitLine("still here")
	})
	t.Run("app", func(t *testing.T) {
		n := newNode(t)
		n.start(oneChannel(""))
		goes := connectJSON(t, n.tcp, "01")
		if err := n.reload("{\n\t" + header + "}\nhttp://:{HTTP} {\n\tbind 127.0.0.1\n\trespond hello\n}\n"); err != nil {
			t.Fatal(err)
		}
		goes.awaitLine("goodbye")
		goes.awaitEnd()
		// And back again.
		if err := n.reload(oneChannel("")); err != nil {
			t.Fatal(err)
		}
		again := connectJSON(t, n.tcp, "01")
		n.curl("/pay/01", "hello again")
		again.awaitLine("hello again")
	})
}

// A socket that is still sending its first frame while the configuration changes is served by the new one.
func TestI8_ReloadDuringHello(t *testing.T) {
	n := newNode(t)
	n.start(variant(0, ""))
	conn, err := net.Dial("tcp", n.tcp)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("0")); err != nil {
		t.Fatal(err)
	}
	if err := n.reload(variant(1, "")); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("1\n")); err != nil {
		t.Fatal(err)
	}
	n.awaitSessions("pay_mq_channel", 1)
	n.curl("/pay/01", "made it")
	buf := make([]byte, 8)
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Read(buf); err != nil || string(buf) != "made it\n" {
		t.Errorf("got %q, %v", buf, err)
	}
}
