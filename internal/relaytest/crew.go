package relaytest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Plan says who takes part in a run, and how they behave.
type Plan struct {
	// Destinations is how many there are. Each has one publisher and one client.
	Destinations int

	// Name begins the IDs of the destinations, so that several runs on one relay don't meet. Default c.
	Name string

	// Post and Dial return the address at which the publisher and the client of the i-th destination try next. They are
	// asked for each try, by many goroutines.
	Post, Dial func(i int) string

	// PostFailed is told of the address of a post that was not accepted. Default: nobody is.
	PostFailed func(address string)

	// Pace bounds the time between two messages of a publisher, which is random. Default 8ms.
	Pace time.Duration

	// Work bounds the time that a client takes for a message before it acknowledges it, which is random. Default: none.
	Work time.Duration

	// PostTimeout is how long a publisher waits for an answer until it tries again. Default 10s.
	PostTimeout time.Duration

	// Patience is how long a client stays on a socket that says nothing, though the client pings it four times in
	// that time. Default: for ever.
	Patience time.Duration

	// Grace is how long Finish waits for what was accepted to be acknowledged. Default 60s.
	Grace time.Duration

	Vanishing Vanishing
}

// Vanishing says how often a client leaves in the middle of a message: one in so many. 0 is never.
type Vanishing struct {
	Close int // closes its connection
	Hang  int // stops reading and never closes, as if its machine had lost power; and connects anew
}

// Crew is the publishers and clients of a run, one of each for a destination. They go on whatever happens
// to the relay, as real ones do, and write down what they do.
type Crew struct {
	t     testing.TB
	plan  Plan
	trace trace

	publishing sync.WaitGroup
	listening  sync.WaitGroup
	stopClient context.CancelFunc

	mu        sync.Mutex
	abandoned []net.Conn        // by clients that vanished without a word
	connected map[string]string // where a client is registered, by destination
	endings   []Ending
	levels    map[string]int // how many answers named a level of durability
}

// Ending is a registered socket that ended, though its client did not want that.
type Ending struct {
	Destination, Address string
	Why                  string // the code of the goodbye, or what the client saw
	At                   time.Time
}

// Start begins a run. Publishers stop when ctx ends; see [Crew.Finish].
func Start(ctx context.Context, t testing.TB, plan Plan) *Crew {
	t.Helper()
	plan.Name = cmp.Or(plan.Name, "c")
	plan.Pace = cmp.Or(plan.Pace, 8*time.Millisecond)
	plan.Grace = cmp.Or(plan.Grace, 60*time.Second)
	plan.PostTimeout = cmp.Or(plan.PostTimeout, 10*time.Second)
	if plan.PostFailed == nil {
		plan.PostFailed = func(string) {}
	}
	c := &Crew{t: t, plan: plan, connected: make(map[string]string), levels: make(map[string]int)}
	clients, stop := context.WithCancel(context.Background())
	c.stopClient = stop
	for i, id := range c.Destinations() {
		c.publishing.Go(func() { c.publish(ctx, id, func() string { return plan.Post(i) }) })
		c.listening.Go(func() { c.listen(clients, id, func() string { return plan.Dial(i) }) })
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

// Destinations returns their IDs.
func (c *Crew) Destinations() (all []string) {
	for i := range c.plan.Destinations {
		all = append(all, fmt.Sprintf("%s%02d", c.plan.Name, i))
	}
	return all
}

// Connected returns at which address each destination is registered at the moment. One that is not is missing.
func (c *Crew) Connected() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.connected)
}

// Endings returns the sockets that have ended.
func (c *Crew) Endings() []Ending {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.endings)
}

// Durability lists the levels that answers have named, joined with commas.
func (c *Crew) Durability() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(c.levels)), ", ")
}

// Silence returns the longest time, from a moment on, in which one of these destinations got no new message.
func (c *Crew) Silence(from time.Time, destinations []string) time.Duration {
	return c.trace.silence(from, destinations)
}

// HeardSince reports whether each destination has got a message that was accepted after a moment.
func (c *Crew) HeardSince(from time.Time) bool {
	return len(c.trace.heardSince(from)) == c.plan.Destinations
}

// Missing lists messages that were accepted and that no client has acknowledged, as destination/number.
func (c *Crew) Missing() []string { return c.trace.missing() }

// History lists what was written down of a destination's messages from one number to another.
func (c *Crew) History(destination string, first, last int) []string {
	return c.trace.history(destination, first, last)
}

// publish posts one message after another, each until it is accepted, with a key, so that a post whose answer
// was lost is not stored twice.
func (c *Crew) publish(ctx context.Context, id string, address func() string) {
	client := &http.Client{Timeout: c.plan.PostTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	for n := 0; ctx.Err() == nil; n++ {
		c.trace.add(sent, id, n)
		for try := 0; ; try++ {
			to := address()
			if c.post(client, to, id, n) {
				break
			}
			c.plan.PostFailed(to)
			if try == 6000 {
				c.t.Errorf("message %d for %s was not accepted in 6000 tries", n, id)
				return
			}
			Pause(10 * time.Millisecond)
		}
		c.trace.add(accepted, id, n)
		Pause(rand.N(c.plan.Pace))
	}
}

// Pause is the pace of somebody who takes part in a run, not a wait for something to happen.
func Pause(d time.Duration) {
	timer := time.NewTimer(d)
	<-timer.C
}

func (c *Crew) post(client *http.Client, address, id string, n int) bool {
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
		var answer struct{ Durability string }
		if err := json.Unmarshal(text, &answer); err != nil {
			c.t.Errorf("a post was answered %q: %v", text, err)
		}
		c.mu.Lock()
		c.levels[answer.Durability]++
		c.mu.Unlock()
		return true
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
	default:
		c.t.Errorf("a post was answered %s: %s", resp.Status, text)
	}
	return false
}

// Finish waits for the publishers, whose ctx has ended, and until all that was accepted is acknowledged, and
// returns what the trace shows.
func (c *Crew) Finish() Findings {
	c.t.Helper()
	c.publishing.Wait()
	deadline := time.Now().Add(c.plan.Grace)
	for c.trace.check().Lost > 0 && time.Now().Before(deadline) {
		Pause(50 * time.Millisecond)
	}
	c.stopClient()
	c.listening.Wait()
	return c.trace.check()
}
