package redistest

import (
	"strings"
	"testing"
)

// A server can be where others than 127.0.0.1 reach it. Elsewhere than on Linux, loopback has no second address.
func TestBind(t *testing.T) {
	s := Start(t, "--bind", "127.0.0.2", "--protected-mode", "no")
	if !strings.HasPrefix(s.Addr(), "127.0.0.2:") {
		t.Errorf("it is at %s", s.Addr())
	}
	s.CLI("PING")
	s.Kill()
	s.Restart()
	s.CLI("PING")
}
