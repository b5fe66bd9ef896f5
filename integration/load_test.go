//go:build unix

package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load publishes to many sockets at a steady rate and keeps the books: what was accepted, what arrived,
// and in which order. Each destination has one sender, so its order is known (I3).
type load struct {
	t            *testing.T
	destinations []*destination

	accepted atomic.Int64
	refused  atomic.Int64 // answers 503
	retried  atomic.Int64 // posts sent again after a connection error
	dropped  atomic.Int64 // sockets that ended
}

// destination is one ID with its socket and its sender.
type destination struct {
	id       string
	url      string
	sock     *socket
	mu       sync.Mutex
	accepted []int // in the order of the answers
	arrived  []int
	at       map[int]time.Time // when each was accepted
	unsure   map[int]bool      // sent more than once, so it may arrive more than once
}

// startLoad connects count sockets, spread over the nodes. Socket i is on one node and its publisher
// posts to another, if there are several.
func startLoad(t *testing.T, channel string, count int, nodes ...*node) *load {
	t.Helper()
	l := &load{t: t}
	for i := range count {
		n, from := nodes[i%len(nodes)], nodes[(i+i/len(nodes))%len(nodes)]
		d := &destination{
			id: fmt.Sprintf("d%03d", i), at: make(map[int]time.Time), unsure: make(map[int]bool),
		}
		d.url = "http://" + from.http + "/pay/" + d.id
		d.sock = connect(t, n.tcp, d.id, d.arrive)
		l.destinations = append(l.destinations, d)
	}
	for i, n := range nodes {
		share := count / len(nodes)
		if i < count%len(nodes) {
			share++
		}
		n.awaitSessions(channel, share)
	}
	return l
}

func (d *destination) arrive(line string) {
	var v struct {
		N int `json:"n"`
	}
	if json.Unmarshal([]byte(line), &v) != nil {
		v.N = -1 // nobody sent this; check finds it
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.arrived = append(d.arrived, v.N)
}

// run publishes rate messages a second in all until ctx ends.
func (l *load) run(ctx context.Context, rate int) {
	transport := &http.Transport{MaxIdleConnsPerHost: len(l.destinations)}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	every := time.Duration(len(l.destinations)) * time.Second / time.Duration(rate)
	var wg sync.WaitGroup
	for i, d := range l.destinations {
		wg.Go(func() {
			// Senders do not all send at the same moment.
			first := time.NewTimer(every * time.Duration(i) / time.Duration(len(l.destinations)))
			defer first.Stop()
			select {
			case <-first.C:
			case <-ctx.Done():
				return
			}
			tick := time.NewTicker(every)
			defer tick.Stop()
			for n := 0; ; n++ {
				l.publish(client, d, n)
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
			}
		})
	}
	wg.Wait()
}

// publish posts one message, and posts it again after a connection error, as senders do.
func (l *load) publish(client *http.Client, d *destination, n int) {
	for try := range 20 {
		body := fmt.Appendf(nil, `{"n":%d}`, n)
		resp, err := client.Post(d.url, "application/json", bytes.NewReader(body))
		if err != nil {
			l.retried.Add(1)
			if try > 0 || !neverSent(err) {
				d.mu.Lock()
				d.unsure[n] = true
				d.mu.Unlock()
			}
			continue
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch resp.StatusCode {
		case http.StatusAccepted:
			d.mu.Lock()
			d.accepted = append(d.accepted, n)
			d.at[n] = time.Now()
			d.mu.Unlock()
			l.accepted.Add(1)
		case http.StatusServiceUnavailable:
			l.refused.Add(1)
			if bytes.Contains(text, []byte(`"unconfirmed"`)) { // all else was not published, for sure
				d.mu.Lock()
				d.unsure[n] = true
				d.mu.Unlock()
			}
		default:
			l.t.Errorf("a post was answered %s", resp.Status)
		}
		return
	}
	l.t.Errorf("a post failed 20 times in a row")
}

// neverSent reports whether a connection error came before anything could be sent.
func neverSent(err error) bool {
	var op *net.OpError
	return asOpError(err, &op) && op.Op == "dial"
}

// totals are the books of a whole run.
type totals struct {
	accepted, arrived, lost, doubled, invented, disordered int
	lostAt                                                 []time.Time
}

func (t totals) String() string {
	return fmt.Sprintf("accepted %d, arrived %d, lost %d, doubled %d, invented %d, out of order %d",
		t.accepted, t.arrived, t.lost, t.doubled, t.invented, t.disordered)
}

// settle waits until what was accepted has arrived, or nothing more comes for a while.
func (l *load) settle() totals {
	l.t.Helper()
	last, since := -1, time.Now()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range tick.C {
		sum := l.totals()
		if sum.lost == 0 {
			return sum
		}
		if sum.arrived != last {
			last, since = sum.arrived, time.Now()
		}
		if time.Since(since) > 3*time.Second {
			return sum
		}
	}
	panic("unreachable")
}

func (l *load) totals() (sum totals) {
	for _, d := range l.destinations {
		if !d.sock.open() {
			l.dropped.Add(1)
		}
		d.mu.Lock()
		sum.add(d)
		d.mu.Unlock()
	}
	return sum
}

// add checks one destination. Messages are numbered by their only sender, so what arrives must rise.
func (t *totals) add(d *destination) {
	t.accepted += len(d.accepted)
	t.arrived += len(d.arrived)
	seen := make(map[int]bool)
	sent := make(map[int]bool)
	for _, n := range d.accepted {
		sent[n] = true
	}
	highest := -1
	for _, n := range d.arrived {
		switch {
		case seen[n] && !d.unsure[n]:
			t.doubled++
		case seen[n]:
		case !sent[n] && !d.unsure[n]:
			t.invented++
		case n < highest:
			t.disordered++
		}
		seen[n] = true
		highest = max(highest, n)
	}
	for _, n := range d.accepted {
		if !seen[n] {
			t.lost++
			t.lostAt = append(t.lostAt, d.at[n])
		}
	}
}

// The books themselves must be able to find what they look for.
func TestLoadFindsPlantedFaults(t *testing.T) {
	books := func(accepted, arrived []int) totals {
		var sum totals
		sum.add(&destination{accepted: accepted, arrived: arrived, unsure: map[int]bool{9: true}})
		sum.lostAt = nil
		return sum
	}
	for _, c := range []struct {
		name              string
		accepted, arrived []int
		want              string
	}{
		{"clean", []int{0, 1, 2}, []int{0, 1, 2}, "accepted 3, arrived 3, lost 0, doubled 0, invented 0, out of order 0"},
		{"loss", []int{0, 1, 2}, []int{0, 2}, "accepted 3, arrived 2, lost 1, doubled 0, invented 0, out of order 0"},
		{"order", []int{0, 1, 2}, []int{0, 2, 1}, "accepted 3, arrived 3, lost 0, doubled 0, invented 0, out of order 1"},
		{"double", []int{0, 1}, []int{0, 0, 1}, "accepted 2, arrived 3, lost 0, doubled 1, invented 0, out of order 0"},
		{"invention", []int{0}, []int{0, 7}, "accepted 1, arrived 2, lost 0, doubled 0, invented 1, out of order 0"},
		{"sent twice", []int{0, 9}, []int{0, 9, 9}, "accepted 2, arrived 3, lost 0, doubled 0, invented 0, out of order 0"},
	} {
		if got := books(c.accepted, c.arrived).String(); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}
