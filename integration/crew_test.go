//go:build unix

package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"
)

// crew is the publishers and clients of a run, one of each for a destination. They go on whatever happens
// to the relay, as real ones do, and write down what they do.
type crew struct {
	t     *testing.T
	trace trace

	publishing sync.WaitGroup
	listening  sync.WaitGroup
	stopClient context.CancelFunc

	mu        sync.Mutex
	abandoned []net.Conn // by clients that vanished without a word
}

// vanishing says how often a client leaves in the middle of a message: one in so many. 0 is never.
type vanishing struct {
	close int // closes its connection
	hang  int // stops reading and never closes, as if its machine had lost power; and connects anew
}

// startCrew has count publishers post to one address, and clients connect to another. Publishers stop when
// ctx ends.
func startCrew(ctx context.Context, t *testing.T, post, tcp func(i int) string, count int, v vanishing) *crew {
	t.Helper()
	c := &crew{t: t}
	clients, stop := context.WithCancel(context.Background())
	c.stopClient = stop
	for i := range count {
		id := fmt.Sprintf("c%02d", i)
		c.publishing.Go(func() { c.publish(ctx, id, func() string { return post(i) }) })
		c.listening.Go(func() { c.listen(clients, id, func() string { return tcp(i) }, v) })
	}
	t.Cleanup(func() {
		stop()
		c.listening.Wait()
		for _, conn := range c.abandoned {
			conn.Close()
		}
	})
	return c
}

// publish posts one message after another, each until it is accepted, with a key, so that a post whose answer
// was lost is not stored twice.
func (c *crew) publish(ctx context.Context, id string, address func() string) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	for n := 0; ctx.Err() == nil; n++ {
		c.trace.add(sent, id, n)
		for try := 0; !c.post(client, address(), id, n); try++ {
			if try == 6000 {
				c.t.Errorf("message %d for %s was not accepted in 6000 tries", n, id)
				return
			}
			pauseFor(10 * time.Millisecond)
		}
		c.trace.add(accepted, id, n)
		pauseFor(rand.N(8 * time.Millisecond))
	}
}

// pauseFor is the pace of a client, not a wait for something to happen.
func pauseFor(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
}

func (c *crew) post(client *http.Client, address, id string, n int) bool {
	req, err := http.NewRequest(http.MethodPost, "http://"+address+"/pay/"+id, strings.NewReader(fmt.Sprintf(`{"n":%d}`, n)))
	if err != nil {
		c.t.Error(err)
		return false
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", fmt.Sprintf("%s-%d", id, n))
	resp, err := client.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	switch resp.StatusCode {
	case http.StatusAccepted:
		return true
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
	default:
		c.t.Errorf("a post was answered %s: %s", resp.Status, text)
	}
	return false
}

// listen holds one connection after another until ctx ends.
func (c *crew) listen(ctx context.Context, id string, address func() string, v vanishing) {
	for ctx.Err() == nil {
		c.session(ctx, id, address(), v)
		pauseFor(5 * time.Millisecond)
	}
}

func (c *crew) session(ctx context.Context, id, address string, v vanishing) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return
	}
	hung := false
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if stop(); !hung {
			conn.Close()
		}
	}()
	if _, err := fmt.Fprintf(conn, `{"op":"hello","v":1,"id":%q,"heartbeat":5}`+"\n", id); err != nil {
		return
	}
	in := bufio.NewScanner(conn)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		var m struct {
			Op   string
			MID  string
			Body struct{ N int }
		}
		if err := json.Unmarshal(in.Bytes(), &m); err != nil {
			c.t.Errorf("client %s got %q", id, in.Bytes())
			return
		}
		answer := ""
		switch m.Op {
		case "ping":
			answer = `{"op":"pong"}`
		case "message":
			c.trace.add(received, id, m.Body.N)
			if v.close > 0 && rand.N(v.close) == 0 {
				return
			}
			if v.hang > 0 && rand.N(v.hang) == 0 {
				hung = true
				c.mu.Lock()
				c.abandoned = append(c.abandoned, conn)
				c.mu.Unlock()
				return
			}
			answer = fmt.Sprintf(`{"op":"ack","mid":%q}`, m.MID)
		}
		if answer == "" {
			continue
		}
		if _, err := io.WriteString(conn, answer+"\n"); err != nil {
			return
		}
		if m.Op == "message" {
			c.trace.add(acked, id, m.Body.N)
		}
	}
}

// finish waits for the publishers, whose ctx has ended, and until all that was accepted is acknowledged, and
// returns what the trace shows.
func (c *crew) finish() findings {
	c.t.Helper()
	c.publishing.Wait()
	deadline := time.Now().Add(60 * time.Second)
	for c.trace.check().lost > 0 && time.Now().Before(deadline) {
		pauseFor(50 * time.Millisecond)
	}
	c.stopClient()
	c.listening.Wait()
	return c.trace.check()
}
