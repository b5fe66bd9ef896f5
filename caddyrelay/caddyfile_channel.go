package caddyrelay

import (
	"maps"
	"slices"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// unmarshalChannel parses one channel. Syntax:
//
//	channel <name> {
//		delivery              at_least_once | at_most_once
//		redis_channel         <name>
//		classic               in | out | both | off
//		retention             <duration>
//		dedupe                <duration>
//		receipts              <duration>
//		ack_timeout           <duration>
//		max_attempts          <number>
//		crash_limit           <number>
//		order                 strict | relaxed
//		max_pending           <number> [<size>]
//		max_channel_pending   <number> [<size>]
//		max_records           <number>
//		max_dead_letters      <number>
//		dead_letter_retention <duration>
//		durability            <level>
//		allow_volatile
//	}
func (a *App) unmarshalChannel(d *caddyfile.Dispenser) error {
	var name string
	if !d.Args(&name) {
		return d.Errf("channel: one name is expected, such as \"channel pay_mq_channel { … }\"")
	}
	if a.Channels[name] != nil {
		return d.Errf("channel %s is there already: write it once", name)
	}
	c := new(Channel)
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := c.unmarshalOption(d); err != nil {
			return err
		}
	}
	if err := c.check(name); err != nil {
		return d.WrapErr(err)
	}
	a.Channels[name] = c
	return nil
}

func (c *Channel) unmarshalOption(d *caddyfile.Dispenser) error {
	option := d.Val()
	words := map[string]*string{
		"delivery": &c.Delivery, "redis_channel": &c.RedisChannel, "order": &c.Order, "durability": &c.Durability,
		"classic":         &c.Classic,
		"on_duplicate_id": &c.OnDuplicateID,
	}
	durations := map[string]*caddy.Duration{
		"retention": &c.Retention, "dedupe": &c.Dedupe, "receipts": &c.Receipts, "ack_timeout": &c.AckTimeout,
		"dead_letter_retention": &c.DeadLetterRetention,
	}
	numbers := map[string]*int{
		"max_attempts": &c.MaxAttempts, "crash_limit": &c.CrashLimit, "max_records": &c.MaxRecords,
		"max_dead_letters": &c.MaxDeadLetters,
	}
	switch {
	case words[option] != nil:
		return word(d, words[option])
	case durations[option] != nil:
		return duration(d, durations[option])
	case numbers[option] != nil:
		return number(d, numbers[option])
	case option == "max_pending":
		return countAndSize(d, &c.MaxPending, &c.MaxPendingBytes)
	case option == "max_channel_pending":
		return countAndSize(d, &c.MaxChannelPending, &c.MaxChannelBytes)
	case option == "allow_volatile":
		return flag(d, &c.AllowVolatile)
	}
	known := slices.Collect(maps.Keys(words))
	known = slices.AppendSeq(known, maps.Keys(durations))
	known = slices.AppendSeq(known, maps.Keys(numbers))
	known = append(known, "max_pending", "max_channel_pending", "allow_volatile")
	slices.Sort(known)
	return unknown(d, "channel", known...)
}

// countAndSize parses "<option> <number> [<size>]".
func countAndSize(d *caddyfile.Dispenser, count *int, bytes *int64) error {
	option, args := d.Val(), d.RemainingArgs()
	if len(args) < 1 || len(args) > 2 || *count != 0 {
		return d.Errf("%s: a number of messages is expected, and perhaps a size, once: %s 10000 64MiB", option, option)
	}
	if err := parseCount(d, option, args[0], count); err != nil {
		return err
	}
	if len(args) == 2 {
		n, err := largeSize(d, option, args[1])
		if err != nil {
			return err
		}
		*bytes = n
	}
	return nil
}
