package brokertest

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/caddyrelay/relay/broker"
)

var recordFlaws = []*flaw{
	{name: "another MID of the key is found", checks: []string{"Lookup"},
		lookup: func(s *flawed, rec broker.Record, err error) (broker.Record, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, r := range s.records {
				if err != nil && r.key != "" {
					return r.Record, nil
				}
			}
			return rec, err
		}},
	{name: "the owner is not asked", checks: []string{"LookupAsksTheOwner", "LookupOnAnotherNode"},
		owner: func(o broker.Owner) broker.Owner {
			return &flawedOwner{Owner: o, attempts: func() (int, bool) { return 0, false }}
		}},
	{name: "found oldest first", checks: []string{"Find"},
		find: func(s *flawed, ctx ctxT, channel, ref string, limit int) ([]broker.Record, error) {
			found, err := s.Memory.Find(ctx, channel, ref, 1000)
			slices.Reverse(found)
			return found[:min(limit, len(found))], err
		}},
	{name: "found without a limit", checks: []string{"Find"},
		find: func(s *flawed, ctx ctxT, channel, ref string, _ int) ([]broker.Record, error) {
			return s.Memory.Find(ctx, channel, ref, 1000)
		}},
	{name: "waiters are never told", checks: []string{
		"AwaitEnd", "AwaitEndOnAnotherNode", "AwaitEveryKindOfEnd", "I6_DuplicateJoinsTheWait", "AwaitInVain"},
		await: func(s *flawed, ctx ctxT, mid string) (broker.Record, error) {
			rec, err := s.Memory.Lookup(context.Background(), mid)
			<-ctx.Done()
			return rec, err
		}},
	{name: "waiters rely on notices", checks: []string{"AwaitWhenANoticeWasLost"},
		await: func(s *flawed, ctx ctxT, mid string) (broker.Record, error) {
			s.mu.Lock()
			mute := s.mute
			s.mu.Unlock()
			if mute {
				<-ctx.Done()
				return broker.Record{}, ctx.Err()
			}
			return s.Memory.Await(ctx, mid)
		}},
	{name: "waiters are told late", checks: []string{"AwaitIsToldAtOnce"},
		await: func(s *flawed, ctx ctxT, mid string) (broker.Record, error) {
			rec, err := s.Memory.Await(ctx, mid)
			time.Sleep(50 * time.Millisecond)
			return rec, err
		}},
	{name: "a wait in vain is an error", checks: []string{"AwaitInVain"},
		await: func(s *flawed, ctx ctxT, mid string) (broker.Record, error) {
			rec, err := s.Memory.Await(ctx, mid)
			return rec, errors.Join(err, ctx.Err())
		}},
}

var deadFlaws = []*flaw{
	{name: "dead letters have no body", checks: []string{"I2_DeadLetters", "I2_Retention", "I2_RetentionWithOwner", "StoredMessageComesBack", "I2_DeepMailbox"},
		content: func(s *flawed, m *broker.Message, err error) (*broker.Message, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if m != nil && s.deadAt(s.records[m.MID]) >= 0 {
				m.Body = nil
			}
			return m, err
		}},
	{name: "a crash forgets dead letters", checks: []string{"I2_DeadLetters", "I1_CrashKeepsAll"}, crash: func(m *Memory) { clear(m.dead) }},
	{name: "pages overlap", checks: []string{"PagesOfDeadLetters"},
		dead: func(s *flawed, ctx ctxT, channel string, q broker.DeadQuery) (broker.DeadPage, error) {
			q.After = ""
			return s.Memory.DeadLetters(ctx, channel, q)
		}},
	{name: "pages have no next", checks: []string{"PagesOfDeadLetters"},
		dead: func(s *flawed, ctx ctxT, channel string, q broker.DeadQuery) (broker.DeadPage, error) {
			p, err := s.Memory.DeadLetters(ctx, channel, q)
			p.Next = ""
			return p, err
		}},
	{name: "the filter is ignored", checks: []string{"PagesOfDeadLetters"},
		dead: func(s *flawed, ctx ctxT, channel string, q broker.DeadQuery) (broker.DeadPage, error) {
			q.Reason = ""
			return s.Memory.DeadLetters(ctx, channel, q)
		}},
	{name: "sent again with its counts", checks: []string{"Resend"},
		resend: func(s *flawed, ctx ctxT, mid string, ttl time.Duration) (broker.Stored, error) {
			stored, err := s.Memory.Resend(ctx, mid, ttl)
			s.mu.Lock()
			defer s.mu.Unlock()
			if e := s.entryOf(mid); e != nil {
				e.counts.Attempts = 9
			}
			return stored, err
		}},
	{name: "sent again, and still dead", checks: []string{"Resend"},
		resend: func(s *flawed, ctx ctxT, mid string, ttl time.Duration) (broker.Stored, error) {
			s.mu.Lock()
			kept := make(map[string][]*entry)
			for channel, letters := range s.dead {
				kept[channel] = slices.Clone(letters)
			}
			s.mu.Unlock()
			stored, err := s.Memory.Resend(ctx, mid, ttl)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.dead = kept
			return stored, err
		}},
	{name: "sending again never fails", checks: []string{"Resend", "ResendAtOnce", "Drop", "ResendKeepsOrderAndLimits"},
		resend: func(s *flawed, ctx ctxT, mid string, ttl time.Duration) (broker.Stored, error) {
			stored, _ := s.Memory.Resend(ctx, mid, ttl)
			return stored, nil
		}},
	{name: "sent again to the front", checks: []string{"ResendKeepsOrderAndLimits"},
		resend: func(s *flawed, ctx ctxT, mid string, ttl time.Duration) (broker.Stored, error) {
			stored, err := s.Memory.Resend(ctx, mid, ttl)
			s.mu.Lock()
			defer s.mu.Unlock()
			if e := s.entryOf(mid); e != nil {
				b := s.boxes[e.address]
				b.entries = slices.Insert(b.entries[:len(b.entries)-1], 0, e)
				e.seq = 1
			}
			return stored, err
		}},
	{name: "sent again beyond the limits", checks: []string{"ResendKeepsOrderAndLimits"},
		resend: func(s *flawed, ctx ctxT, mid string, ttl time.Duration) (broker.Stored, error) {
			s.mu.Lock()
			policies := s.policies
			s.policies = nil
			s.mu.Unlock()
			stored, err := s.Memory.Resend(ctx, mid, ttl)
			s.mu.Lock()
			defer s.mu.Unlock()
			s.policies = policies
			return stored, err
		}},
	{name: "dropping forgets the record", checks: []string{"Drop"},
		drop: func(s *flawed, ctx ctxT, mid string) error {
			err := s.Memory.Drop(ctx, mid)
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.records, mid)
			return err
		}},
	{name: "dropping forgets to", checks: []string{"Drop", "I9_TooManyDeadLetters"}, drop: func(*flawed, context.Context, string) error { return nil }},
	{name: "dead letters stay for ever", checks: []string{"DeadLettersEnd"}, policy: func(p *broker.Policy) { p.DeadRetention = 1000 * time.Hour }},
	{name: "dead letters have no bound", checks: []string{"I9_TooManyDeadLetters"}, policy: func(p *broker.Policy) { p.MaxDead = 0 }},
	{name: "deaths are refused at the bound", checks: []string{"I9_TooManyDeadLetters"},
		settle: func(a *attachment, ctx ctxT, o []broker.Outcome) ([]broker.Verdict, error) {
			a.node.mu.Lock()
			full := len(a.node.dead[a.channel]) >= a.node.policy(a.channel).MaxDead
			a.node.mu.Unlock()
			if full {
				return slices.Repeat([]broker.Verdict{broker.Gone}, len(o)), nil
			}
			return a.Settle(ctx, o)
		}},
}

var limitFlaws = []*flaw{
	{name: "the limit is off by one", checks: []string{"I10_MailboxLimit", "I10_MailboxLimitAtOnce", "PoliciesChange"}, policy: func(p *broker.Policy) {
		if p.MaxPending > 0 {
			p.MaxPending++
		}
	}},
	{name: "the limit is off by one below", checks: []string{"I10_MailboxLimit"}, policy: func(p *broker.Policy) { p.MaxPending-- }},
	{name: "bytes are off by one", checks: []string{"I10_MailboxBytes"}, policy: func(p *broker.Policy) { p.MaxPendingBytes++ }},
	{name: "the channel has no limit", checks: []string{"I10_ChannelLimit", "I10_ChannelBytes"},
		policy: func(p *broker.Policy) { p.MaxChannelPending, p.MaxChannelBytes = 0, 0 }},
	{name: "the channel's limit is low", checks: []string{"I10_ChannelLimit", "I10_ChannelBytes"},
		policy: func(p *broker.Policy) { p.MaxChannelPending /= 2; p.MaxChannelBytes /= 2 }},
	{name: "records have no limit", checks: []string{"I10_RecordsLimit"}, policy: func(p *broker.Policy) { p.MaxRecords = 0 }},
	{name: "usage counts twice", checks: []string{"Usage"},
		usage: func(u map[string]broker.Usage, err error) (map[string]broker.Usage, error) {
			for channel, v := range u {
				v.Bytes *= 2
				u[channel] = v
			}
			return u, err
		}},
	{name: "usage has empty channels", checks: []string{"Usage"},
		usage: func(u map[string]broker.Usage, err error) (map[string]broker.Usage, error) {
			u["e"] = broker.Usage{}
			return u, err
		}},
	{name: "ends are counted twice", checks: []string{"I2_Endings", "SettleTwice", "CancelWithoutOwner", "I2_DeadLetters", "I7_Expires"},
		endings: func(e map[broker.Ending]uint64) {
			for k := range e {
				e[k] *= 2
			}
		}},
	{name: "ends have no reason", checks: []string{"I2_Endings", "I2_Retention"},
		endings: func(e map[broker.Ending]uint64) {
			for k, n := range e {
				delete(e, k)
				k.Reason = ""
				e[k] += n
			}
		}},
}

// misoffered makes a hook for what owners are offered.
func misoffered(edit func(prev *uint64, e *broker.Entry)) func(broker.Owner) broker.Owner {
	return func(o broker.Owner) broker.Owner {
		return &flawedOwner{Owner: o, offer: func(o broker.Owner, prev uint64, e broker.Entry) {
			edit(&prev, &e)
			o.Offer(prev, e)
		}}
	}
}

var offerFlaws = []*flaw{
	{name: "offers name nothing before them", checks: []string{"I3_OffersLeaveNoGap"},
		owner: misoffered(func(prev *uint64, _ *broker.Entry) { *prev = 0 })},
	{name: "offers are never right behind", checks: []string{"OffersTheOwner", "OffersOnAnotherNode"},
		owner: misoffered(func(prev *uint64, e *broker.Entry) { *prev = e.Seq - 1 })},
	{name: "offers have no deadline", checks: []string{"OffersTheOwner", "OffersOnAnotherNode"},
		owner: misoffered(func(_ *uint64, e *broker.Entry) { e.Expires = time.Time{} })},
	{name: "offers have no ref", checks: []string{"OffersTheOwner", "OffersOnAnotherNode"},
		owner: misoffered(func(_ *uint64, e *broker.Entry) { m := *e.Message; m.Ref = ""; e.Message = &m })},
	{name: "offers are lost without a trace", checks: []string{"I3_OffersAtOnce", "OffersTheOwner", "OffersOnAnotherNode"},
		owner: func(o broker.Owner) broker.Owner {
			n, last := 0, uint64(0)
			return &flawedOwner{Owner: o, offer: func(o broker.Owner, prev uint64, e broker.Entry) {
				if n++; n%3 == 0 {
					return
				}
				if last > 0 {
					prev = last
				}
				last = e.Seq
				o.Offer(prev, e)
			}}
		}},
	{name: "offers are rings", checks: []string{"OffersTheOwner", "OffersOnAnotherNode"},
		owner: func(o broker.Owner) broker.Owner {
			return &flawedOwner{Owner: o, offer: func(o broker.Owner, _ uint64, _ broker.Entry) { o.Ring() }}
		}},
	{name: "pages say that there is no more", checks: []string{"PagesSayHowFar"},
		pages: func(p *broker.Page) { p.More = false }},
	{name: "pages say that there is always more", checks: []string{"PagesSayHowFar"},
		pages: func(p *broker.Page) { p.More = true }},
	{name: "pages say too much", checks: []string{"PagesSayHowFar"},
		pages: func(p *broker.Page) { p.Through++ }},
	{name: "pages say too little", checks: []string{"PagesSayHowFar"},
		pages: func(p *broker.Page) { p.Through = 0 }},
	{name: "nobody has a lease", checks: []string{"I4_LeasedAtOnce"}, unleased: true},
}

var lineFlaws = []*flaw{
	{name: "a second owner displaces the first", checks: []string{"RejectWhileHeld", "RejectOnAnotherNode", "StandbyInLine", "StandbyOnOtherNodes"},
		mode: func(_ *flawed, o *broker.AttachOptions) { o.Mode = broker.Takeover }},
	{name: "the owner of a dead node stays", checks: []string{"RejectAfterACrash", "StandbyAfterACrash"},
		mode: func(s *flawed, o *broker.AttachOptions) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, b := range s.boxes {
				if o.Mode != broker.Takeover && b.owner != nil && b.owner.node.ended != nil {
					b.owner.node = s.Memory
				}
			}
		}},
	{name: "there is no line", checks: []string{"StandbyInLine", "StandbyOnOtherNodes", "StandbyAfterACrash", "StandbyLeaves", "StandbyWhenANoticeWasLost"},
		mode: func(_ *flawed, o *broker.AttachOptions) {
			if o.Mode == broker.Standby {
				o.Mode = broker.Reject
			}
		}},
	{name: "the last in line is the first", checks: []string{"StandbyInLine", "StandbyOnOtherNodes"},
		mode: func(s *flawed, _ *broker.AttachOptions) {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, b := range s.boxes {
				if b.owner == nil {
					slices.Reverse(b.line)
				}
			}
		}},
	{name: "who leaves stays in line", checks: []string{"StandbyLeaves"}, stays: true},
	{name: "the line has no end", checks: []string{"I10_StandbyIsBounded"},
		held: func(err error) error {
			if errors.Is(err, broker.ErrLineFull) {
				return broker.ErrHeld
			}
			return err
		}},
	{name: "a takeover waits", checks: []string{"I4_TakeoverPassesTheLine"},
		mode: func(_ *flawed, o *broker.AttachOptions) { o.Mode = broker.Standby }},
}

var presenceFlaws = []*flaw{
	{name: "nobody is online", checks: []string{"WhoIsOnline", "WhoIsOnlineOnAnotherNode", "PagesOfPresence", "PresenceAfterACrash"},
		online: func(*broker.Presence) bool { return false }},
	{name: "presence does not count what waits", checks: []string{"WhoIsOnline", "WhoIsOnlineOnAnotherNode"},
		online: func(p *broker.Presence) bool { p.Pending = 0; return true }},
	{name: "presence has no address", checks: []string{"WhoIsOnline", "WhoIsOnlineOnAnotherNode"},
		online: func(p *broker.Presence) bool { p.Address = ""; return true }},
	{name: "one is left out of the pages", checks: []string{"PagesOfPresence"},
		online: func(p *broker.Presence) bool { return p.ID != "id-5" }},
}

var lifeFlaws = []*flaw{
	{name: "owners are not rung", checks: []string{"RingsTheOwner", "RingsOnAnotherNode", "RingsWhenANoticeWasLost", "I4_OldOwnerIsRefused", "Resend"},
		owner: func(o broker.Owner) broker.Owner { return &flawedOwner{Owner: o, ring: func(broker.Owner) {}} }},
	{name: "an owner that panics is not called again", checks: []string{"I11_PanickingOwner"},
		owner: func(o broker.Owner) broker.Owner {
			rung := 0
			return &flawedOwner{Owner: o, ring: func(o broker.Owner) { rung++; o.Ring() }, lost: func(o broker.Owner, err error) {
				if rung == 0 {
					o.Lost(err)
				}
			}}
		}},
	{name: "a closed store is only unavailable", checks: []string{"ClosedStore"},
		lookup: func(_ *flawed, rec broker.Record, err error) (broker.Record, error) {
			if errors.Is(err, broker.ErrClosed) {
				err = broker.ErrUnavailable
			}
			return rec, err
		}},
	{name: "contexts are errors of their own", checks: []string{"EndedContexts"},
		lookup: func(_ *flawed, rec broker.Record, err error) (broker.Record, error) {
			if errors.Is(err, context.Canceled) {
				err = context.Canceled
			}
			return rec, err
		}},
	{name: "a crash loses the last message", checks: []string{"I1_CrashKeepsAll", "I1_CrashDuringAppends", "I2_SettleOutOfOrder", "I2_DeepMailbox"},
		crash: func(m *Memory) {
			for _, b := range m.boxes {
				b.entries = b.entries[:max(len(b.entries)-1, 0)]
			}
		}},
	{name: "a crash makes all messages stored", checks: []string{"I1_CrashKeepsAll"},
		crash: func(m *Memory) {
			for _, rec := range m.records {
				rec.State = broker.StateStored
			}
		}},
	{name: "closing loses all", checks: []string{"I8_CloseKeepsAll"},
		close: func(s *flawed) {
			s.mu.Lock()
			defer s.mu.Unlock()
			clear(s.boxes)
		}},
	{name: "an outage loses all", checks: []string{"I1_OutageKeepsAll", "I9_StoreOutage"},
		ready: func(err error) error { return err },
		append: func(s *flawed, ctx ctxT, m msgT, o optsT) (storedT, error) {
			s.mu.Lock()
			if s.down || s.calls.Add(1) == 21 {
				clear(s.boxes)
			}
			s.mu.Unlock()
			return s.Memory.Append(ctx, m, o)
		}},
}
