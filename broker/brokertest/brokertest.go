// Package brokertest is the contract of package broker as tests: one suite that every broker runs.
//
// A broker's own test calls [Run] with a [Harness] that makes its brokers. Each check can fail: the suite's
// own test gives it brokers with one fault each.
package brokertest

import (
	"testing"

	"github.com/caddyrelay/relay/broker"
)

// Harness makes what the checks need, and says what the broker under test can do.
type Harness struct {
	// Backend makes what the brokers of one check have in common, such as a server that runs.
	Backend func(t testing.TB) Backend

	// Nodes says that brokers of one backend hear each other.
	Nodes bool

	// Outages says that Backend.Stop and Backend.Start work.
	Outages bool
}

// Backend is what the brokers of one check have in common.
type Backend struct {
	// Open returns the broker of another node. Whoever called it closes it.
	Open func() broker.Broker

	// Stop takes away what brokers depend on, as a crash does. Start brings it back. A broker of the
	// backend should notice each within a second or so, or the suite is slow.
	Stop, Start func()
}

// check is one demand of the contract.
type check struct {
	name    string
	needs   need
	perform func(t testing.TB, b Backend)
}

// need says what a broker must be able to do for a check to make sense.
type need int

const (
	nothing need = iota
	nodes
	outages
)

// checks are all demands. Those of package broker's promises have the number in their name.
var checks = []check{
	{"I3_OrderOfEachCaller", nothing, orderOfEachCaller},
	{"EverySubscriptionGetsEverything", nothing, everySubscription},
	{"ChannelsAreApart", nothing, channelsAreApart},
	{"NobodyListens", nothing, nobodyListens},
	{"SinkChangesSubscriptions", nothing, sinkChangesSubscriptions},
	{"NothingBeginsAfterClose", nothing, nothingBeginsAfterClose},
	{"SubscribesAgain", nothing, subscribesAgain},
	{"I11_PanickingSink", nothing, panickingSink},
	{"PayloadIsUnchanged", nothing, payloadIsUnchanged},
	{"MessageComesBack", nothing, messageComesBack},
	{"I8_CloseDeliversWhatWasAccepted", nothing, closeDelivers},
	{"ClosedBroker", nothing, closedBroker},
	{"CancelledContext", nothing, cancelledContext},
	{"NodesHearEachOther", nodes, nodesHearEachOther},
	{"I8_CloseDeliversToOtherNodes", nodes, closeDeliversElsewhere},
	{"I9_Outage", outages, outage},
	{"AbsentAtStart", outages, absentAtStart},
	{"SubscribedDuringAnOutage", outages, subscribedDuringAnOutage},
	{"CloseDuringAnOutage", outages, closeDuringAnOutage},
}

// Run performs every check that makes sense for the brokers of h, each with a backend of its own.
func Run(t *testing.T, h Harness) {
	for _, c := range checks {
		if h.can(c.needs) {
			t.Run(c.name, func(t *testing.T) { c.perform(t, h.Backend(t)) })
		}
	}
}

func (h Harness) can(n need) bool {
	switch n {
	case nodes:
		return h.Nodes
	case outages:
		return h.Outages
	}
	return true
}
