//go:build !linux

package l4relay

import (
	"errors"
	"net"
	"time"
)

// setUserTimeout does nothing where the kernel has no such setting. The heartbeat of the JSON protocol
// and the write deadline still find a peer that vanished.
func setUserTimeout(*net.TCPConn, time.Duration) {}

// unsent cannot be asked here: a message counts as written when this machine's kernel has taken it.
func unsent(*net.TCPConn) (int, error) { return 0, errors.ErrUnsupported }
