package caddyrelay

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyrelay/relay/internal/wire"
)

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
