//go:build !linux

package l4relay

import (
	"net"
	"time"
)

// setUserTimeout does nothing where the kernel has no such setting. The heartbeat of the JSON protocol
// and the write deadline still find a peer that vanished.
func setUserTimeout(*net.TCPConn, time.Duration) {}
