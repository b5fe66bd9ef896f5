package relaytest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"time"
)

// frame is what a client understands of what the relay says.
type frame struct {
	Op    string
	MID   string
	Body  struct{ N int }
	Code  json.RawMessage // a string in goodbye, a number in error
	After int64           `json:"after_ms"`
}

// listen holds one connection after another until ctx ends.
func (c *Crew) listen(ctx context.Context, id string, address func() string) {
	for ctx.Err() == nil {
		after := c.session(ctx, id, address())
		// Real clients do not come back all at the same moment.
		Pause(5*time.Millisecond + rand.N(10*time.Millisecond) + after)
	}
}

// session holds one connection to its end. It returns how long the relay has asked the client to stay away.
func (c *Crew) session(ctx context.Context, id, address string) (after time.Duration) {
	conn, err := (&net.Dialer{Timeout: 2 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return 0
	}
	s := &session{crew: c, id: id, address: address, conn: conn, done: make(chan struct{})}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		close(s.done)
		if stop(); !s.hung {
			_ = conn.Close()
		}
		if s.welcomed {
			c.ended(Ending{Destination: id, Address: address, Why: s.why, At: time.Now()}, ctx.Err() == nil && !s.vanished)
		}
	}()
	s.alive(ctx)
	if _, err := fmt.Fprintf(conn, `{"op":"hello","v":1,"id":%q,"heartbeat":5}`+"\n", id); err != nil {
		return 0
	}
	if c.plan.Patience > 0 {
		go s.ping(c.plan.Patience / 4)
	}
	in := bufio.NewScanner(conn)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		s.alive(ctx)
		var f frame
		if err := json.Unmarshal(in.Bytes(), &f); err != nil {
			c.t.Errorf("client %s got %q", id, in.Bytes())
			return 0
		}
		if f.Op == "goodbye" || f.Op == "error" {
			s.why = string(f.Code)
			return time.Duration(f.After) * time.Millisecond
		}
		if !s.take(f) {
			return 0
		}
	}
	s.why = "it was closed"
	if err := in.Err(); errors.Is(err, os.ErrDeadlineExceeded) {
		s.why = "it was silent"
	} else if err != nil {
		s.why = err.Error()
	}
	return 0
}

// ended notes that a client has no socket any more, and that it had not wished for that.
func (c *Crew) ended(e Ending, unwanted bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.connected, e.Destination)
	if unwanted {
		c.endings = append(c.endings, e)
	}
}

// session is one connection of a client.
type session struct {
	crew        *Crew
	id, address string
	conn        net.Conn
	done        chan struct{}
	welcomed    bool
	vanished    bool // as Vanishing says
	hung        bool
	why         string
}

// alive gives the relay time until it must have said something more.
func (s *session) alive(ctx context.Context) {
	if p := s.crew.plan.Patience; p > 0 && ctx.Err() == nil {
		_ = s.conn.SetReadDeadline(time.Now().Add(p))
		if ctx.Err() != nil { // it has ended in between, and its deadline was overwritten
			_ = s.conn.SetDeadline(time.Unix(1, 0))
		}
	}
}

// ping has a relay that lives say something.
func (s *session) ping(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		if s.say(`{"op":"ping"}`) != nil {
			return
		}
	}
}

// say writes a frame.
func (s *session) say(frame string) error {
	if p := s.crew.plan.Patience; p > 0 {
		_ = s.conn.SetWriteDeadline(time.Now().Add(p))
	}
	_, err := io.WriteString(s.conn, frame+"\n")
	return err
}

// take does what a frame asks for. It reports whether the connection is still good.
func (s *session) take(f frame) bool {
	answer := ""
	switch f.Op {
	case "welcome":
		s.welcomed = true
		s.crew.mu.Lock()
		s.crew.connected[s.id] = s.address
		s.crew.mu.Unlock()
	case "ping":
		answer = `{"op":"pong"}`
	case "message":
		s.crew.trace.add(received, s.id, f.Body.N)
		if s.vanish() {
			return false
		}
		if work := s.crew.plan.Work; work > 0 {
			Pause(rand.N(work))
		}
		answer = fmt.Sprintf(`{"op":"ack","mid":%q}`, f.MID)
	}
	if answer == "" {
		return true
	}
	if err := s.say(answer); err != nil {
		s.why = err.Error()
		return false
	}
	if f.Op == "message" {
		s.crew.trace.add(acked, s.id, f.Body.N)
	}
	return true
}

// vanish reports whether the client leaves now, as the plan has it.
func (s *session) vanish() bool {
	v := s.crew.plan.Vanishing
	switch {
	case v.Close > 0 && rand.N(v.Close) == 0:
		s.vanished = true
	case v.Hang > 0 && rand.N(v.Hang) == 0:
		s.vanished, s.hung = true, true
		s.crew.mu.Lock()
		s.crew.abandoned = append(s.crew.abandoned, s.conn)
		s.crew.mu.Unlock()
	}
	return s.vanished
}
