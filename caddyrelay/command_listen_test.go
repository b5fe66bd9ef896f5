package caddyrelay

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyrelay/relay/internal/wire"
)

// listenTest is a [backEnd] that runs in a synctest bubble, and the relay that it listens to.
type listenTest struct {
	t      *testing.T
	b      *backEnd
	begun  time.Time
	out    textBuffer
	status textBuffer
	stop   context.CancelFunc
	ended  chan error
	dials  chan net.Conn // the relay's ends
	refuse bool          // nothing listens; to be set while the back end waits
	dialed []time.Duration
}

// textBuffer can be read while it is written.
type textBuffer struct {
	mu   sync.Mutex
	text []byte
}

func (b *textBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.text = append(b.text, p...)
	return len(p), nil
}

func (b *textBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.text)
}

// listenTo runs test in a bubble, with a back end that listens as 01. It picks the longest backoffs.
func listenTo(t *testing.T, configure func(*listenTest), test func(*listenTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		l := &listenTest{t: t, b: newBackEnd(), begun: time.Now(), ended: make(chan error, 1), dials: make(chan net.Conn, 1)}
		l.b.id, l.b.address, l.b.out, l.b.status = "01", "127.0.0.1:9000", &l.out, &l.status
		l.b.random = func(below time.Duration) time.Duration { return below }
		l.b.dial = func(context.Context, string) (net.Conn, error) {
			l.dialed = append(l.dialed, time.Since(l.begun))
			if l.refuse {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
			}
			client, server := net.Pipe()
			l.dials <- server
			return client, nil
		}
		if configure != nil {
			configure(l)
		}
		var ctx context.Context
		ctx, l.stop = context.WithCancel(t.Context())
		defer l.stop()
		go func() { l.ended <- l.b.run(ctx) }()
		test(l)
	})
}

// relayEnd is the relay's end of a connection.
type relayEnd struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

// accept takes the next connection.
func (l *listenTest) accept() *relayEnd {
	l.t.Helper()
	conn := <-l.dials
	l.t.Cleanup(func() { conn.Close() })
	return &relayEnd{t: l.t, conn: conn, r: bufio.NewReader(conn)}
}

// welcome takes the next connection and registers it.
func (l *listenTest) welcome() *relayEnd {
	l.t.Helper()
	r := l.accept()
	r.expect("hello")
	r.send(`{"op":"welcome","v":1,"session":"s","window":16,"heartbeat":30,"max":1048576}`)
	return r
}

// end waits for the end of the back end.
func (l *listenTest) end() error {
	l.t.Helper()
	return <-l.ended
}

func (l *listenTest) wantStatus(want string) {
	l.t.Helper()
	synctest.Wait()
	if got := l.status.String(); got != want {
		l.t.Errorf("status:\n%swant:\n%s", got, want)
	}
}

func (r *relayEnd) send(text string) {
	r.t.Helper()
	if _, err := io.WriteString(r.conn, text+"\n"); err != nil {
		r.t.Fatalf("sending %q: %v", text, err)
	}
}

// hangUp closes the connection while the back end reads: a pipe, unlike TCP, fails the setting of
// a deadline too once its other end is closed.
func (r *relayEnd) hangUp() {
	synctest.Wait()
	r.conn.Close()
}

// expect reads a request and returns it.
func (r *relayEnd) expect(op wire.Op) wire.Request {
	r.t.Helper()
	line, err := r.r.ReadBytes('\n')
	if err != nil {
		r.t.Fatalf("waiting for %s: %v", op, err)
	}
	request, err := wire.ParseRequest(line)
	if err != nil || request.Op != op {
		r.t.Fatalf("got %q, %v, want %s", line, err, op)
	}
	return request
}

// message sends a message whose rest is given, and expects that it is acknowledged.
func (r *relayEnd) message(mid, rest string) {
	r.t.Helper()
	r.send(`{"op":"message","mid":"` + mid + `","channel":"pay","attempt":1,"ts":1,` + rest + `}`)
	if ack := r.expect("ack"); ack.MID != mid {
		r.t.Errorf("ack of %q, want %q", ack.MID, mid)
	}
}

func TestListenBacksOff(t *testing.T) {
	listenTo(t, func(l *listenTest) { l.refuse = true }, func(l *listenTest) {
		time.Sleep(100 * time.Second)
		synctest.Wait()
		want := []time.Duration{0, 1, 3, 7, 15, 31, 51, 71, 91} // 1, 2, 4, 8, 16, 20, 20 … seconds apart
		for i := range want {
			want[i] *= time.Second
		}
		if got := fmt.Sprint(l.dialed); got != fmt.Sprint(want) {
			t.Errorf("dialed at %s, want %s", got, want)
		}
		status := l.status.String()
		if !strings.HasPrefix(status, "nothing listens on 127.0.0.1:9000; start it with: caddy run --config Caddyfile.example; "+
			"trying again in 1.0s\nnothing listens on 127.0.0.1:9000; trying again in 2.0s\n") {
			t.Errorf("status:\n%s", status)
		}
		l.stop() // while it waits
		if err := l.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestBackoffIsSpread(t *testing.T) {
	b := newBackEnd()
	for attempt := 1; attempt < 200; attempt++ {
		limit := maxBackoff
		if attempt < 6 {
			limit = time.Second << (attempt - 1)
		}
		if got := b.backoff(attempt); got < minBackoff || got > limit {
			t.Errorf("attempt %d waits %s, want up to %s", attempt, got, limit)
		}
	}
	b.random = func(time.Duration) time.Duration { return 0 }
	if got := b.backoff(1000); got != minBackoff {
		t.Errorf("the shortest wait is %s", got)
	}
}

// Only a session that lasted makes the next wait short: a relay that closes each one at once must not
// be hammered.
func TestListenBackoffAfterSessions(t *testing.T) {
	listenTo(t, nil, func(l *listenTest) {
		for range 3 {
			l.welcome().hangUp()
		}
		r := l.welcome()
		time.Sleep(29 * time.Second)
		r.hangUp()
		r = l.welcome()
		time.Sleep(30 * time.Second)
		r.hangUp()
		l.welcome()
		want := ""
		for _, wait := range []string{"1.0s", "2.0s", "4.0s", "8.0s", "1.0s"} {
			want += "listening as 01 on 127.0.0.1:9000\nconnection lost: the relay closed it; trying again in " + wait + "\n"
		}
		l.wantStatus(want + "listening as 01 on 127.0.0.1:9000\n")
	})
}

func TestListenComesBack(t *testing.T) {
	for _, test := range []struct {
		said, want string
		after      time.Duration
	}{
		{`{"op":"goodbye","code":"shutdown","reconnect":true,"after_ms":4200}`, "the relay said goodbye: shutdown; trying again in 4.2s\n", 4200 * time.Millisecond},
		{`{"op":"goodbye","code":"x","reconnect":true,"after_ms":0}`, "the relay said goodbye: x; trying again in 1.0s\n", time.Second},
		{`{"op":"goodbye","code":"x","reconnect":true,"after_ms":-5}`, "the relay said goodbye: x; trying again in 1.0s\n", time.Second},
		{`{"op":"goodbye","code":"x","reconnect":true,"after_ms":9223372036854775807}`, "the relay said goodbye: x; trying again in 300.0s\n", 5 * time.Minute},
		{`{"op":"error","code":503,"reason":"try again\u001b[2J","temporary":true}`, "the relay refused: 503 try again [2J; trying again in 1.0s\n", time.Second},
		{"error 503 too many sockets", "the relay refused: 503 too many sockets; trying again in 1.0s\n", time.Second},
		{"error 408 no complete first frame", "the relay refused: 408 no complete first frame; trying again in 1.0s\n", time.Second},
	} {
		listenTo(t, nil, func(l *listenTest) {
			r := l.accept()
			r.expect("hello")
			r.send(test.said)
			l.accept()
			l.wantStatus(test.want)
			if got := time.Since(l.begun); got != test.after {
				t.Errorf("%s: came back after %s", test.said, got)
			}
		})
	}
}

func TestListenGivesUp(t *testing.T) {
	for _, test := range []struct{ said, want string }{
		{`{"op":"error","code":401,"reason":"wrong or missing token","temporary":false}`,
			"the relay refused: 401 wrong or missing token; name the file that holds the listener's token with --token-file, or set RELAY_TOKEN"},
		{`{"op":"error","code":400,"reason":"the ID is bad","temporary":false}`, "the relay refused: 400 the ID is bad"},
		{`{"op":"goodbye","code":"channel_removed","reconnect":false}`, "the relay said goodbye for good: channel_removed; its log says more"},
		{"error 400 the ID contains ','", `the relay refused: 400 the ID contains ','; listen speaks JSON: the listener must have "protocol auto" or "protocol json"`},
		{"HTTP/1.1 400 Bad Request\r", `127.0.0.1:9000 does not speak the relay's protocol in framing "line": it sent "HTTP/1.1 400 Bad Request"; check --address and --framing`},
		{"error that is another one's", "does not speak"},
		{"220 " + strings.Repeat("x", 500), "it sent \"220 " + strings.Repeat("x", 56) + `"; check`},
		{`{"op":7}`, "does not speak"},
		{`{"jsonrpc":"2.0"}`, "does not speak"},
		{`{"op":"welcome","max":1e400}`, "does not speak"},
		{`{"op":"message","mid":"1","enc":"base64","body":"?"}`, "does not speak"},
	} {
		listenTo(t, func(l *listenTest) { l.b.token = "s3cret" }, func(l *listenTest) {
			r := l.accept()
			r.expect("hello")
			r.send(test.said)
			err := l.end()
			if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("%.60s: ended with %v", test.said, err)
			}
			if out := l.out.String(); out != "" {
				t.Errorf("%.60s: printed %q", test.said, out)
			}
		})
	}
}

// A relay with a length framing: its answer never holds the end of a line.
func TestListenGivesUpOnAnotherFraming(t *testing.T) {
	listenTo(t, nil, func(l *listenTest) {
		r := l.accept()
		r.expect("hello")
		if _, err := io.WriteString(r.conn, "\x00\x11error 413 too large"); err != nil {
			t.Fatal(err)
		}
		r.hangUp()
		if err := l.end(); err == nil || !strings.Contains(err.Error(), `it sent "\x00\x11error 413 too large"; check --address and --framing`) {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestListenStops(t *testing.T) {
	t.Run("before the welcome", func(t *testing.T) {
		listenTo(t, nil, func(l *listenTest) {
			r := l.accept()
			r.expect("hello")
			l.stop()
			r.expect("goodbye")
			if err := l.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("with a relay that reads nothing", func(t *testing.T) {
		listenTo(t, nil, func(l *listenTest) {
			l.welcome()
			l.stop()
			if err := l.end(); err != nil {
				t.Error(err)
			}
			if got := time.Since(l.begun); got > writeTimeout {
				t.Errorf("took %s", got)
			}
		})
	})
	t.Run("right after it dialed", func(t *testing.T) {
		listenTo(t, func(l *listenTest) {
			dial := l.b.dial
			l.b.dial = func(ctx context.Context, address string) (net.Conn, error) {
				l.stop()
				return dial(ctx, address)
			}
		}, func(l *listenTest) {
			r := l.accept()
			synctest.Wait() // the end is known before anything is read
			r.expect("hello")
			r.expect("goodbye")
			if err := l.end(); err != nil || time.Since(l.begun) > 0 {
				t.Errorf("ended with %v after %s", err, time.Since(l.begun))
			}
		})
	})
	t.Run("while it dials", func(t *testing.T) {
		listenTo(t, func(l *listenTest) {
			l.b.dial = func(ctx context.Context, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		}, func(l *listenTest) {
			l.stop()
			if err := l.end(); err != nil {
				t.Error(err)
			}
		})
	})
}
