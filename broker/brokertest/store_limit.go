package brokertest

import (
	"fmt"
	"strings"
	"time"

	"github.com/caddyrelay/relay/broker"
)

var limitChecks = []storeCheck{
	{"I10_MailboxLimit", noNeed, mailboxLimit},
	{"I10_MailboxLimitAtOnce", noNeed, mailboxLimitAtOnce},
	{"I10_MailboxBytes", noNeed, mailboxBytes},
	{"I10_ChannelLimit", noNeed, channelLimit},
	{"I10_ChannelBytes", noNeed, channelBytes},
	{"I10_RecordsLimit", noNeed, recordsLimit},
	{"Usage", noNeed, usage},
	{"I2_Endings", noNeed, endings},
	{"PoliciesChange", noNeed, policiesChange},
}

// mustRefuse fails the check unless an append is refused for this reason, and nothing of it is kept.
func (r *rig) mustRefuse(s broker.Store, m *broker.Message, want error) {
	r.Helper()
	mid := m.MID
	stored, err := s.Append(r.ctx(), m, broker.AppendOptions{Key: m.Key})
	r.mustFail("appending over the limit", err, want)
	if stored != (broker.Stored{}) {
		r.Errorf("the answer of an append that was refused is %+v", stored)
	}
	_, err = s.Lookup(r.ctx(), mid)
	r.mustFail("looking up what was refused", err, broker.ErrNotFound)
}

// mailboxLimit: exactly as many as the policy says; each that ends makes room for one.
func mailboxLimit(r *rig) {
	s := r.open(broker.Policy{MaxPending: 3})
	r.add(s, "01", "0", "1", "2")
	r.mustRefuse(s, message("01", "3"), broker.ErrMailboxFull)
	r.mustRefuse(s, messageIn("c", "01", "k", "3"), broker.ErrMailboxFull)
	r.add(s, "02", "other")
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[1])
	if r.keyed(s, "01", "k", "3").Duplicate {
		r.Errorf("an append that was refused has used its key")
	}
	r.mustRefuse(s, message("01", "4"), broker.ErrMailboxFull)
	h.finish(broker.StateDead, h.page[0])
	r.add(s, "01", "4")
	r.mustRefuse(s, message("01", "5"), broker.ErrMailboxFull)
	h.detach()
	r.mustCancel(s, h.page[2].Message.MID, broker.CancelDone)
	r.add(s, "01", "5")
	r.mustRefuse(s, message("01", "6"), broker.ErrMailboxFull)
	if !r.h.Volatile {
		s = r.reopen(s, broker.Policy{MaxPending: 3})
		r.mustRefuse(s, message("01", "6"), broker.ErrMailboxFull)
	}
	r.mustHold(s, "01", "3", "4", "5")
}

func mailboxLimitAtOnce(r *rig) {
	stores := []broker.Store{r.open(broker.Policy{MaxPending: 7})}
	if r.h.Nodes {
		stores = append(stores, r.open(broker.Policy{MaxPending: 7}))
	}
	r.all(24, func(i int) {
		if _, err := stores[i%len(stores)].Append(r.ctx(), message("01", "x"), broker.AppendOptions{}); err != nil {
			r.mustFail("appending over the limit", err, broker.ErrMailboxFull)
		}
	})
	if got := len(r.attach(stores[0], "01").page); got != 7 {
		r.Errorf("%d messages, with a limit of 7", got)
	}
}

// mailboxBytes: bytes of bodies, exactly.
func mailboxBytes(r *rig) {
	s := r.open(broker.Policy{MaxPendingBytes: 100})
	r.mustRefuse(s, message("01", strings.Repeat("x", 101)), broker.ErrMailboxFull)
	r.add(s, "01", strings.Repeat("1", 60), strings.Repeat("2", 40), "")
	r.mustRefuse(s, message("01", "3"), broker.ErrMailboxFull)
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[1])
	r.mustRefuse(s, message("01", strings.Repeat("3", 41)), broker.ErrMailboxFull)
	r.add(s, "01", strings.Repeat("3", 40))
	r.mustRefuse(s, message("01", "4"), broker.ErrMailboxFull)
	r.add(s, "02", strings.Repeat("x", 100))
}

// channelLimit: the unfinished messages of a channel have a bound, perhaps not an exact one.
func channelLimit(r *rig) {
	const limit = 40
	s := r.open(broker.Policy{MaxChannelPending: limit})
	n := r.fill(s, "x", limit, broker.ErrChannelFull)
	r.store(s, messageIn("d", "01", "", "x"), broker.AppendOptions{})
	for i := range n {
		h := r.attach(s, fmt.Sprint("id-", i))
		h.finish(broker.StateAcked, h.page...)
		h.detach()
	}
	r.eventually(func() bool {
		_, err := s.Append(r.ctx(), message("01", "x"), broker.AppendOptions{})
		return err == nil
	}, func() string { return "appends are refused though the channel is empty again" })
}

// fill appends to many destinations until it is refused, which must not be below the limit, and returns how many there
// are then.
func (r *rig) fill(s broker.Store, body string, limit int, want error) (n int) {
	r.Helper()
	r.eventually(func() bool {
		_, err := s.Append(r.ctx(), message(fmt.Sprint("id-", n), body), broker.AppendOptions{})
		if err != nil {
			r.mustFail("appending over the limit", err, want)
			return true
		}
		n++
		return false
	}, func() string { return fmt.Sprintf("%d were appended, with a limit of %d", n, limit) })
	if n < limit {
		r.Errorf("refused after %d, with a limit of %d", n, limit)
	}
	return n
}

func channelBytes(r *rig) {
	s := r.open(broker.Policy{MaxChannelBytes: 4000})
	r.fill(s, strings.Repeat("x", 100), 40, broker.ErrChannelFull)
	r.store(s, messageIn("d", "01", "", strings.Repeat("x", 1000)), broker.AppendOptions{})
}

// recordsLimit: records of what is finished count too.
func recordsLimit(r *rig) {
	const limit = 40
	s := r.open(broker.Policy{MaxRecords: limit})
	for i := range limit / 2 {
		r.add(s, "01", fmt.Sprint(i))
	}
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page...)
	n := r.fill(s, "x", limit/2, broker.ErrRecordsFull)
	r.mustFail("appending at the limit", func() error {
		_, err := s.Append(r.ctx(), message("id-0", "x"), broker.AppendOptions{})
		return err
	}(), broker.ErrRecordsFull)
	if u := r.usage(s, "c"); u.Pending > n {
		r.Errorf("%d are pending; %d were appended", u.Pending, n)
	}
	r.store(s, messageIn("d", "01", "", "x"), broker.AppendOptions{})
}

// usage: what is kept is counted, across a crash too, and by channel.
func usage(r *rig) {
	s := r.open(broker.Policy{})
	if u, err := s.Usage(r.ctx()); err != nil || len(u) > 0 {
		r.Errorf("the usage of an empty store is %v, %v", u, err)
	}
	before := s.Now()
	r.add(s, "01", "1", "22", "333")
	r.add(s, "02", "4444")
	r.store(s, messageIn("d", "01", "k", ""), broker.AppendOptions{})
	r.store(s, messageIn("d", "01", "k", ""), broker.AppendOptions{}) // a duplicate
	r.mustUse(s, "c", broker.Usage{Mailboxes: 2, Pending: 4, Bytes: 10, Records: 4})
	r.mustUse(s, "d", broker.Usage{Mailboxes: 1, Pending: 1, Records: 1})
	if d := r.usage(s, "c").Oldest.Sub(before); d < -time.Second || d > patience {
		r.Errorf("the oldest message was stored %s after the start", d)
	}
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[1])
	h.finish(broker.StateDead, h.page[2])
	r.mustUse(s, "c", broker.Usage{Mailboxes: 2, Pending: 2, Bytes: 5, Records: 4, Dead: 1})
	h.finish(broker.StateAcked, h.page[0])
	r.mustUse(s, "c", broker.Usage{Mailboxes: 1, Pending: 1, Bytes: 4, Records: 4, Dead: 1})
	h.detach()
	r.attach(s, "03").detach() // an empty mailbox is nothing
	if !r.h.Volatile {
		s = r.reopen(s, broker.Policy{})
	}
	s.SetPolicies(nil) // what is kept is shown, whether or not there is a policy
	r.mustUse(s, "c", broker.Usage{Mailboxes: 1, Pending: 1, Bytes: 4, Records: 4, Dead: 1})
	r.mustUse(s, "d", broker.Usage{Mailboxes: 1, Pending: 1, Records: 1})
}

// endings: each way in which messages end is counted, by channel, once.
func endings(r *rig) {
	s := r.open(broker.Policy{})
	if e := s.Endings(); len(e) > 0 {
		r.Errorf("at the start %v are counted", e)
	}
	r.add(s, "01", numbers(7)...)
	h := r.attach(s, "01")
	h.finish(broker.StateAcked, h.page[0], h.page[1])
	h.finish(broker.StateWritten, h.page[2])
	h.finish(broker.StateExpired, h.page[3])
	h.finish(broker.StateDead, h.page[4])
	h.settle(outcome(h.page[4], broker.StateAcked), outcome(h.page[5], broker.StateStored))
	r.store(s, messageIn("d", "01", "", "x"), broker.AppendOptions{})
	other := r.attachAs(s, "d", "01", new(owner), broker.AttachOptions{})
	other.finish(broker.StateAcked, other.page...)
	r.mustCancel(s, h.page[6].Message.MID, broker.CancelDone)
	want := map[broker.Ending]uint64{
		{Channel: "c", State: broker.StateAcked}: 2, {Channel: "c", State: broker.StateWritten}: 1, {Channel: "c", State: broker.StateExpired}: 1,
		{Channel: "c", State: broker.StateDead, Reason: broker.DeadTerminated}: 1, {Channel: "c", State: broker.StateCancelled}: 1,
		{Channel: "d", State: broker.StateAcked}: 1,
	}
	got := s.Endings()
	for e, n := range want {
		if got[e] != n {
			r.Errorf("%+v is counted %d times, want %d", e, got[e], n)
		}
	}
	for e := range got {
		if want[e] == 0 && got[e] > 0 {
			r.Errorf("%+v is counted %d times; it did not happen", e, got[e])
		}
	}
}

// policiesChange: limits apply from the moment they are set, to what is there already.
func policiesChange(r *rig) {
	s := r.open(broker.Policy{})
	r.add(s, "01", "1", "2", "3")
	r.setPolicy(s, broker.Policy{MaxPending: 2})
	r.mustRefuse(s, message("01", "4"), broker.ErrMailboxFull)
	r.mustHold(s, "01", "1", "2", "3")
	r.setPolicy(s, broker.Policy{MaxPending: 4})
	r.add(s, "01", "4")
	r.mustRefuse(s, message("01", "5"), broker.ErrMailboxFull)
	s.SetPolicies(nil)
	if r.h.Volatile {
		return
	}
	r.add(s, "01", "5") // the zero policy's limits are large
}
