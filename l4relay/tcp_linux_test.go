package l4relay

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTCPSettings(t *testing.T) {
	_, server := pair(t)
	setKeepAlive(server, 45*time.Second)
	setUserTimeout(server, 12*time.Second)
	raw, err := server.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct{ option, want int }{
		"TCP_USER_TIMEOUT": {unix.TCP_USER_TIMEOUT, 12000},
		"TCP_KEEPIDLE":     {unix.TCP_KEEPIDLE, 45},
		"TCP_KEEPINTVL":    {unix.TCP_KEEPINTVL, 15},
		"TCP_KEEPCNT":      {unix.TCP_KEEPCNT, 3},
	} {
		var got int
		var optErr error
		err := raw.Control(func(fd uintptr) { got, optErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, c.option) })
		if err != nil || optErr != nil || got != c.want {
			t.Errorf("%s is %d, want %d (%v, %v)", name, got, c.want, err, optErr)
		}
	}
}
