package caddyrelay

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("relay_status", parseStatus)
	httpcaddyfile.RegisterDirectiveOrder("relay_status", httpcaddyfile.Before, "respond")
}

func parseStatus(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	s := new(Status)
	if err := s.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	app := new(App)
	if global, ok := h.Option("relay").(httpcaddyfile.App); ok {
		if err := json.Unmarshal(global.Value, app); err != nil {
			return nil, err
		}
	}
	err := app.checkChannel(s.Channel)
	if err == nil {
		err = s.checkStored(app.Channels[s.Channel])
	}
	return s, at(s.begin, err)
}

// UnmarshalCaddyfile implements [caddyfile.Unmarshaler]. Syntax:
//
//	relay_status [<matcher>] <channel> {
//		mid    <text with placeholders>
//		ref    <text with placeholders>
//		token  <placeholder> [<placeholder> …]
//		open
//		reply
//		body
//		cancel
//	}
func (h *Status) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	h.begin = d.Token()
	if !d.Args(&h.Channel) {
		return d.Errf("relay_status: one channel is expected, such as \"relay_status /status/* pay_mq_channel { … }\"")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := h.unmarshalOption(d); err != nil {
			return err
		}
	}
	return at(h.begin, h.check())
}

func (h *Status) unmarshalOption(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "mid":
		return word(d, &h.MID)
	case "ref":
		return word(d, &h.Ref)
	case "token":
		args := d.RemainingArgs()
		if len(args) == 0 {
			return d.Errf("token: a placeholder is expected, such as {env.RELAY_TOKEN}")
		}
		h.Tokens = append(h.Tokens, args...)
		return nil
	case "open":
		return flag(d, &h.Open)
	case "reply":
		return flag(d, &h.Reply)
	case "body":
		return flag(d, &h.Body)
	case "cancel":
		return flag(d, &h.Cancel)
	}
	return unknown(d, "relay_status", "body", "cancel", "mid", "open", "ref", "reply", "token")
}
