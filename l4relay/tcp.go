package l4relay

import (
	"net"
	"time"
)

// setKeepAlive makes the kernel ask an idle peer whether it is still there. A failure leaves the
// system's own, slower, settings in place.
func setKeepAlive(c *net.TCPConn, idle time.Duration) {
	_ = c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: idle, Interval: max(idle/3, time.Second), Count: 3})
}
