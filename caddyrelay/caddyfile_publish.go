package caddyrelay

import (
	"encoding/json"
	"strconv"

	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() {
	httpcaddyfile.RegisterHandlerDirective("relay_publish", parsePublish)
	// Before respond, which answers everything that comes to it.
	httpcaddyfile.RegisterDirectiveOrder("relay_publish", httpcaddyfile.Before, "respond")
}

func parsePublish(h httpcaddyfile.Helper) (caddyhttp.MiddlewareHandler, error) {
	p := new(Publish)
	if err := p.UnmarshalCaddyfile(h.Dispenser); err != nil {
		return nil, err
	}
	// Provision would find this too, but could not say in which line it stands.
	app := new(App)
	if global, ok := h.Option("relay").(httpcaddyfile.App); ok {
		if err := json.Unmarshal(global.Value, app); err != nil {
			return nil, err
		}
	}
	err := app.checkChannel(p.Channel)
	if err == nil {
		err = p.checkStored(app.Channels[p.Channel].stores())
	}
	return p, at(p.begin, err)
}

// UnmarshalCaddyfile implements [caddyfile.Unmarshaler]. Syntax:
//
//	relay_publish [<matcher>] <channel> {
//		id           <text with placeholders>
//		token        <placeholder> [<placeholder> …]
//		open
//		max_body     <size>
//		timeout      <duration>
//		respond      <body> [<status>]
//		pass_through
//		ref             <selector>
//		header          <name> [<name> …]
//		idempotency_key <selector> | off
//		dedupe_compare  body | none | <selector> [<selector> …]
//		expires         <selector>
//		wait            <duration>
//		max_wait        <duration>
//		wait_body       reply
//		status_path     <path>
//	}
func (h *Publish) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the directive's name
	h.begin = d.Token()
	if !d.Args(&h.Channel) {
		return d.Errf("relay_publish: one channel is expected, such as \"relay_publish /pay/* pay_mq_channel { … }\"")
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := h.unmarshalOption(d); err != nil {
			return err
		}
	}
	return at(h.begin, h.check())
}

func (h *Publish) unmarshalOption(d *caddyfile.Dispenser) error {
	switch d.Val() {
	case "id":
		return word(d, &h.ID)
	case "token":
		args := d.RemainingArgs()
		if len(args) == 0 {
			return d.Errf("token: a placeholder is expected, such as {env.RELAY_TOKEN}")
		}
		h.Tokens = append(h.Tokens, args...)
	case "open":
		return flag(d, &h.Open)
	case "pass_through":
		return flag(d, &h.PassThrough)
	case "max_body":
		n := 0
		err := sizeOption(d, &n)
		h.MaxBody = int64(n)
		return err
	case "timeout":
		return duration(d, &h.Timeout)
	case "respond":
		return h.unmarshalRespond(d)
	default:
		return h.unmarshalStored(d)
	}
	return nil
}

// unmarshalStored parses what has to do with storing.
func (h *Publish) unmarshalStored(d *caddyfile.Dispenser) error {
	switch option := d.Val(); option {
	case "ref":
		return word(d, &h.Ref)
	case "header":
		args := d.RemainingArgs()
		if len(args) == 0 {
			return d.Err("header: names of request headers are expected, such as \"header X-Signature X-Timestamp\"")
		}
		h.Headers = append(h.Headers, args...)
	case "idempotency_key":
		return word(d, &h.IdempotencyKey)
	case "dedupe_compare":
		if h.DedupeCompare = d.RemainingArgs(); len(h.DedupeCompare) == 0 {
			return d.Err("dedupe_compare: write body, none, or selectors such as /amount")
		}
	case "expires":
		return word(d, &h.Expires)
	case "wait":
		return duration(d, &h.Wait)
	case "max_wait":
		return duration(d, &h.MaxWait)
	case "wait_body":
		var text string
		if err := word(d, &text); err != nil {
			return err
		}
		if text != "reply" {
			return d.Errf("wait_body: %q is not known: write \"wait_body reply\"", text)
		}
		h.WaitBodyReply = true
	case "status_path":
		return word(d, &h.StatusPath)
	default:
		return unknown(d, "relay_publish", "dedupe_compare", "expires", "header", "id", "idempotency_key", "max_body", "max_wait",
			"open", "pass_through", "ref", "respond", "status_path", "timeout", "token", "wait", "wait_body")
	}
	return nil
}

func (h *Publish) unmarshalRespond(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if len(args) < 1 || len(args) > 2 || h.Respond != nil {
		return d.Errf("respond: a body is expected, and perhaps a status, once: respond \"success\" 200")
	}
	h.Respond = &Respond{Body: args[0]}
	if len(args) == 2 {
		status, err := strconv.Atoi(args[1])
		if err != nil {
			return d.Errf("respond: %q is not a status", args[1])
		}
		h.Respond.Status = status
	}
	return nil
}

// flag parses an option that stands alone.
func flag(d *caddyfile.Dispenser, into *bool) error {
	option := d.Val()
	if d.NextArg() {
		return d.Errf("%s stands alone, without %q", option, d.Val())
	}
	*into = true
	return nil
}

// Interface guard
var _ caddyfile.Unmarshaler = (*Publish)(nil)
