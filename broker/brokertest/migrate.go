package brokertest

import (
	"fmt"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// MigrationHarness makes what the checks of [RunMigration] need.
type MigrationHarness struct {
	// Source makes a store without messages, and what exports it once all its handles are closed or crashed. The suite
	// closes both.
	Source func(t testing.TB) (StoreBackend, func() SourceExport)

	// Target makes stores that import.
	Target StoreHarness

	// Audit, if it is not nil, looks for what a target has counted wrongly.
	Audit func(t testing.TB, target broker.Store)
}

// SourceExport is a store that is open to be exported.
type SourceExport interface {
	broker.Exporter
	Usage() map[string]broker.Usage
	Close() error
}

// move is what one check works with.
type move struct {
	*rig        // of the target
	source *rig // of the source
	export func() SourceExport
	target broker.Store
	policy broker.Policy
}

// migrationCheck is one demand on a pair of stores.
type migrationCheck struct {
	name    string
	perform func(m *move)
}

var migrationChecks = []migrationCheck{
	{"I2_EverythingMoves", checkMovesAll},
	{"I2_OrderAndCountsMove", checkMovesOrder},
	{"I6_KeysMove", checkMovesKeys},
	{"I6_AKeyThatWasUsedInBoth", checkMovesUsedKey},
	{"I7_DeadlinesThatPassedEndThere", checkMovesDeadlines},
	{"BehindWhatIsThere", checkMovesBehind},
	{"ACrashedOwnerCounts", checkMovesSuspects},
	{"LimitsDoNotRefuse", checkMovesLimits},
	{"AgainDoesNothing", checkMovesAgain},
	{"GoesOnAfterACrash", checkMovesCrash},
	{"ElsewhereIsRefused", checkMovesElsewhere},
	{"WhatIsLostIsCopiedAgain", checkMovesLost},
	{"WhatDiffersIsRefused", checkMovesDiffers},
	{"WhatWentOnIsRight", checkMovesWentOn},
}

// RunMigration performs every check on pairs of stores.
func RunMigration(t *testing.T, h MigrationHarness) {
	for _, c := range migrationChecks {
		t.Run(c.name, func(t *testing.T) {
			b, export := h.Source(t)
			m := &move{
				rig: &rig{TB: t, h: h.Target, b: h.Target.Backend(t)}, export: export,
				source: &rig{TB: t, h: StoreHarness{Backend: func(testing.TB) StoreBackend { return b }}, b: b},
				policy: broker.Policy{MaxPending: 100_000},
			}
			m.target = m.open(m.policy)
			c.perform(m)
			if h.Audit != nil {
				h.Audit(t, m.target)
			}
		})
	}
}

// run migrates with importer in the target's place.
func (m *move) run(to broker.Importer) (broker.Moved, error) {
	m.Helper()
	from := m.export()
	defer func() { _ = from.Close() }()
	return broker.Migration{From: from, To: to, Name: "there", Channels: channels, Patience: patience}.Run(m.ctx())
}

// migrate migrates, which must succeed.
func (m *move) migrate() broker.Moved {
	m.Helper()
	moved, err := m.run(m.target.(broker.Importer))
	if err != nil {
		m.Fatalf("migrating: %v", err)
	}
	return moved
}

// fill stores something of everything, and returns the MIDs by what became of them.
func (m *move) fill() map[string][]string {
	m.Helper()
	s := m.source.open(m.policy)
	mids := make(map[string][]string)
	for _, id := range []string{"01", "02", "03"} {
		for i := range 150 { // more than one call takes
			msg := messageIn("c", id, fmt.Sprintf("key-%d", i), fmt.Sprint(i))
			msg.Ref, msg.Source, msg.Headers = fmt.Sprint("order ", i%7), "route", map[string]string{"X-A": "b"}
			m.source.store(s, msg, broker.AppendOptions{Fingerprint: []byte{byte(i)}, TTL: time.Hour})
			mids["all"] = append(mids["all"], msg.MID)
		}
		h := m.source.attach(s, id)
		dead := outcome(h.page[2], broker.StateDead)
		dead.Detail, dead.Reply = "0", []byte("0")
		acked := outcome(h.page[0], broker.StateAcked)
		acked.Reply = []byte(`{"ok":1}`)
		tried := outcome(h.page[3], broker.StateStored)
		tried.Failures, tried.Deaths, tried.NotBefore = 2, 1, time.UnixMilli(s.Now().Add(time.Hour).UnixMilli())
		h.settle(acked, outcome(h.page[1], broker.StateWritten), dead, tried)
		mids["acked"] = append(mids["acked"], h.page[0].Message.MID)
		mids["written"] = append(mids["written"], h.page[1].Message.MID)
		mids["dead"] = append(mids["dead"], h.page[2].Message.MID)
		mids["tried"] = append(mids["tried"], h.page[3].Message.MID)
		h.detach()
	}
	_ = s.Close()
	return mids
}
