package brokertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// Every check finds at least one store that is flawed, and each flaw is found by the checks that it names.
func TestFlawsAreFound(t *testing.T) {
	defer func(d time.Duration) { patience = d }(patience)
	patience = 500 * time.Millisecond
	found := make(map[string]bool)
	type finding struct {
		f     *flaw
		check string
	}
	verdicts := make(map[finding]*verdict)
	var mu sync.Mutex
	var judging sync.WaitGroup
	seats := make(chan struct{}, 32) // most of them only wait
	flaws := slices.Concat(appendFlaws, keyFlaws, fenceFlaws, settleFlaws, deadlineFlaws, cancelFlaws, recordFlaws, deadFlaws, limitFlaws, offerFlaws, lineFlaws, presenceFlaws, lifeFlaws)
	for _, f := range flaws {
		for _, check := range f.checks {
			found[check] = true
			seats <- struct{}{}
			judging.Go(func() {
				defer func() { <-seats }()
				v := judgeStore(t, check, f.harness())
				mu.Lock()
				defer mu.Unlock()
				verdicts[finding{f, check}] = v
			})
		}
	}
	judging.Wait()
	for _, f := range flaws {
		for _, check := range f.checks {
			t.Run(f.name+"/"+check, func(t *testing.T) {
				v := verdicts[finding{f, check}]
				if len(v.failures) == 0 {
					t.Fatal("the check passed")
				}
				t.Log(v.failures[0])
			})
		}
	}
	for _, c := range storeChecks() {
		if !found[c.name] {
			t.Errorf("no flaw is planted for %s to find", c.name)
		}
	}
}

func judgeStore(t *testing.T, name string, h StoreHarness) *verdict {
	v := &verdict{TB: t}
	for _, c := range storeChecks() {
		if c.name != name {
			continue
		}
		done := make(chan struct{})
		go func() { // Fatalf ends it
			defer close(done)
			c.run(&rig{TB: v, h: h, b: h.Backend(t)})
		}()
		<-done
		v.cleanUp()
		return v
	}
	t.Errorf("there is no check %s", name)
	return v
}

type (
	ctxT    = context.Context
	msgT    = *broker.Message
	optsT   = broker.AppendOptions
	storedT = broker.Stored
)

// edited makes an append hook that changes what is appended.
func edited(edit func(*broker.Message, *broker.AppendOptions)) func(*flawed, ctxT, msgT, optsT) (storedT, error) {
	return func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
		edit(m, &o)
		return s.Memory.Append(ctx, m, o)
	}
}

// answered makes an append hook that changes the answer.
func answered(edit func(*broker.Stored)) func(*flawed, ctxT, msgT, optsT) (storedT, error) {
	return func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
		stored, err := s.Memory.Append(ctx, m, o)
		edit(&stored)
		return stored, err
	}
}

// each makes a hook that changes entries that are read.
func each(edit func(*broker.Entry)) func(*flawed, []broker.Entry) []broker.Entry {
	return func(_ *flawed, page []broker.Entry) []broker.Entry {
		for i := range page {
			edit(&page[i])
		}
		return page
	}
}

var appendFlaws = []*flaw{
	{name: "pages are reversed", checks: []string{"I3_OrderOfAppends", "I3_OrderAcrossNodes", "I3_EachCallersOrder"},
		entries: func(_ *flawed, p []broker.Entry) []broker.Entry { slices.Reverse(p); return p }},
	{name: "the last of a page is left out", checks: []string{"I3_OrderOfAppends", "I3_EachCallersOrder"},
		entries: func(_ *flawed, p []broker.Entry) []broker.Entry { return p[:max(len(p)-1, 0)] }},
	{name: "read ignores where to begin", checks: []string{"I3_OrderOfAppends", "I2_SettleOutOfOrder"},
		read: func(a *attachment, ctx ctxT, _ uint64, limit, bytes int) (broker.Page, error) {
			return a.Read(ctx, 0, limit, bytes)
		}},
	{name: "sequences do not rise", checks: []string{"I3_OrderOfAppends"}, entries: each(func(e *broker.Entry) { e.Seq = 7 })},
	{name: "bodies lose white space", checks: []string{"StoredMessageComesBack"},
		append: edited(func(m *broker.Message, _ *broker.AppendOptions) { m.Body = []byte(strings.TrimSpace(string(m.Body))) })},
	{name: "headers are lost", checks: []string{"StoredMessageComesBack"}, append: edited(func(m *broker.Message, _ *broker.AppendOptions) { m.Headers = nil })},
	{name: "times are of seconds", checks: []string{"StoredMessageComesBack"},
		append: edited(func(m *broker.Message, _ *broker.AppendOptions) { m.Time = m.Time.Truncate(time.Second) })},
	{name: "pages ignore the limit", checks: []string{"I10_PagesAreBounded"},
		read: func(a *attachment, ctx ctxT, after uint64, _, bytes int) (broker.Page, error) {
			return a.Read(ctx, after, 1000, bytes)
		}},
	{name: "pages ignore the bytes", checks: []string{"I10_PagesAreBounded"},
		read: func(a *attachment, ctx ctxT, after uint64, limit, _ int) (broker.Page, error) {
			return a.Read(ctx, after, limit, 1<<20)
		}},
	{name: "IDs are folded", checks: []string{"MailboxesAreApart"}, append: edited(func(m *broker.Message, _ *broker.AppendOptions) { m.ID = strings.ToLower(m.ID) })},
	{name: "names are joined by a colon", checks: []string{"MailboxesAreApart", "I6_ScopeOfKeys"},
		append: edited(func(m *broker.Message, o *broker.AppendOptions) {
			all := m.Channel + ":" + m.ID + ":" + o.Key
			m.Channel, m.ID, o.Key = "c", all[:strings.LastIndex(all, ":")], "all:"+all
			m.ID = "01"
		})},
	{name: "no durability is named", checks: []string{"I1_DurabilityIsNamed"}, append: answered(func(s *broker.Stored) { s.Durability = "" })},
	{name: "durability is made up", checks: []string{"I1_UnmetDurability"},
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			stored, err := s.Memory.Append(ctx, m, o)
			if stored.Durability = broker.Fsync; errors.Is(err, broker.ErrUnproven) {
				err = nil
			}
			return stored, err
		}},
	{name: "always ready", checks: []string{"I1_UnmetDurability", "I9_StoreOutage", "ClosedStore"}, ready: func(error) error { return nil }},
	{name: "an append again is a duplicate", checks: []string{"I6_AppendAgain"},
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			_, known := s.Memory.Lookup(ctx, m.MID)
			stored, err := s.Memory.Append(ctx, m, o)
			stored.Duplicate = stored.Duplicate || known == nil
			return stored, err
		}},
	{name: "an append again stores again", checks: []string{"I6_AppendAgain"},
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			mid := m.MID
			m.MID = broker.NewMessageID(m.Channel, m.ID, "")
			stored, err := s.Memory.Append(ctx, m, broker.AppendOptions{TTL: o.TTL, Expires: o.Expires})
			stored.MID = mid
			return stored, err
		}},
	{name: "refused but stored", checks: []string{"AppendWithEndedContext"},
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			if err := ctx.Err(); err != nil {
				_, _ = s.Memory.Append(context.Background(), m, o)
				return storedT{}, fmt.Errorf("%w: %w: %w", broker.ErrRefused, broker.ErrUnavailable, err)
			}
			return s.Memory.Append(ctx, m, o)
		}},
	{name: "accepted but not stored", checks: []string{"AppendWithEndedContext", "I9_StoreOutage"},
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			stored, err := s.Memory.Append(ctx, m, o)
			if errors.Is(err, broker.ErrUnavailable) {
				return storedT{MID: m.MID, State: broker.StateStored}, nil
			}
			return stored, err
		}},
}

var keyFlaws = []*flaw{
	{name: "keys are ignored", checks: []string{"I6_SameKey", "I6_SameKeyAtOnce", "I6_SameKeyOnNodes", "I6_DuplicateJoinsTheWait"},
		append: edited(func(_ *broker.Message, o *broker.AppendOptions) { o.Key = "" })},
	{name: "looking for the key is another step", checks: []string{"I6_SameKeyAtOnce", "I6_SameKeyOnNodes"},
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			s.mu.Lock()
			first := s.keys[keyed{address{m.Channel, m.ID}, o.Key}]
			s.mu.Unlock()
			if first != "" && o.Key != "" {
				return s.Memory.Append(ctx, m, o)
			}
			time.Sleep(5 * time.Millisecond)
			key := o.Key
			o.Key = ""
			stored, err := s.Memory.Append(ctx, m, o)
			s.mu.Lock()
			s.keys[keyed{address{m.Channel, m.ID}, key}] = m.MID
			s.mu.Unlock()
			return stored, err
		}},
	{name: "a duplicate is always stored", checks: []string{"I6_SameKey", "I6_BeforeOtherReasons"}, append: answered(func(s *broker.Stored) { s.State = broker.StateStored })},
	{name: "fingerprints are ignored", checks: []string{"I6_OtherFingerprint"}, append: edited(func(_ *broker.Message, o *broker.AppendOptions) { o.Fingerprint = nil })},
	{name: "a fingerprint is shortened", checks: []string{"I6_OtherFingerprint"},
		append: edited(func(_ *broker.Message, o *broker.AppendOptions) {
			o.Fingerprint = o.Fingerprint[:min(len(o.Fingerprint), 16)]
		})},
	{name: "keys are kept for ever", checks: []string{"I6_WindowOfKeys", "RecordsAreForgotten"}, policy: func(p *broker.Policy) { p.Dedupe = 1000 * time.Hour }},
	{name: "keys are forgotten with the window", checks: []string{"I6_WindowOfKeys"},
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			s.mu.Lock()
			k := keyed{address{m.Channel, m.ID}, o.Key}
			if rec := s.records[s.keys[k]]; rec != nil && s.now().After(rec.remembered) {
				delete(s.keys, k)
			}
			s.mu.Unlock()
			return s.Memory.Append(ctx, m, o)
		}},
	{name: "keys are shortened", checks: []string{"I6_LongKeys"}, append: edited(func(_ *broker.Message, o *broker.AppendOptions) { o.Key = o.Key[:min(len(o.Key), 255)] })},
	{name: "limits come before the key", checks: []string{"I6_BeforeOtherReasons"},
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			s.mu.Lock()
			err := s.room(address{m.Channel, m.ID}, len(m.Body), s.policy(m.Channel))
			s.mu.Unlock()
			if err != nil {
				return storedT{}, err
			}
			return s.Memory.Append(ctx, m, o)
		}},
	{name: "a crash forgets keys", checks: []string{"I6_AfterCrash"}, crash: func(m *Memory) { clear(m.keys) }},
}

var fenceFlaws = []*flaw{
	{name: "no fence check", checks: []string{"I4_OldOwnerIsRefused", "I4_OldOwnerOnAnotherNode", "I4_AttachAtOnce"},
		settle: func(a *attachment, ctx ctxT, o []broker.Outcome) ([]broker.Verdict, error) {
			a.node.mu.Lock()
			a.node.boxes[a.address].owner = a
			a.node.mu.Unlock()
			return a.Settle(ctx, o)
		}},
	{name: "a fenced owner is told that it settled", checks: []string{"I4_SettleDuringTakeover"},
		settle: func(a *attachment, ctx ctxT, o []broker.Outcome) ([]broker.Verdict, error) {
			time.Sleep(time.Millisecond) // so that another attaches
			v, err := a.Settle(ctx, o)
			if errors.Is(err, broker.ErrFenced) {
				return make([]broker.Verdict, len(o)), nil
			}
			return v, err
		}},
	{name: "a fenced owner may read", checks: []string{"I4_OldOwnerIsRefused"},
		read: func(a *attachment, ctx ctxT, after uint64, limit, bytes int) (broker.Page, error) {
			p, err := a.Read(ctx, after, limit, bytes)
			if errors.Is(err, broker.ErrFenced) {
				err = nil
			}
			return p, err
		}},
	{name: "loss is told twice", checks: []string{"I4_OldOwnerIsRefused", "I4_OldOwnerOnAnotherNode", "ClosedStore", "LossWhenANoticeWasLost"},
		owner: func(o broker.Owner) broker.Owner {
			return &flawedOwner{Owner: o, lost: func(o broker.Owner, err error) { o.Lost(err); o.Lost(err) }}
		}},
	{name: "loss is not told", checks: []string{"I4_OldOwnerIsRefused", "I4_AttachAtOnce", "LossWhenANoticeWasLost"},
		owner: func(o broker.Owner) broker.Owner { return &flawedOwner{Owner: o, lost: func(broker.Owner, error) {}} }},
	{name: "the fence is of seconds", checks: []string{"I4_FenceRises"}, fence: func(f uint64) uint64 { return f / 1e6 }},
	{name: "a crash forgets the fence", checks: []string{"I4_FenceRises", "ClockSteppingBack"}, fence: func(f uint64) uint64 { return 1 + f&1 }},
	{name: "detaching does nothing", checks: []string{"DetachedOwnerHearsNothing", "CountsPersist"},
		detach: func(*attachment, context.Context, []broker.Outcome) error { return nil }},
	{name: "detaching forgets counts", checks: []string{"CountsPersist"},
		detach: func(a *attachment, ctx ctxT, _ []broker.Outcome) error { return a.Detach(ctx, nil) }},
	{name: "a crash detaches", checks: []string{"CountsOfCrashedOwner", "I2_CancelAfterCrash"},
		crash: func(m *Memory) {
			for _, b := range m.boxes {
				b.owner = nil
			}
		}},
	{name: "all entries of a crashed owner count", checks: []string{"CountsOfCrashedOwner", "CountsOfTakenOverOwner"},
		attach: func(_ *flawed, a *attachment) { a.window = 1000 }},
	{name: "counts of a crashed owner are forgotten", checks: []string{"CountsOfCrashedOwner", "CountsOfTakenOverOwner"},
		entries: each(func(e *broker.Entry) { e.Deaths = 0 })},
}

var settleFlaws = []*flaw{
	{name: "settling forgets", checks: []string{"I2_SettleOutOfOrder", "I2_DeepMailbox", "I10_MailboxLimit"},
		settle: func(_ *attachment, _ ctxT, o []broker.Outcome) ([]broker.Verdict, error) {
			return make([]broker.Verdict, len(o)), nil
		}},
	{name: "all are settled", checks: []string{"SettleTwice", "SettleUnknown", "SettleManyInOneStep", "SettleAtOnce", "I2_CancelOrSettle"},
		settle: func(a *attachment, ctx ctxT, o []broker.Outcome) ([]broker.Verdict, error) {
			_, err := a.Settle(ctx, o)
			return make([]broker.Verdict, len(o)), err
		}},
	{name: "the head is settled", checks: []string{"I2_SettleOutOfOrder", "SettleUnknown", "I2_DeepMailbox"},
		settle: func(a *attachment, ctx ctxT, o []broker.Outcome) ([]broker.Verdict, error) {
			a.node.mu.Lock()
			if b := a.node.boxes[a.address]; len(o) > 0 && len(b.entries) > 0 {
				o[0].Seq, o[0].MID = b.entries[0].seq, b.entries[0].mid
			}
			a.node.mu.Unlock()
			return a.Settle(ctx, o)
		}},
	{name: "one that is gone keeps all from being settled", checks: []string{"SettleManyInOneStep"},
		settle: func(a *attachment, ctx ctxT, o []broker.Outcome) ([]broker.Verdict, error) {
			a.node.mu.Lock()
			for _, one := range o {
				if b := a.node.boxes[a.address]; b.find(one.Seq, one.MID) < 0 {
					a.node.mu.Unlock()
					return slices.Repeat([]broker.Verdict{broker.Gone}, len(o)), nil
				}
			}
			a.node.mu.Unlock()
			return a.Settle(ctx, o)
		}},
	{name: "replies are lost", checks: []string{"SettledRecord", "AwaitEnd", "AwaitEndOnAnotherNode"},
		settle: func(a *attachment, ctx ctxT, o []broker.Outcome) ([]broker.Verdict, error) {
			for i := range o {
				o[i].Reply = nil
			}
			return a.Settle(ctx, o)
		}},
	{name: "details are cut at 128 bytes", checks: []string{"SettledRecord"},
		settle: func(a *attachment, ctx ctxT, o []broker.Outcome) ([]broker.Verdict, error) {
			for i := range o {
				o[i].Detail = o[i].Detail[:min(len(o[i].Detail), 128)]
			}
			return a.Settle(ctx, o)
		}},
}

var deadlineFlaws = []*flaw{
	{name: "deadlines are ignored", checks: []string{"I7_Expires", "I7_ExpiryInThePast", "I7_ExpiresWithOwner", "I7_ExpiresAfterCrash", "AwaitEveryKindOfEnd"},
		append: edited(func(_ *broker.Message, o *broker.AppendOptions) { o.TTL, o.Expires = 0, time.Time{} })},
	{name: "deadlines are of seconds", checks: []string{"I7_Expires"},
		append: edited(func(_ *broker.Message, o *broker.AppendOptions) { o.Expires = o.Expires.Truncate(time.Second) })},
	{name: "an owner keeps messages from expiring", checks: []string{"I7_ExpiresWithOwner", "I2_RetentionWithOwner"},
		attach: func(s *flawed, a *attachment) {
			for _, e := range s.boxes[a.address].entries {
				e.expires, e.retain = time.Time{}, s.now().Add(1000*time.Hour)
			}
		}},
	{name: "a crash forgets deadlines", checks: []string{"I7_ExpiresAfterCrash"},
		crash: func(m *Memory) {
			for _, b := range m.boxes {
				for _, e := range b.entries {
					e.expires = time.Time{}
				}
			}
		}},
	{name: "retention follows the policy of now", checks: []string{"I2_Retention"},
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			stored, err := s.Memory.Append(ctx, m, o)
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, b := range s.boxes {
				for _, e := range b.entries {
					e.retain = s.now().Add(s.policy(m.Channel).Retention)
				}
			}
			return stored, err
		}},
	{name: "receipts end early", checks: []string{"RecordsAreForgotten"}, policy: func(p *broker.Policy) { p.Receipts, p.Dedupe = 1, 1 }},
	{name: "the clock goes back", checks: []string{"ClockNeverGoesBack", "ClockSteppingBack"},
		now: func(s *flawed) time.Time { return s.o.Clock().Add(-time.Duration(s.calls.Add(1)%2) * time.Second) }},
}

var cancelFlaws = []*flaw{
	{name: "a cancel forgets", checks: []string{"CancelWithoutOwner", "CancelAsksTheOwner"},
		cancel: func(*flawed, context.Context, string) (broker.Cancelled, error) { return broker.CancelDone, nil }},
	{name: "a cancel does not ask", checks: []string{"CancelAsksTheOwner", "CancelOnAnotherNode", "I11_PanickingOwner"},
		owner: func(o broker.Owner) broker.Owner {
			return &flawedOwner{Owner: o, withdraw: func(broker.Owner, uint64, string) bool { return true }}
		}},
	{name: "a cancel believes an owner that has not read", checks: []string{"I2_CancelOfWhatWasPushed"},
		cancel: func(s *flawed, ctx ctxT, mid string) (broker.Cancelled, error) {
			s.mu.Lock()
			if e := s.entryOf(mid); e != nil && s.boxes[e.address].owner != nil {
				e.counts.Attempts = 0
			}
			s.mu.Unlock()
			return s.Memory.Cancel(ctx, mid)
		}},
	{name: "a cancel of what never was is too late", checks: []string{"CancelOfWhatIsFinished"},
		cancel: func(s *flawed, ctx ctxT, mid string) (broker.Cancelled, error) {
			c, err := s.Memory.Cancel(ctx, mid)
			if errors.Is(err, broker.ErrNotFound) {
				return broker.CancelTooLate, nil
			}
			return c, err
		}},
	{name: "a cancel is always done", checks: []string{"CancelOfWhatIsFinished", "I2_CancelAfterCrash", "I2_CancelOrSettle"},
		cancel: func(s *flawed, ctx ctxT, mid string) (broker.Cancelled, error) {
			time.Sleep(time.Millisecond) // so that the owner settles
			_, err := s.Memory.Cancel(ctx, mid)
			return broker.CancelDone, err
		}},
}
