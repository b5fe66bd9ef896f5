package redistest

import (
	"fmt"
	"runtime"
	"strings"
	"testing"
)

func TestStart(t *testing.T) {
	one, two := Start(t), Start(t)
	if one.Addr() == two.Addr() || one.Dir() == two.Dir() {
		t.Errorf("two servers share %s or %s", one.Addr(), one.Dir())
	}
	one.CLI("SET", "k", "v")
	if got := one.CLI("GET", "k"); got != "v" {
		t.Errorf("GET: %q", got)
	}
	if got := two.CLI("GET", "k"); got != "" {
		t.Errorf("GET on the other: %q", got)
	}
	if !strings.HasSuffix(one.Addr(), ":"+one.Port()) {
		t.Errorf("address %s, port %s", one.Addr(), one.Port())
	}
}

func TestRestartKeepsThePortAndTheFiles(t *testing.T) {
	s := Reserve(t, "--appendonly", "yes", "--appendfsync", "always")
	addr := s.Addr()
	s.Restart()
	s.CLI("SET", "k", "v")
	for _, end := range []func(){s.Stop, s.Kill} {
		end()
		end() // does nothing
		s.Restart()
		if got := s.CLI("GET", "k"); got != "v" || s.Addr() != addr {
			t.Errorf("after a restart, k is %q at %s", got, s.Addr())
		}
	}
}

func TestPauseAndResume(t *testing.T) {
	s := Start(t)
	s.Pause()
	if s.answers() {
		t.Error("a server that stands still answered")
	}
	s.Resume()
	s.CLI("PING")
	s.Pause() // and is ended all the same
}

// A port that somebody took meanwhile is not taken for the server's.
func TestTakenPort(t *testing.T) {
	s := Start(t)
	other := Reserve(t)
	other.addr = s.addr
	if err := other.start(); err == nil || !strings.Contains(err.Error(), "Address already in use") {
		t.Errorf("started on a port that is taken: %v", err)
	}
	s.CLI("PING")
}

func TestArguments(t *testing.T) {
	s := Start(t, "--requirepass", "secret", "--dbfilename", "p{port}.rdb")
	if got := s.CLI("-a", "secret", "--no-auth-warning", "CONFIG", "GET", "dbfilename"); got != "dbfilename\np"+s.Port()+".rdb" {
		t.Errorf("got %q", got)
	}
}

// Tests without the program fail in one line that says what to do.
func TestMissingProgram(t *testing.T) {
	t.Setenv("REDIS_SERVER", "")
	t.Setenv("PATH", t.TempDir())
	f := &fatal{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Start(f)
	}()
	<-done
	if !strings.HasPrefix(f.text, "redis-server not found") || !strings.Contains(f.text, "make deps") || strings.Contains(f.text, "\n") {
		t.Errorf("it ends with %q", f.text)
	}
}

// fatal is a test that may fail.
type fatal struct {
	testing.TB
	text string
}

func (f *fatal) Helper() {}

func (f *fatal) Fatal(args ...any) {
	f.text = fmt.Sprint(args...)
	runtime.Goexit()
}
