package caddyrelay

import (
	"errors"
	"fmt"

	"github.com/caddyserver/caddy/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caddyrelay/relay/broker/redisbroker"
)

// registerMetrics registers the node's counts in the registry of ctx's configuration. Caddy makes a
// new registry for each configuration; the counts are the node's, so they go on.
func registerMetrics(ctx caddy.Context, n *node) error {
	err := ctx.GetMetricsRegistry().Register(&collector{node: n})
	if already := (prometheus.AlreadyRegisteredError{}); err != nil && !errors.As(err, &already) {
		return fmt.Errorf("registering the relay's metrics: %w", err)
	}
	return nil
}

// collector reads the counts when somebody scrapes, so that counting itself costs one atomic add.
type collector struct{ node *node }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("caddy_relay_"+name, help, labels, nil)
}

var (
	descPublished = desc("published_total", "Messages that the broker took from this node's publishers.", "channel")
	descRefused   = desc("refused_total", "Requests that were not published, by error.", "channel", "error")
	descInvalid   = desc("skipped_total", "Publications heard that are not for sockets.", "channel")
	descPushed    = desc("pushed_total", "Messages handed to the kernel for a socket.", "channel")
	descDropped   = desc("dropped_total", "Messages for a socket here that were not written to it, by reason.", "channel", "reason")
	descSessions  = desc("sessions", "Registered sockets.", "channel")
	descSockets   = desc("sockets", "Open sockets, registered or not.")
	descEnded     = desc("ended_total", "Sockets that ended, by reason.", "reason")
	descProven    = desc("channel_proven", "1 while this node is known to hear the channel.", "channel")
	descLost      = desc("broker_lost_total", "Times that the broker was lost after it had been heard.")
	descRoundTrip = desc("broker_probe_seconds", "How long the last probe took through the broker and back; 0 if there is none.")
	descMissed    = desc("listener_dropped_total", "Publications that a slow listener on the bus missed.")
	descPanics    = desc("listener_panics_total", "Panics of listeners on the bus.")
)

// Describe implements [prometheus.Collector].
func (c *collector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		descPublished, descRefused, descInvalid, descPushed, descDropped, descSessions, descSockets, descEnded,
		descProven, descLost, descRoundTrip, descMissed, descPanics,
	} {
		out <- d
	}
}

// Collect implements [prometheus.Collector].
func (c *collector) Collect(out chan<- prometheus.Metric) {
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v int, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, float64(v), labels...)
	}
	var names []string
	var redis redisbroker.Stats
	if g := c.node.active.Load(); g != nil {
		if b, ok := g.broker.(*redisbroker.Broker); ok {
			redis = b.Stats()
		}
		for name, f := range g.routes {
			names = append(names, name)
			proven := 0
			if f.err() == nil {
				proven = 1
			}
			gauge(descProven, proven, name)
		}
	}
	counter(descLost, redis.Lost)
	out <- prometheus.MustNewConstMetric(descRoundTrip, prometheus.GaugeValue, redis.RoundTrip.Seconds())
	st := c.node.hub.Stats(names...)
	gauge(descSockets, st.Sockets)
	for reason, v := range st.Ended {
		counter(descEnded, v, reason.String())
	}
	for name, ch := range st.Channels {
		gauge(descSessions, ch.Sessions, name)
		counter(descPushed, ch.Pushed, name)
		for reason, v := range ch.Dropped {
			counter(descDropped, v, name, reason.String())
		}
		cc := c.node.counts.channel(name)
		counter(descPublished, cc.published.Load(), name)
		counter(descInvalid, cc.invalid.Load(), name)
		for r := range refusals {
			counter(descRefused, cc.refused[r].Load(), name, r.String())
		}
	}
	counter(descMissed, c.node.counts.listenerDropped.Load())
	counter(descPanics, c.node.counts.listenerPanics.Load())
}
