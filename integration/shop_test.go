//go:build unix

package integration

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// shop is a destination: its sender, and its back end, which answers each line, and can move.
type shop struct {
	t    *testing.T
	id   string
	post atomic.Pointer[[]string] // where its sender posts; the others are tried when one cannot be reached

	// Owned by the sender's goroutine while there is one.
	next int

	mu       sync.Mutex
	accepted map[int]bool
	unsure   map[int]bool // posted, and no answer came
	arrived  map[int]int  // how often
	highest  int
	late     int // first arrivals behind a later message
	again    int // posts that were made again

	now, before *desk
}

func newShop(t *testing.T, id, address string) *shop {
	s := &shop{t: t, id: id, accepted: make(map[int]bool), unsure: make(map[int]bool), arrived: make(map[int]int)}
	s.now = s.open(address)
	t.Cleanup(func() {
		s.now.end()
		if s.before != nil {
			s.before.end()
		}
	})
	return s
}

// desk is a back end's connection to one address, made again when it ends.
type desk struct {
	stay  atomic.Bool  // connect again
	first atomic.Int64 // message that came, or -1
	last  atomic.Int64
	stop  context.CancelFunc
	done  chan struct{}
}

func (d *desk) end() {
	d.stop()
	<-d.done
}

func (s *shop) open(address string) *desk {
	ctx, stop := context.WithCancel(context.Background())
	d := &desk{stop: stop, done: make(chan struct{})}
	d.stay.Store(true)
	d.first.Store(-1)
	d.last.Store(-1)
	go func() {
		defer close(d.done)
		for ctx.Err() == nil && d.stay.Load() {
			s.sit(ctx, d, address)
			pauseFor(2 * time.Millisecond)
		}
	}()
	return d
}

func (s *shop) sit(ctx context.Context, d *desk, address string) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", address)
	if err != nil {
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(conn, s.id+"\n"); err != nil {
		return
	}
	in := bufio.NewScanner(conn)
	for in.Scan() {
		if strings.HasPrefix(in.Text(), "error 503 ") {
			return // the node is leaving, or is not there yet: connect again
		}
		var body struct{ N *int }
		if err := json.Unmarshal(in.Bytes(), &body); err != nil || body.N == nil {
			s.t.Errorf("the back end %s got %q", s.id, in.Bytes())
			return
		}
		s.mu.Lock()
		if s.arrived[*body.N]++; s.arrived[*body.N] == 1 && *body.N < s.highest {
			s.late++
		}
		s.highest = max(s.highest, *body.N)
		s.mu.Unlock()
		d.first.CompareAndSwap(-1, int64(*body.N))
		d.last.Store(int64(*body.N))
		if _, err := io.WriteString(conn, "ok\n"); err != nil {
			return
		}
	}
}

// move connects to another address, and leaves the old one once what came first on the new one has come there too, or
// the relay has ended it, as somebody else has the ID now.
func (s *shop) move(address string) {
	s.before = s.now
	s.before.stay.Store(false)
	s.now = s.open(address)
}

// settled waits until move is over. There must be load.
func (s *shop) settled() {
	s.t.Helper()
	waitFor(s.t, "the back end "+s.id+" to have moved", func() bool {
		first := s.now.first.Load()
		select {
		case <-s.before.done:
			return first >= 0
		default:
			return first >= 0 && s.before.last.Load() >= first
		}
	})
	s.before.end()
	s.before = nil
}

// shopLoad is senders at work for a step, and the books of it.
type shopLoad struct {
	shops   []*shop
	from    []int // each one's first message of the step
	doubled int   // before it
	again   int
	late    int
	ctx     context.Context
	cancel  context.CancelFunc
	senders sync.WaitGroup
}

// startShops has senders post. With a send that is not nil they do that instead.
func startShops(shops []*shop, send func(s *shop)) *shopLoad {
	l := &shopLoad{shops: shops}
	for _, s := range shops {
		l.from = append(l.from, s.next)
	}
	before := l.count(true)
	l.doubled, l.again, l.late = before.doubled, before.again, before.late
	l.ctx, l.cancel = context.WithCancel(context.Background())
	for _, s := range shops {
		l.senders.Go(func() {
			client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 2}}
			defer client.CloseIdleConnections()
			for ; l.ctx.Err() == nil; s.next++ {
				if send != nil {
					send(s)
				} else {
					s.send(client)
				}
				pauseFor(20 * time.Millisecond)
			}
		})
	}
	return l
}

func (l *shopLoad) stop() {
	l.cancel()
	l.senders.Wait()
}

// send posts one message until it is accepted.
func (s *shop) send(client *http.Client) {
	for try := range 1000 {
		where := *s.post.Load()
		resp, err := client.Post("http://"+where[try%len(where)]+"/pay/"+s.id, "application/json", strings.NewReader(fmt.Sprintf(`{"n":%d}`, s.next)))
		text := []byte(nil)
		if err == nil {
			text, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && string(text) == "success" {
				s.sent()
				return
			}
		}
		s.mu.Lock()
		s.again++
		s.unsure[s.next] = true
		s.mu.Unlock()
		if err == nil && resp.StatusCode < 500 {
			s.t.Errorf("a post was answered %s: %s", resp.Status, text)
			return
		}
		pauseFor(10 * time.Millisecond)
	}
	s.t.Errorf("a post for %s was not accepted in 1000 tries", s.id)
}

// sent notes that the message under way was accepted.
func (s *shop) sent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted[s.next] = true
}

// shopSum is what became of the messages of a step.
type shopSum struct{ sent, delivered, lost, doubled, invented, again, late int }

// count counts; all says that it is not for a step.
func (l *shopLoad) count(all bool) (sum shopSum) {
	for i, s := range l.shops {
		s.mu.Lock()
		for n, times := range s.arrived {
			sum.doubled += times - 1
			if !s.accepted[n] && !s.unsure[n] && !all {
				sum.invented++
			}
		}
		for n := range s.accepted {
			if n < l.from[i] {
				continue
			}
			sum.sent++
			if s.arrived[n] > 0 {
				sum.delivered++
			} else {
				sum.lost++
			}
		}
		sum.again += s.again
		sum.late += s.late
		s.mu.Unlock()
	}
	sum.doubled -= l.doubled
	sum.again -= l.again
	sum.late -= l.late
	return sum
}

// settle waits until all has arrived, for a bounded time.
func (l *shopLoad) settle() shopSum {
	deadline := time.Now().Add(8 * time.Second)
	for l.count(false).lost > 0 && time.Now().Before(deadline) {
		pauseFor(10 * time.Millisecond)
	}
	return l.count(false)
}

// heardBy returns how many of the step's messages a subscriber.js has printed.
func (l *shopLoad) heardBy(o *outputOf) int {
	first := make(map[string]int)
	for i, s := range l.shops {
		first[s.id] = l.from[i]
	}
	heard := make(map[string]bool)
	for line := range strings.Lines(o.String()) {
		var v []json.RawMessage
		var id string
		var msg struct{ N int }
		if json.Unmarshal([]byte(line), &v) != nil || len(v) != 3 || json.Unmarshal(v[1], &id) != nil || json.Unmarshal(v[2], &msg) != nil {
			continue
		}
		if msg.N >= first[id] {
			heard[fmt.Sprint(id, " ", msg.N)] = true
		}
	}
	return len(heard)
}
