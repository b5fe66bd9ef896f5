package caddyrelay

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/dustin/go-humanize"

	"github.com/caddyrelay/relay/internal/wire"
)

func init() {
	httpcaddyfile.RegisterGlobalOption("relay", parseGlobal)
}

// parseGlobal parses the global option. Several relay blocks are one. Syntax:
//
//	relay {
//		broker <name> { … }
//		channel <name> { … }
//		max_sockets      <number>
//		max_generations  <number>
//		reconnect_spread <duration>
//		shutdown_grace   <duration>
//		drain_rate       <number>
//	}
func parseGlobal(d *caddyfile.Dispenser, existing any) (any, error) {
	app := &App{Channels: make(map[string]*Channel)}
	if before, ok := existing.(httpcaddyfile.App); ok {
		if err := json.Unmarshal(before.Value, app); err != nil {
			return nil, d.WrapErr(err)
		}
	}
	if err := app.UnmarshalCaddyfile(d); err != nil {
		return nil, err
	}
	return httpcaddyfile.App{Name: "relay", Value: caddyconfig.JSON(app, nil)}, nil
}

// UnmarshalCaddyfile implements [caddyfile.Unmarshaler]. See parseGlobal.
func (a *App) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the option's name
	begin := d.Token()
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		var err error
		switch option := d.Val(); option {
		case "broker":
			err = a.unmarshalBroker(d)
		case "channel":
			err = a.unmarshalChannel(d)
		case "max_sockets":
			err = number(d, &a.MaxSockets)
		case "max_generations":
			err = number(d, &a.MaxGenerations)
		case "reconnect_spread":
			err = duration(d, &a.ReconnectSpread)
		case "drain_rate":
			err = number(d, &a.DrainRate)
		case "shutdown_grace":
			err = duration(d, &a.ShutdownGrace)
		default:
			err = unknown(d, "relay", "broker", "channel", "drain_rate", "max_generations", "max_sockets", "reconnect_spread", "shutdown_grace")
		}
		if err != nil {
			return err
		}
	}
	return at(begin, a.checkTopics())
}

func (a *App) unmarshalBroker(d *caddyfile.Dispenser) error {
	if a.BrokerRaw != nil {
		return d.Err("the relay has a broker already: write broker once")
	}
	if !d.NextArg() {
		return d.Errf("broker: which one? write \"broker embedded\" or \"broker redis { … }\"")
	}
	name := d.Val()
	id := "relay.brokers." + name
	if _, err := caddy.GetModule(id); err != nil {
		var known []string
		for _, m := range caddy.GetModules("relay.brokers") {
			known = append(known, m.ID.Name())
		}
		slices.Sort(known)
		return d.Errf("unknown broker %q: this binary has %s", name, strings.Join(known, ", "))
	}
	module, err := caddyfile.UnmarshalModule(d, id)
	if err != nil {
		return err
	}
	a.BrokerRaw = caddyconfig.JSONModuleObject(module, "type", name, nil)
	return nil
}

// UnmarshalCaddyfile implements [caddyfile.Unmarshaler]. Syntax:
//
//	embedded {
//		path <file>
//	}
func (b *EmbeddedBroker) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the broker's name
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if d.Val() != "path" {
			return unknown(d, "broker embedded", "path")
		}
		if err := word(d, &b.Path); err != nil {
			return err
		}
	}
	return nil
}

// The rest are the words that all of the relay's directives are made of.

// at adds where the Caddyfile has the directive that err is about, as the dispenser does for the token
// that it is at.
func at(begin caddyfile.Token, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w, at %s:%d", err, begin.File, begin.Line)
}

// unknown says what a block may hold.
func unknown(d *caddyfile.Dispenser, block string, known ...string) error {
	return d.Errf("%s has no option %q: it has %s", block, d.Val(), strings.Join(known, ", "))
}

// word parses "<option> <word>".
func word(d *caddyfile.Dispenser, into *string) error {
	option := d.Val()
	if *into != "" {
		return d.Errf("%s is there already: write it once", option)
	}
	if !d.Args(into) {
		return d.Errf("%s: one value is expected", option)
	}
	return nil
}

// number parses "<option> <number>".
func number(d *caddyfile.Dispenser, into *int) error {
	var text string
	option := d.Val()
	if err := word(d, &text); err != nil {
		return err
	}
	return parseCount(d, option, text, into)
}

func parseCount(d *caddyfile.Dispenser, option, text string, into *int) error {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		return d.Errf("%s: %q is not a positive whole number", option, text)
	}
	*into = n
	return nil
}

// duration parses "<option> <duration>".
func duration(d *caddyfile.Dispenser, into *caddy.Duration) error {
	var text string
	option := d.Val()
	if err := word(d, &text); err != nil {
		return err
	}
	v, err := caddy.ParseDuration(text)
	if err != nil || v <= 0 {
		return d.Errf("%s: %q is not a positive duration, such as 30s", option, text)
	}
	*into = caddy.Duration(v)
	return nil
}

// size parses a number of bytes, such as 64KiB.
func size(d *caddyfile.Dispenser, option, text string) (int, error) {
	n, err := humanize.ParseBytes(text)
	if err != nil || n < 1 || n > 1<<30 {
		return 0, d.Errf("%s: %q is not a size from 1 byte to 1GiB, such as 64KiB", option, text)
	}
	return int(n), nil
}

// largeSize is size for stores.
func largeSize(d *caddyfile.Dispenser, option, text string) (int64, error) {
	n, err := humanize.ParseBytes(text)
	if err != nil || n < 1 || n > 1<<50 {
		return 0, d.Errf("%s: %q is not a size from 1 byte to 1PiB, such as 64MiB", option, text)
	}
	return int64(n), nil
}

// sizeOption parses "<option> <size>".
func sizeOption(d *caddyfile.Dispenser, into *int) error {
	var text string
	option := d.Val()
	err := word(d, &text)
	if err == nil {
		*into, err = size(d, option, text)
	}
	return err
}

func parseFraming(text string) (wire.Framing, error) {
	if text == "" {
		return wire.Framing{}, nil
	}
	return wire.ParseFraming(strings.Fields(text)...)
}

// channelList names the channels, for errors.
func (a *App) channelList() string {
	return strings.Join(slices.Sorted(maps.Keys(a.Channels)), ", ")
}
