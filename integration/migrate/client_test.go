//go:build unix

package migrate

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"time"
)

// message is what a back end gets.
type message struct {
	Op, MID, Reason string
	Attempt         int
	Body            struct{ Box, N int }
}

// backend is a back end that speaks JSON.
type backend struct {
	conn net.Conn
	in   *bufio.Scanner
}

func connect(addr, id string, window int) (*backend, error) {
	conn, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		return nil, err
	}
	_ = conn.SetDeadline(time.Now().Add(patience))
	b := &backend{conn: conn, in: bufio.NewScanner(conn)}
	if err := b.say(`{"op":"hello","v":1,"id":%q,"window":%d}`, id, window); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return b, nil
}

func (b *backend) say(format string, args ...any) error {
	_, err := fmt.Fprintf(b.conn, format+"\n", args...)
	return err
}

// next returns the next message.
func (b *backend) next() (m message, err error) {
	for b.in.Scan() {
		m = message{}
		if err := json.Unmarshal(b.in.Bytes(), &m); err != nil {
			return m, fmt.Errorf("%w: %s", err, b.in.Text())
		}
		switch m.Op {
		case "message":
			return m, nil
		case "ping":
			_ = b.say(`{"op":"pong"}`)
		case "error", "goodbye":
			return m, fmt.Errorf("%s: %s", m.Op, b.in.Text())
		}
	}
	if err := b.in.Err(); err != nil {
		return m, err
	}
	return m, fmt.Errorf("the socket was closed")
}
