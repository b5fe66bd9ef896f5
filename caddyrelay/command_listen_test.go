package caddyrelay

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
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

func TestListenPrintsAndAcknowledges(t *testing.T) {
	listenTo(t, func(l *listenTest) { l.b.count, l.b.token = 6, "s3cret" }, func(l *listenTest) {
		r := l.accept()
		hello := r.expect("hello")
		if hello.V != 1 || hello.ID != "01" || hello.Token != "s3cret" {
			t.Errorf("hello: %+v", hello)
		}
		r.send(`{"op":"welcome","v":1,"session":"s","window":16,"heartbeat":30,"max":1048576}`)
		r.send("") // nothing
		r.send(`{"op":"from a newer relay"}`)
		r.message("1", `"body":{"amount": 1.0,"n":12345678901234567890,"x":"<>"}`)
		r.message("2", `"enc":"text","body":"plain \u00fc\n\"text\""`)
		r.message("3", `"enc":"text","body":"ends its line\n"`)
		r.message("4", `"enc":"base64","body":"/wA="`)
		r.message("5<>", `"body":null`)
		r.message("6", `"enc":"text","body":"`+strings.Repeat("x", 200_000)+`"`)
		r.expect("goodbye")
		if err := l.end(); err != nil {
			t.Error(err)
		}
		want := `{"amount": 1.0,"n":12345678901234567890,"x":"<>"}` + "\nplain ü\n\"text\"\nends its line\n\xff\x00\nnull\n" +
			strings.Repeat("x", 200_000) + "\n"
		if got := l.out.String(); got != want {
			t.Errorf("printed %.300q", got)
		}
		l.wantStatus("listening as 01 on 127.0.0.1:9000\n")
	})
}

func TestListenPrintsWholeMessages(t *testing.T) {
	listenTo(t, func(l *listenTest) { l.b.count, l.b.whole = 1, true }, func(l *listenTest) {
		r := l.welcome()
		r.message("1", `"enc":"text","body":"a\nb<"`)
		r.expect("goodbye")
		if err := l.end(); err != nil {
			t.Error(err)
		}
		want := `{"op":"message","mid":"1","channel":"pay","attempt":1,"ts":1,"enc":"text","body":"a\nb<"}` + "\n"
		if got := l.out.String(); got != want {
			t.Errorf("printed %q", got)
		}
	})
}

// The frames of a length framing may span lines; what is printed with --json may not.
func TestListenInLengthFraming(t *testing.T) {
	framing, err := wire.ParseFraming("length", "4")
	if err != nil {
		t.Fatal(err)
	}
	listenTo(t, func(l *listenTest) { l.b.count, l.b.whole, l.b.framing = 1, true, framing }, func(l *listenTest) {
		conn := l.accept().conn
		read := func() string {
			head := make([]byte, 4)
			if _, err := io.ReadFull(conn, head); err != nil {
				t.Fatal(err)
			}
			text := make([]byte, head[3])
			if _, err := io.ReadFull(conn, text); err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		write := func(text string) {
			frame, err := framing.Append(nil, []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			for _, b := range frame { // each byte alone
				if _, err := conn.Write([]byte{b}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if hello := read(); hello != `{"op":"hello","v":1,"id":"01"}` {
			t.Errorf("hello %s", hello)
		}
		write(`{"op":"welcome"}`)
		write("{\"op\":\"message\",\"mid\":\"1\",\"body\":{\r\n\t\"a\": 1.0}}")
		if ack := read(); ack != `{"op":"ack","mid":"1"}` {
			t.Errorf("ack %s", ack)
		}
		if goodbye := read(); goodbye != `{"op":"goodbye"}` {
			t.Errorf("goodbye %s", goodbye)
		}
		if err := l.end(); err != nil {
			t.Error(err)
		}
		if got := l.out.String(); got != `{"op":"message","mid":"1","body":{"a":1.0}}`+"\n" {
			t.Errorf("printed %q", got)
		}
	})
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, errors.New("no space left") }

// What could not be printed must stay unacknowledged, so that the relay keeps it.
func TestListenAcknowledgesOnlyWhatWasPrinted(t *testing.T) {
	listenTo(t, func(l *listenTest) { l.b.out = brokenWriter{} }, func(l *listenTest) {
		r := l.welcome()
		r.send(`{"op":"message","mid":"1","body":1}`)
		if err := l.end(); err == nil || !strings.Contains(err.Error(), "no space left") {
			t.Errorf("ended with %v", err)
		}
		if rest, _ := io.ReadAll(r.r); len(rest) > 0 {
			t.Errorf("the relay got %q", rest)
		}
	})
}

func TestListenAnswersPings(t *testing.T) {
	listenTo(t, nil, func(l *listenTest) {
		r := l.welcome()
		for range 10 { // longer than it bears silence
			time.Sleep(30 * time.Second)
			r.send(`{"op":"ping"}`)
			r.expect("pong")
		}
		l.wantStatus("listening as 01 on 127.0.0.1:9000\n")
		l.stop()
		r.expect("goodbye")
		if err := l.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestListenNoticesSilence(t *testing.T) {
	listenTo(t, nil, func(l *listenTest) {
		l.welcome()
		l.welcome() // 45 s and a second later
		l.wantStatus("listening as 01 on 127.0.0.1:9000\n" +
			"connection lost: nothing came for 45s; trying again in 1.0s\n" +
			"listening as 01 on 127.0.0.1:9000\n")
		if got := time.Since(l.begun); got != 46*time.Second {
			t.Errorf("came back after %s", got)
		}
		l.accept().expect("hello") // but not welcomed
		l.accept()
		if got := time.Since(l.begun); got != (46+46+15+2)*time.Second {
			t.Errorf("came back after %s", got)
		}
	})
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

// Half a message is no message.
func TestListenCutOffMessage(t *testing.T) {
	listenTo(t, nil, func(l *listenTest) {
		r := l.welcome()
		if _, err := io.WriteString(r.conn, `{"op":"message","mid":"1","body":1}`); err != nil { // no LF
			t.Fatal(err)
		}
		r.hangUp()
		r = l.welcome()
		l.wantStatus("listening as 01 on 127.0.0.1:9000\n" +
			"connection lost: the relay closed it in the middle of a frame; trying again in 1.0s\n" +
			"listening as 01 on 127.0.0.1:9000\n")
		r.message("1", `"body":1`)
		synctest.Wait()
		if got := l.out.String(); got != "1\n" {
			t.Errorf("printed %q", got)
		}
	})
}

func TestI10_ListenBoundsFrames(t *testing.T) {
	for _, test := range []struct {
		welcome string
		limit   int
	}{
		{"", maxControl},
		{`{"op":"welcome","heartbeat":30,"max":1}`, maxControl},
		{`{"op":"welcome","heartbeat":30,"max":100000}`, 100000},
	} {
		listenTo(t, nil, func(l *listenTest) {
			r := l.accept()
			r.expect("hello")
			if test.welcome != "" {
				r.send(test.welcome)
				largest := `{"op":"message","mid":"1","body":"`
				largest += strings.Repeat("x", test.limit-len(largest)-2) + `"}`
				r.send(largest)
				r.expect("ack")
			}
			if n, err := io.Copy(r.conn, neverEnding{}); err == nil || n > int64(2*test.limit)+1<<16 {
				t.Errorf("it took %d bytes of a frame, %v", n, err)
			}
			want := fmt.Sprintf("larger than %d bytes", test.limit)
			if err := l.end(); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("ended with %v, want %q", err, want)
			}
		})
	}
}

// What a welcome says is believed within bounds.
func TestI10_ListenBoundsTheWelcome(t *testing.T) {
	for _, test := range []struct {
		heartbeat, max int
		silence        time.Duration
		limit          int
	}{
		{30, 1 << 20, 45 * time.Second, 1 << 20},
		{0, 0, 20 * time.Second, 64 << 10},
		{-1, -1, 20 * time.Second, 64 << 10},
		{math.MaxInt, math.MaxInt, 255 * time.Second, 1 << 30},
	} {
		b := newBackEnd()
		b.status = io.Discard
		s := newListening(t.Context(), b, nil)
		s.welcome(test.heartbeat, test.max)
		if s.silence != test.silence || s.limit != test.limit {
			t.Errorf("heartbeat %d, max %d: bears %s of silence and frames of %d bytes", test.heartbeat, test.max, s.silence, s.limit)
		}
	}
}

type neverEnding struct{}

func (neverEnding) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
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

// Over real TCP: messages that nobody reads any more must not make the client's system reset the
// connection, which would take the last acknowledgement and the goodbye with it.
func TestListenLeavesInOrder(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		r := bufio.NewReader(conn)
		_, _ = r.ReadString('\n')
		messages := `{"op":"welcome"}` + "\n" + strings.Repeat(`{"op":"message","mid":"1","body":"`+strings.Repeat("x", 1000)+`"}`+"\n", 20)
		_, _ = io.WriteString(conn, messages)
		rest, err := io.ReadAll(r)
		if err != nil {
			rest = append(rest, err.Error()...)
		}
		got <- string(rest)
	}()
	t.Setenv(tokenVariable, "")
	out, status, err := runCommand(t, "", "listen", "01", "--address", ln.Addr().String(), "--count", "2", "--json")
	if err != nil || strings.Count(out, "\n") != 2 || status != "listening as 01 on "+ln.Addr().String()+"\n" {
		t.Errorf("listen: %v\n%s\n%s", err, out, status)
	}
	for line := range strings.Lines(out) {
		if !json.Valid([]byte(line)) {
			t.Errorf("printed %q", line)
		}
	}
	want := strings.Repeat(`{"op":"ack","mid":"1"}`+"\n", 2) + `{"op":"goodbye"}` + "\n"
	if rest := <-got; rest != want {
		t.Errorf("the relay read %q", rest)
	}
}
