package brokertest

import (
	"context"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// Faulty returns a store that does what s does, except for what p plans. Methods that do no I/O, Subscribe and Close are
// passed on as they are.
func Faulty(s broker.Store, p *Plan) broker.Store { return &faultyStore{Store: s, plan: p} }

type faultyStore struct {
	broker.Store
	plan *Plan
}

func (f *faultyStore) Publish(ctx context.Context, channel string, p *broker.Publication) (broker.Published, error) {
	return around(ctx, f.plan, MethodPublish, func() (broker.Published, error) { return f.Store.Publish(ctx, channel, p) })
}

func (f *faultyStore) Append(ctx context.Context, m *broker.Message, o broker.AppendOptions) (broker.Stored, error) {
	return around(ctx, f.plan, MethodAppend, func() (broker.Stored, error) { return f.Store.Append(ctx, m, o) })
}

func (f *faultyStore) Attach(
	ctx context.Context, channel, id string, owner broker.Owner, o broker.AttachOptions,
) (broker.Mailbox, broker.Page, error) {
	var page broker.Page
	box, err := around(ctx, f.plan, MethodAttach, func() (box broker.Mailbox, err error) {
		box, page, err = f.Store.Attach(ctx, channel, id, mutedOwner{owner, f.plan}, o)
		return box, err
	})
	if err != nil || box == nil {
		return nil, broker.Page{}, err
	}
	return &faultyMailbox{Mailbox: box, plan: f.plan}, page, nil
}

func (f *faultyStore) Lookup(ctx context.Context, mid string) (broker.Record, error) {
	return around(ctx, f.plan, MethodLookup, func() (broker.Record, error) { return f.Store.Lookup(ctx, mid) })
}

func (f *faultyStore) Find(ctx context.Context, channel, ref string, limit int) ([]broker.Record, error) {
	return around(ctx, f.plan, MethodFind, func() ([]broker.Record, error) { return f.Store.Find(ctx, channel, ref, limit) })
}

func (f *faultyStore) Content(ctx context.Context, mid string) (*broker.Message, error) {
	return around(ctx, f.plan, MethodContent, func() (*broker.Message, error) { return f.Store.Content(ctx, mid) })
}

func (f *faultyStore) Await(ctx context.Context, mid string) (broker.Record, error) {
	return around(ctx, f.plan, MethodAwait, func() (broker.Record, error) { return f.Store.Await(ctx, mid) })
}

func (f *faultyStore) Cancel(ctx context.Context, mid string) (broker.Cancelled, error) {
	return around(ctx, f.plan, MethodCancel, func() (broker.Cancelled, error) { return f.Store.Cancel(ctx, mid) })
}

func (f *faultyStore) DeadLetters(ctx context.Context, channel string, q broker.DeadQuery) (broker.DeadPage, error) {
	return around(ctx, f.plan, MethodDeadLetters, func() (broker.DeadPage, error) { return f.Store.DeadLetters(ctx, channel, q) })
}

func (f *faultyStore) Resend(ctx context.Context, mid string, ttl time.Duration) (broker.Stored, error) {
	return around(ctx, f.plan, MethodResend, func() (broker.Stored, error) { return f.Store.Resend(ctx, mid, ttl) })
}

func (f *faultyStore) Drop(ctx context.Context, mid string) error {
	_, err := around(ctx, f.plan, MethodDrop, func() (struct{}, error) { return struct{}{}, f.Store.Drop(ctx, mid) })
	return err
}

func (f *faultyStore) Online(ctx context.Context, channel, id string) (broker.Presence, error) {
	return around(ctx, f.plan, MethodOnline, func() (broker.Presence, error) { return f.Store.Online(ctx, channel, id) })
}

func (f *faultyStore) Presence(ctx context.Context, channel string, q broker.PresenceQuery) (broker.PresencePage, error) {
	return around(ctx, f.plan, MethodPresence, func() (broker.PresencePage, error) { return f.Store.Presence(ctx, channel, q) })
}

func (f *faultyStore) Leave(ctx context.Context, channel, id string, owner broker.Owner) error {
	_, err := around(ctx, f.plan, MethodLeave, func() (struct{}, error) {
		return struct{}{}, f.Store.Leave(ctx, channel, id, mutedOwner{owner, f.plan})
	})
	return err
}

func (f *faultyStore) Usage(ctx context.Context) (map[string]broker.Usage, error) {
	return around(ctx, f.plan, MethodUsage, func() (map[string]broker.Usage, error) { return f.Store.Usage(ctx) })
}

type faultyMailbox struct {
	broker.Mailbox
	plan *Plan
}

func (f *faultyMailbox) Read(ctx context.Context, after uint64, limit, bytes int) (broker.Page, error) {
	return around(ctx, f.plan, MethodRead, func() (broker.Page, error) { return f.Mailbox.Read(ctx, after, limit, bytes) })
}

func (f *faultyMailbox) Settle(ctx context.Context, outcomes []broker.Outcome) ([]broker.Verdict, error) {
	return around(ctx, f.plan, MethodSettle, func() ([]broker.Verdict, error) { return f.Mailbox.Settle(ctx, outcomes) })
}

func (f *faultyMailbox) Detach(ctx context.Context, counts []broker.Outcome) error {
	_, err := around(ctx, f.plan, MethodDetach, func() (struct{}, error) { return struct{}{}, f.Mailbox.Detach(ctx, counts) })
	return err
}

// mutedOwner misses rings and offers while the plan says so.
type mutedOwner struct {
	broker.Owner
	plan *Plan
}

func (o mutedOwner) Ring() {
	if !o.plan.muted() {
		o.Owner.Ring()
	}
}

func (o mutedOwner) Offer(prev uint64, e broker.Entry) {
	if !o.plan.muted() {
		o.Owner.Offer(prev, e)
	}
}
