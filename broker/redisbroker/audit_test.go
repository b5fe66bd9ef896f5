package redisbroker

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// audit recounts all that a store keeps of channel c, and compares it with what the scripts have counted.
func audit(t *testing.T, server *redistest.Server, b *Broker) {
	t.Helper()
	c := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer c.Close()
	ctx := timeout(t)
	audited := 0
	defer func() {
		if audited == 0 {
			t.Error("nothing was found to count")
		}
	}()
	for part := range partitions {
		var pending, bytes, records, dead int64
		unfinished := make(map[string]bool)
		lists, _ := c.Keys(ctx, strings.ReplaceAll(b.names.in(part, "q:"), "{", "\\{")+"*").Result()
		for _, key := range lists {
			box := strings.TrimPrefix(key, b.names.in(part, "q:"))
			entries, _ := c.LRange(ctx, key, 0, -1).Result()
			n, size, holes, last := int64(0), int64(0), int64(0), uint64(0)
			for i, text := range entries {
				if text == "-" {
					holes++
					if i == 0 {
						t.Errorf("%s begins with a hole", key)
					}
					continue
				}
				e, err := parseEntry(text, "")
				if err != nil || e.Seq <= last {
					t.Errorf("%s: entry %d after %d: %v", key, e.Seq, last, err)
				}
				last = e.Seq
				n, size = n+1, size+int64(len(e.Message.Body))
				unfinished[e.Message.MID] = true
				due := c.ZScore(ctx, b.names.in(part, "due"), box).Val()
				if d := min(e.Retain.UnixMilli(), max(e.Expires.UnixMilli(), 0)); e.Expires.IsZero() && due > float64(e.Retain.UnixMilli()) ||
					!e.Expires.IsZero() && due > float64(d) || due == 0 {
					t.Errorf("%s is due at %f, and an entry expires at %v", key, due, e.Expires)
				}
			}
			m := c.HGetAll(ctx, b.names.in(part, "m:"+box)).Val()
			if m["n"] != fmt.Sprint(n) || m["b"] != fmt.Sprint(size) || m["x"] != fmt.Sprint(holes) && (holes > 0 || m["x"] != "") {
				t.Errorf("%s holds %d entries of %d bytes and %d holes, and counts %v", key, n, size, holes, m)
			}
			pending, bytes = pending+n, bytes+size
		}
		counts := c.HGetAll(ctx, b.names.in(part, "n:c")).Val()
		keys, _ := c.Keys(ctx, strings.ReplaceAll(b.names.in(part, "r:"), "{", "\\{")+"*").Result()
		slots := make(map[string]int64)
		for _, key := range keys {
			records++
			audited++
			r := c.HGetAll(ctx, key).Val()
			ttl := c.PTTL(ctx, key).Val()
			if (r["s"] == "stored") != unfinished[r["m"]] || (r["s"] == "stored") != (ttl < 0) {
				t.Errorf("%s is %v with %v to live, and in a mailbox: %t", key, r, ttl, unfinished[r["m"]])
			}
			if ttl >= 0 {
				at := time.Now().Add(ttl).Round(slotMillis * time.Millisecond)
				slots["e"+itoa(at.UnixMilli()/slotMillis)]++
			}
		}
		for field, n := range slots {
			if counts[field] != itoa(n) {
				t.Errorf("partition %d: %d records in slot %s, counted %s", part, n, field, counts[field])
			}
		}
		dead = c.HLen(ctx, b.names.in(part, "b")).Val()
		if n := c.ZCard(ctx, b.names.in(part, "d:c")).Val(); n != dead {
			t.Errorf("partition %d: %d dead letters, %d in order", part, dead, n)
		}
		for field, n := range map[string]int64{"pending": pending, "bytes": bytes, "records": records, "dead": dead} {
			if got, _ := strconv.ParseInt(counts[field], 10, 64); got != n {
				t.Errorf("partition %d: %d %s, counted %s", part, n, field, counts[field])
			}
		}
		if n := c.ZCard(ctx, b.names.in(part, "o:c")).Val(); n != int64(len(lists)) {
			t.Errorf("partition %d: %d mailboxes, %d by age", part, len(lists), n)
		}
	}
}

// What scripts count stays true whatever is done in which order.
func TestBooksAreTrue(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{MaxPending: 60, MaxDead: 40})
	seed := uint64(time.Now().UnixNano())
	t.Log("seed", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	ids := []string{"01", "02", "03"}
	boxes := make(map[string]broker.Mailbox)
	live := make(map[string][]broker.Entry)
	var mids []string
	for range 1500 {
		id := ids[rnd.IntN(len(ids))]
		switch rnd.IntN(12) {
		case 0, 1, 2, 3:
			key := ""
			if rnd.IntN(2) == 0 {
				key = fmt.Sprint(rnd.IntN(200))
			}
			o := broker.AppendOptions{Key: key, Wait: rnd.IntN(4) == 0}
			if rnd.IntN(5) == 0 {
				o.TTL = time.Duration(1+rnd.IntN(3000)) * time.Millisecond
			}
			if stored, err := b.Append(timeout(t), message(id, key, strings.Repeat("x", rnd.IntN(50))), o); err == nil {
				mids = append(mids, stored.MID)
			}
		case 4:
			boxes[id], live[id] = mustAttach(t, b, id, &owner{withdraw: rnd.IntN(2) == 0}, 1+rnd.IntN(20))
		case 5:
			if m := boxes[id]; m != nil {
				_ = m.Detach(timeout(t), nil)
				delete(boxes, id)
			}
		case 6, 7, 8:
			m := boxes[id]
			if m == nil {
				continue
			}
			page, err := entries(m.Read(timeout(t), 0, 60, 1<<20))
			if err != nil {
				t.Fatal(err)
			}
			rnd.Shuffle(len(page), func(i, j int) { page[i], page[j] = page[j], page[i] })
			page = page[:min(len(page), rnd.IntN(6))]
			states := []broker.State{broker.StateAcked, broker.StateWritten, broker.StateDead, broker.StateStored}
			mustSettle(t, m, states[rnd.IntN(len(states))], page...)
		case 9:
			if len(mids) > 0 {
				_, _ = b.Cancel(timeout(t), mids[rnd.IntN(len(mids))])
			}
		case 10, 11:
			page, err := b.DeadLetters(timeout(t), "c", broker.DeadQuery{Limit: 1 + rnd.IntN(5)})
			if err != nil {
				t.Fatal(err)
			}
			if n := len(page.Letters); n > 0 {
				mid := page.Letters[rnd.IntN(n)].MID
				if rnd.IntN(2) == 0 {
					_, err = b.Resend(timeout(t), mid, time.Duration(rnd.IntN(2))*time.Second)
				} else {
					err = b.Drop(timeout(t), mid)
				}
				_ = err
			}
		}
	}
	audit(t, server, b)
	for id, m := range boxes {
		page, err := entries(m.Read(timeout(t), 0, 1000, 1<<20))
		if err != nil {
			t.Fatal(id, err)
		}
		mustSettle(t, m, broker.StateAcked, page...)
		_ = m.Detach(timeout(t), nil)
	}
	audit(t, server, b)
}

// A message in the middle of a deep mailbox is found, wherever there are holes; many holes go away.
func TestDeepMailbox(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{MaxPending: 5000, MaxDead: 5000})
	const n = 3000
	for i := range n {
		if _, err := b.Append(timeout(t), message("01", "", fmt.Sprint(i)), broker.AppendOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	m, page, err := attached(b.Attach(timeout(t), "c", "01", new(owner), broker.AttachOptions{Limit: n}))
	if err != nil || len(page) != n {
		t.Fatalf("%d entries, %v", len(page), err)
	}
	order := rand.Perm(n - 1)
	key := b.names.mailbox(placeOf("c", "01"))[1]
	gone := make(map[int]bool)
	for k, i := range order[:2500] {
		i++ // the head stays
		gone[i] = true
		if v := mustSettle(t, m, broker.StateDead, page[i]); v[0] != broker.Settled {
			t.Fatalf("entry %d: %v", i, v)
		}
		if k%500 == 499 {
			after := rand.IntN(n)
			var want []string
			for j := after + 1; j < n && len(want) < 20; j++ {
				if !gone[j] {
					want = append(want, fmt.Sprint(j))
				}
			}
			got, err := entries(m.Read(timeout(t), page[after].Seq, 20, 1<<20))
			if err != nil || !slices.Equal(bodies(got), want) {
				t.Errorf("after %d: %v, %v; want %v", after, bodies(got), err, want)
			}
			if left := number(t, server.CLI("LLEN", key)); left > (n-k-1)+max(256, (n-k-1)/4)+1 {
				t.Errorf("the list has %d elements for %d entries", left, n-k-1)
			}
		}
	}
	letters := 0
	for q := (broker.DeadQuery{Limit: 700}); ; {
		p, err := b.DeadLetters(timeout(t), "c", q)
		if err != nil {
			t.Fatal(err)
		}
		letters += len(p.Letters)
		if q.After = p.Next; q.After == "" {
			break
		}
	}
	if letters != 2500 {
		t.Errorf("%d dead letters", letters)
	}
	audit(t, server, b)
}

// I2: deadlines in the middle of a mailbox that nobody collects end what they belong to, whatever its order.
func TestI2_NobodyCollects(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	var short, long []string
	for i := range 700 {
		o := broker.AppendOptions{TTL: time.Hour}
		if i%3 == 1 {
			o.TTL = time.Duration(100+rand.IntN(900)) * time.Millisecond
		}
		m := message("01", "", "x")
		if _, err := b.Append(timeout(t), m, o); err != nil {
			t.Fatal(err)
		}
		if i%3 == 1 {
			short = append(short, m.MID)
		} else {
			long = append(long, m.MID)
		}
	}
	until(t, "the sweep", func() bool {
		return b.Endings()[broker.Ending{Channel: "c", State: broker.StateExpired}] == uint64(len(short))
	})
	for _, mid := range []string{short[0], short[len(short)-1]} {
		if s := stateOf(t, b, mid); s != broker.StateExpired {
			t.Errorf("state %s", s)
		}
	}
	if _, page, err := attached(b.Attach(timeout(t), "c", "01", new(owner), broker.AttachOptions{Limit: 1000})); err != nil || len(page) != len(long) {
		t.Errorf("%d are left of %d, %v", len(page), len(long), err)
	}
	audit(t, server, b)
}

// A key that may be used again takes nothing from the message that had it: its receipt, or its dead letter.
func TestI6_KeyIsUsedAgain(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{Dedupe: 100 * time.Millisecond})
	add := func() broker.Stored {
		t.Helper()
		stored, err := b.Append(timeout(t), message("01", "k", "x"), broker.AppendOptions{Key: "k"})
		if err != nil {
			t.Fatal(err)
		}
		return stored
	}
	first := add()
	until(t, "the window to pass", func() bool {
		return time.Until(b.Now()).Abs() < time.Minute && time.Since(mustRecord(t, b, first.MID).Stored) > 150*time.Millisecond
	})
	if again := add(); !again.Duplicate {
		t.Errorf("the key of an unfinished message was used again: %+v", again)
	}
	m, page := mustAttach(t, b, "01", new(owner), 1)
	mustSettle(t, m, broker.StateDead, page...)
	second := add()
	if second.Duplicate || second.MID == first.MID {
		t.Fatalf("%+v after %+v", second, first)
	}
	if r := mustRecord(t, b, first.MID); r.State != broker.StateDead {
		t.Errorf("the first: %+v", r)
	}
	if _, err := b.Resend(timeout(t), first.MID, 0); err != nil {
		t.Error(err)
	}
	for _, s := range []broker.Stored{first, second} {
		if r := mustRecord(t, b, s.MID); r.State != broker.StateStored {
			t.Errorf("%+v", r)
		}
	}
	page, err := entries(m.Read(timeout(t), 0, 10, 1000))
	if err != nil || len(page) != 2 || page[0].Message.MID != second.MID || page[1].Message.MID != first.MID {
		t.Fatalf("%d entries, %v", len(page), err)
	}
	mustSettle(t, m, broker.StateAcked, page...)
	for _, s := range []broker.Stored{first, second} {
		if r := mustRecord(t, b, s.MID); r.State != broker.StateAcked {
			t.Errorf("%+v", r)
		}
	}
	audit(t, server, b)
}

func mustRecord(t *testing.T, b *Broker, mid string) broker.Record {
	t.Helper()
	rec, err := b.Lookup(timeout(t), mid)
	if err != nil {
		t.Fatalf("looking up %s: %v", mid, err)
	}
	return rec
}
