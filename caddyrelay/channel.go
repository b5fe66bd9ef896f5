package caddyrelay

import (
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/hub"
)

// The delivery policies.
const (
	atMostOnce  = "at_most_once"
	atLeastOnce = "at_least_once"
)

// Channel is a named class of messages with one delivery policy. Fields from Retention on belong
// to at_least_once.
type Channel struct {
	// What is promised about delivery.
	//
	// at_least_once, the default: a message that was accepted is stored, and pushed until the
	// back end acknowledges it, its deadline passes or it becomes a dead letter. One
	// socket at a time has an ID; one that registers later takes it over.
	//
	// at_most_once is plain publish and subscribe: whoever listens at the moment gets
	// the message, and nothing is stored. Several sockets may share an ID, and the ID
	// "*" reaches every socket of the channel.
	Delivery string `json:"delivery,omitempty"`

	// The name of the Redis publish/subscribe channel of an at_most_once channel, or of one with
	// classic. Default: the channel's own name, without any prefix, so that programs that know
	// nothing of the relay share it. The embedded broker takes it as the name for listeners on the bus.
	RedisChannel string `json:"redis_channel,omitempty"`

	// For an at_least_once channel on Redis, while programs that publish or subscribe on the Redis
	// channel redis_channel are replaced by the relay, one by one:
	//
	// in: what they publish is stored, as if it had been posted. One node does it at a time.
	//
	// out: what is posted here is also published there, at most once, after it was stored.
	//
	// both: in and out. What was published by out is never taken in.
	//
	// off, the default: neither.
	Classic string `json:"classic,omitempty"`

	// How long a message waits for its destination. Then it becomes a dead letter, with its
	// body. Default 72h.
	Retention caddy.Duration `json:"retention,omitempty"`

	// How long an idempotency key is remembered. Default 96h.
	Dedupe caddy.Duration `json:"dedupe,omitempty"`

	// How long a finished message stays known to relay_status. Default 24h.
	Receipts caddy.Duration `json:"receipts,omitempty"`

	// How long a socket may be silent about a message that was pushed to it, until it is pushed
	// again. Default 30s.
	AckTimeout caddy.Duration `json:"ack_timeout,omitempty"`

	// How many times a message may be refused (nack) or not answered in time, until it becomes a
	// dead letter. Sockets that end do not count. Default 20.
	MaxAttempts int `json:"max_attempts,omitempty"`

	// How many sockets may end while a message is the first in flight on them, until it
	// becomes a dead letter: it may be what crashes the back end. Default 100.
	CrashLimit int `json:"crash_limit,omitempty"`

	// What happens when a socket registers under an ID that another socket has, on whichever node.
	//
	// takeover, the default: the new one has it from then on, and the old one is told goodbye. Two that
	// take it from each other again and again are slowed down.
	//
	// reject: the new one is refused, until the old one ends. If that one's node has died, that takes
	// up to 15s with Redis.
	//
	// standby: the new one is registered and waits. When the old one ends, the one that has waited
	// longest has the ID.
	//
	// On an at_most_once channel all of them get every message; broadcast says so.
	OnDuplicateID string `json:"on_duplicate_id,omitempty"`

	// strict, the default: a message that is to be pushed again holds up those behind it.
	// relaxed: later ones pass it.
	Order string `json:"order,omitempty"`

	// How many unfinished messages one destination may have, and how many bytes of bodies. One
	// more is answered 429. Defaults 10000 and 67108864.
	MaxPending      int   `json:"max_pending,omitempty"`
	MaxPendingBytes int64 `json:"max_pending_bytes,omitempty"`

	// The same for all destinations of the channel together; on Redis this may be exceeded a
	// little. Defaults 1000000 and 4294967296.
	MaxChannelPending int   `json:"max_channel_pending,omitempty"`
	MaxChannelBytes   int64 `json:"max_channel_bytes,omitempty"`

	// How many messages the channel knows at once, finished or not. One more is answered 503.
	// See the documentation for what a million takes. Default 10000000.
	MaxRecords int `json:"max_records,omitempty"`

	// How many dead letters are kept. While there are as many, publishes are answered 429:
	// somebody should look. Default 10000.
	MaxDeadLetters int `json:"max_dead_letters,omitempty"`

	// How long a dead letter is kept. Default 720h (30 days).
	DeadLetterRetention caddy.Duration `json:"dead_letter_retention,omitempty"`

	// What an accepted message must have proven: memory, aof_everysec, aof_always, fsync,
	// replicas:N, or two of them joined with +. When it cannot be proven in time the
	// answer is 503 with "stored_unconfirmed". Default: what the broker gives.
	Durability string `json:"durability,omitempty"`

	// Store messages even where a restart or a full memory forgets them: in a Redis without
	// append-only file, or one that evicts keys. Without this such a Redis is refused.
	AllowVolatile bool `json:"allow_volatile,omitempty"`
}

var channelName = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,64}$`)

// stores reports whether messages of the channel are stored.
func (c *Channel) stores() bool { return c.Delivery != atMostOnce }

// check says what is wrong with the channel's configuration, and what to write.
func (c *Channel) check(name string) error {
	if !channelName.MatchString(name) {
		return fmt.Errorf("channel %q: a name has 1 to 64 letters, digits, or any of _ . : -", name)
	}
	err := func() error {
		switch c.Delivery {
		case "", atLeastOnce:
			return c.checkStored()
		case atMostOnce:
			return c.checkUnstored()
		}
		return fmt.Errorf("unknown delivery %q: write \"delivery at_least_once\" or \"delivery at_most_once\"", c.Delivery)
	}()
	if err != nil {
		return fmt.Errorf("channel %s: %w", name, err)
	}
	return nil
}

func (c *Channel) checkStored() error {
	if err := c.checkClassic(); err != nil {
		return err
	}
	if c.Order != "" && c.Order != "strict" && c.Order != "relaxed" {
		return fmt.Errorf("unknown order %q: write strict or relaxed", c.Order)
	}
	if _, known := attachModes[c.OnDuplicateID]; !known {
		return fmt.Errorf("unknown on_duplicate_id %q: write takeover, reject or standby", c.OnDuplicateID)
	}
	for _, v := range c.settings() {
		if v.value < 0 {
			return fmt.Errorf("%s is negative: write a positive value, or leave it out for the default", v.name)
		}
	}
	if err := broker.Durability(c.Durability).Check(); err != nil {
		return err
	}
	// A sender tries again for about as long as the message may wait: were the key forgotten
	// earlier, the payment would be stored twice.
	p := c.policy()
	if p.Dedupe < p.Retention && c.Dedupe != 0 {
		return fmt.Errorf("dedupe %s is shorter than retention %s, so a message could be stored again while the first "+
			"still waits: write a longer dedupe", p.Dedupe, p.Retention)
	}
	return nil
}

// attachModes are the words of on_duplicate_id.
var attachModes = map[string]broker.AttachMode{
	"": broker.Takeover, "takeover": broker.Takeover, "reject": broker.Reject, "standby": broker.Standby,
}

func (c *Channel) checkUnstored() error {
	if c.Classic != "" && c.Classic != classicOff {
		return errors.New("classic belongs to delivery at_least_once, as an at_most_once channel is on the Redis channel itself: " +
			"take it out, or write \"delivery at_least_once\"")
	}
	if c.OnDuplicateID != "" && c.OnDuplicateID != "broadcast" {
		return fmt.Errorf("on_duplicate_id %s belongs to delivery at_least_once; on an at_most_once channel all sockets of an ID "+
			"get every message: take it out, or write \"on_duplicate_id broadcast\"", c.OnDuplicateID)
	}
	for _, v := range c.settings() {
		if v.value != 0 {
			return fmt.Errorf("%s belongs to delivery at_least_once: take it out, or write \"delivery at_least_once\"", v.name)
		}
	}
	return nil
}

// setting is one number of the channel's, by its name in the configuration.
type setting struct {
	name  string
	value int64
}

// settings lists what belongs to at_least_once.
func (c *Channel) settings() []setting {
	flag, words := int64(0), int64(len(c.Order)+len(c.Durability))
	if c.AllowVolatile {
		flag = 1
	}
	return []setting{
		{"retention", int64(c.Retention)}, {"dedupe", int64(c.Dedupe)}, {"receipts", int64(c.Receipts)},
		{"ack_timeout", int64(c.AckTimeout)}, {"max_attempts", int64(c.MaxAttempts)}, {"crash_limit", int64(c.CrashLimit)},
		{"max_pending", int64(c.MaxPending)}, {"max_pending_bytes", c.MaxPendingBytes},
		{"max_channel_pending", int64(c.MaxChannelPending)}, {"max_channel_bytes", c.MaxChannelBytes},
		{"max_records", int64(c.MaxRecords)}, {"max_dead_letters", int64(c.MaxDeadLetters)},
		{"dead_letter_retention", int64(c.DeadLetterRetention)}, {"order or durability", words}, {"allow_volatile", flag},
	}
}

// policy is the channel as the store knows it.
func (c *Channel) policy() broker.Policy {
	p := broker.Policy{
		Retention: time.Duration(c.Retention), Dedupe: time.Duration(c.Dedupe), Receipts: time.Duration(c.Receipts),
		DeadRetention: time.Duration(c.DeadLetterRetention),
		MaxPending:    c.MaxPending, MaxPendingBytes: c.MaxPendingBytes,
		MaxChannelPending: c.MaxChannelPending, MaxChannelBytes: c.MaxChannelBytes,
		MaxRecords: c.MaxRecords, MaxDead: c.MaxDeadLetters,
		Durability: broker.Durability(c.Durability), AllowVolatile: c.AllowVolatile,
	}
	if p.Dedupe == 0 { // whoever raises retention need not think of it
		p.Dedupe = max(96*time.Hour, p.Retention+24*time.Hour)
	}
	return p.WithDefaults()
}

// delivery is the channel as the hub knows it.
func (c *Channel) delivery(store broker.Store) hub.Delivery {
	return hub.Delivery{
		Store: store, AckTimeout: time.Duration(c.AckTimeout), MaxAttempts: c.MaxAttempts, CrashLimit: c.CrashLimit,
		Relaxed: c.Order == "relaxed", Mode: attachModes[c.OnDuplicateID],
	}
}

// topic is the name of the channel at the broker, for publish and subscribe.
func (c *Channel) topic(name string) string {
	if c.RedisChannel != "" {
		return c.RedisChannel
	}
	return name
}
