package redisbroker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// Prove implements [broker.Importer].
func (b *Broker) Prove(ctx context.Context, channels []string, compare func() error) error {
	s := b.store
	before, err := s.runIDs(ctx)
	if err != nil {
		return err
	}
	if err := compare(); err != nil {
		return err
	}
	if err := s.checkBooks(ctx, channels); err != nil {
		return err
	}
	if err := s.seal(ctx); err != nil {
		return err
	}
	// With a file that is written once a second, what was answered is on the disk a moment later; see level.
	if slices.ContainsFunc(s.current(), func(sh *shard) bool { return sh.seen().level() != broker.AOFAlways }) {
		if err := pauseFor(ctx, 2*time.Second); err != nil {
			return err
		}
	}
	after, err := s.runIDs(ctx)
	if err == nil && after != before {
		err = fmt.Errorf("%w, perhaps: redis at %s was restarted, or another server has become a primary", broker.ErrMoveLost, b.o.Address)
	}
	return err
}

func pauseFor(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// sealTime is how long the keys are kept that seal writes.
const sealTime = time.Minute

// seal writes something into each partition behind all that was written, and waits for the replicas that the broker
// demands: what they have confirmed of it they have of the rest.
func (s *store) seal(ctx context.Context) error {
	ops := make([]*op, partitions)
	for part := range ops {
		ops[part] = newOp(scriptHold, []string{s.names.in(part, "moved")}, s.incarnation, wholeMillis(sealTime), false)
		ops[part].stores = true
	}
	for i, err := range s.calls(ctx, ops) {
		if err != nil {
			return err
		}
		if of := ops[i].replicas; of.confirmed < of.asked {
			return fmt.Errorf("%w: %w: %d of %d replicas have confirmed what was copied: see INFO replication of redis at %s",
				broker.ErrUnavailable, broker.ErrUnproven, of.confirmed, of.asked, s.b.o.Address)
		}
	}
	return nil
}

// runIDs names the processes of the primaries.
func (s *store) runIDs(ctx context.Context) (string, error) {
	leave, err := s.b.enter()
	if err != nil {
		return "", err
	}
	defer leave()
	all, err := s.lookAtAllShards(ctx)
	if err != nil {
		return "", err
	}
	var ids []string
	for _, sh := range all {
		o := newOp(nil, nil, "INFO", "server")
		o.shard = sh
		if err := s.do(ctx, o); err != nil {
			return "", err
		}
		info, _ := o.reply.(string)
		ids = append(ids, infoField(info, "run_id"))
	}
	slices.Sort(ids)
	return strings.Join(ids, " "), nil
}
