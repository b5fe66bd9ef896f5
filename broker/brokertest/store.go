package brokertest

import (
	"runtime/debug"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// StoreHarness makes what the checks of [RunStore] need, and says what the store under test can do.
type StoreHarness struct {
	// Backend makes what the handles of one check have in common: an empty store.
	Backend func(t testing.TB) StoreBackend

	// Nodes says that several handles may be open at once, and hear of each other.
	Nodes bool

	// Outages says that StoreBackend.Stop and Start work.
	Outages bool

	// Volatile says that the store promises nothing across a restart: policies allow that, and the suite too.
	Volatile bool

	// Durability is what appends must name at least. Unproven is a level that the store cannot prove; if it is
	// empty, what happens then is not checked.
	Durability, Unproven broker.Durability
}

// StoreBackend is what the handles of one check have in common.
type StoreBackend struct {
	// Open returns another node's handle; without Nodes, the one handle, after the one before was closed or crashed.
	// It need not be connected yet. The suite closes it, crashed or not.
	Open func() broker.Store

	// Crash ends the process that has this handle, without a warning: nothing is detached, and what is not durable is
	// lost. If it is nil, the handle is closed.
	Crash func(broker.Store)

	// Stop takes away what handles depend on, as a crash does. Start brings it back. Handles should notice within a
	// second or so, or the suite is slow.
	Stop, Start func()

	// Advance moves the clock of the store forth, or back if d is negative. If it is nil, the suite waits for short
	// times, and does not check long ones.
	Advance func(d time.Duration)

	// Mute has the notices between handles and to owners lost while it is on, as far as the store has any. If it
	// is nil, that is not checked.
	Mute func(on bool)
}

// storeCheck is one demand of the contract of [broker.Store].
type storeCheck struct {
	name    string
	needs   storeNeed
	perform func(r *rig)
}

// run performs the check. A store that answers with too little may have it panic, which must not end the others.
func (c storeCheck) run(r *rig) {
	defer func() {
		if v := recover(); v != nil {
			r.Errorf("the check panicked: %v\n%s", v, debug.Stack())
		}
	}()
	c.perform(r)
}

// storeNeed says what a store must be able to do for a check to make sense.
type storeNeed func(StoreHarness, StoreBackend) bool

var (
	noNeed    storeNeed
	needNodes storeNeed = func(h StoreHarness, _ StoreBackend) bool { return h.Nodes }
	needDown  storeNeed = func(h StoreHarness, _ StoreBackend) bool { return h.Outages }
	needKept  storeNeed = func(h StoreHarness, _ StoreBackend) bool { return !h.Volatile }
	needUnmet storeNeed = func(h StoreHarness, _ StoreBackend) bool { return h.Unproven != "" }
	needClock storeNeed = func(_ StoreHarness, b StoreBackend) bool { return b.Advance != nil }
	needMute  storeNeed = func(_ StoreHarness, b StoreBackend) bool { return b.Mute != nil }
)

// storeChecks are all demands. Those of package broker's promises have the number in their name.
func storeChecks() (all []storeCheck) {
	for _, some := range [][]storeCheck{
		appendChecks, keyChecks, fenceChecks, settleChecks, deadlineChecks, cancelChecks,
		recordChecks, deadChecks, limitChecks, noticeChecks, offerChecks, lineChecks, presenceChecks, lifeChecks,
	} {
		all = append(all, some...)
	}
	return all
}

// RunStore performs every check that makes sense for the stores of h, each with a backend of its own.
func RunStore(t *testing.T, h StoreHarness) {
	for _, c := range storeChecks() {
		t.Run(c.name, func(t *testing.T) {
			b := h.Backend(t)
			if c.needs != nil && !c.needs(h, b) {
				t.Skip("the harness does not offer what this needs")
			}
			c.run(&rig{TB: t, h: h, b: b})
		})
	}
}
