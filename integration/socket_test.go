//go:build unix

package integration

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// socket is a back end: it registers and collects the lines that come.
type socket struct {
	t    *testing.T
	conn net.Conn

	mu    sync.Mutex
	lines []string
	err   error // of the read that ended it
	ended chan struct{}
}

// connect opens a socket and sends its first frame, in line framing. onLine is told of each line.
func connect(t *testing.T, addr, hello string, onLine func(string)) *socket {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, hello+"\n"); err != nil {
		t.Fatal(err)
	}
	s := &socket{t: t, conn: conn, ended: make(chan struct{})}
	t.Cleanup(func() { conn.Close() })
	go func() {
		defer close(s.ended)
		r := bufio.NewReaderSize(conn, 1<<16)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				s.mu.Lock()
				s.err = err
				s.mu.Unlock()
				return
			}
			line = strings.TrimSuffix(line, "\n")
			if onLine != nil {
				onLine(line)
				continue
			}
			s.mu.Lock()
			s.lines = append(s.lines, line)
			s.mu.Unlock()
		}
	}()
	return s
}

// connectJSON opens a socket that speaks the JSON protocol, and waits for its welcome.
func connectJSON(t *testing.T, addr, id string) *socket {
	t.Helper()
	s := connect(t, addr, `{"op":"hello","v":1,"id":"`+id+`"}`, nil)
	s.await("a welcome", func(lines []string) bool { return len(lines) > 0 && strings.Contains(lines[0], `"welcome"`) })
	return s
}

func (s *socket) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.lines...)
}

func (s *socket) await(what string, ok func(lines []string) bool) {
	s.t.Helper()
	waitFor(s.t, what, func() bool { return ok(s.got()) })
}

// awaitLine waits for a line that contains text, and returns it.
func (s *socket) awaitLine(text string) (found string) {
	s.t.Helper()
	waitFor(s.t, "a line with "+text, func() bool {
		for _, l := range s.got() {
			if strings.Contains(l, text) {
				found = l
				return true
			}
		}
		return false
	})
	return found
}

// awaitEnd waits until the relay has closed the socket, in order and not by a reset.
func (s *socket) awaitEnd() {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(30 * time.Second):
		s.t.Fatal("the relay did not close the socket")
	}
	if !errors.Is(s.err, io.EOF) {
		s.t.Errorf("the socket ended with %v, want the end of the stream", s.err)
	}
}

// open reports whether the socket has not ended.
func (s *socket) open() bool {
	select {
	case <-s.ended:
		return false
	default:
		return true
	}
}

// object decodes a line.
func object(t *testing.T, line string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(line), &v); err != nil {
		t.Fatalf("not a JSON object: %q", line)
	}
	return v
}
