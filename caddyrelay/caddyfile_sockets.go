package caddyrelay

import (
	"maps"
	"slices"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
)

// UnmarshalCaddyfileWith parses the tokens of a handler that serves sockets, which may have durations
// of its own as further options. Syntax:
//
//	relay <channel> {
//		framing       line | length 2 | length 4
//		protocol      auto | plain | json
//		auth          none | token <placeholder> [<placeholder> …]
//		hello_timeout <duration>
//		write_timeout <duration>
//		heartbeat     <duration>
//		max_frame     <size>
//		max_message   <size>
//		queue         <messages> [<size>]
//		ack           none | line | match <regexp>
//		ignore        <regexp>
//		window        <number>
//	}
func (s *Sockets) UnmarshalCaddyfileWith(d *caddyfile.Dispenser, further map[string]*caddy.Duration) error {
	d.Next() // the handler's name
	begin := d.Token()
	if !d.Args(&s.Channel) {
		return d.Errf("relay: one channel is expected, such as \"relay pay_mq_channel { … }\"")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		if into := further[d.Val()]; into != nil {
			err = duration(d, into)
		} else {
			err = s.unmarshalOption(d, slices.Collect(maps.Keys(further)))
		}
		if err != nil {
			return err
		}
	}
	_, err := s.endpoint()
	return at(begin, err)
}

func (s *Sockets) unmarshalOption(d *caddyfile.Dispenser, further []string) error {
	switch d.Val() {
	case "framing":
		return s.unmarshalFraming(d)
	case "protocol":
		return word(d, &s.Protocol)
	case "auth":
		return s.unmarshalAuth(d)
	case "hello_timeout":
		return duration(d, &s.HelloTimeout)
	case "write_timeout":
		return duration(d, &s.WriteTimeout)
	case "heartbeat":
		return duration(d, &s.Heartbeat)
	case "max_frame":
		return sizeOption(d, &s.MaxFrame)
	case "max_message":
		return sizeOption(d, &s.MaxMessage)
	case "queue":
		return s.unmarshalQueue(d)
	case "ack":
		return s.unmarshalAck(d)
	case "ignore":
		return word(d, &s.Ignore)
	case "window":
		return number(d, &s.Window)
	}
	known := append(further, "ack", "auth", "framing", "heartbeat", "hello_timeout", "ignore", "max_frame", "max_message",
		"protocol", "queue", "window", "write_timeout")
	slices.Sort(known)
	return unknown(d, "relay", known...)
}

func (s *Sockets) unmarshalFraming(d *caddyfile.Dispenser) error {
	if s.Framing != "" {
		return d.Err("framing is there already: write it once")
	}
	s.Framing = strings.Join(d.RemainingArgs(), " ")
	if s.Framing == "" {
		return d.Err("framing: which one? write \"framing line\" or \"framing length 4\"")
	}
	if _, err := parseFraming(s.Framing); err != nil {
		return d.WrapErr(err)
	}
	return nil
}

func (s *Sockets) unmarshalAuth(d *caddyfile.Dispenser) error {
	if s.Auth == nil {
		s.Auth = new(Auth)
	}
	args := d.RemainingArgs()
	switch {
	case len(args) == 1 && args[0] == "none":
		s.Auth.None = true
	case len(args) > 1 && args[0] == "token":
		s.Auth.Tokens = append(s.Auth.Tokens, args[1:]...)
	default:
		return d.Err("auth: write \"auth token {env.RELAY_TOKEN}\", or \"auth none\" if nobody else is on this network")
	}
	return nil
}

func (s *Sockets) unmarshalQueue(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 1 || len(args) > 2 {
		return d.Err("queue: a number of messages is expected, and perhaps a size: queue 1024 4MiB")
	}
	if err := parseCount(d, "queue", args[0], &s.QueueMessages); err != nil {
		return err
	}
	var err error
	if len(args) == 2 {
		s.QueueBytes, err = size(d, "queue", args[1])
	}
	return err
}

func (s *Sockets) unmarshalAck(d *caddyfile.Dispenser) error {
	if s.Ack != "" {
		return d.Err("ack is there already: write it once")
	}
	args := d.RemainingArgs()
	switch {
	case len(args) == 1 && args[0] != "match":
		s.Ack = args[0]
	case len(args) == 2 && args[0] == "match":
		s.Ack, s.AckMatch = args[0], args[1]
	default:
		return d.Err("ack: write \"ack none\", \"ack line\", or \"ack match\" and a regular expression")
	}
	return nil
}
