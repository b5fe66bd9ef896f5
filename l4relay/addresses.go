package l4relay

import (
	"encoding/json"

	"github.com/caddyserver/caddy/v2"
	"github.com/mholt/caddy-l4/layer4"
)

// addresses returns where the layer-4 app that is being provisioned has the named handler with that
// channel, or nothing if the handler stands elsewhere (caddy-l4 can also wrap listeners of the HTTP
// app).
//
// A handler is not told which server it belongs to, but Caddy clears a route's raw JSON only after
// its handlers are provisioned. So the handler's own server can still be recognised
// while this runs; other servers with the channel either can too, or were when it was
// their handler's turn.
func addresses(ctx caddy.Context, handler, channel string) []caddy.NetworkAddress {
	var list []caddy.NetworkAddress
	for _, m := range ctx.Modules() {
		app, ok := m.(*layer4.App)
		if !ok {
			continue
		}
		for _, server := range app.Servers {
			if server == nil || !mentions(server.Routes, handler, channel) {
				continue
			}
			repl := caddy.NewReplacer()
			for _, text := range server.Listen {
				// caddy-l4 reports addresses that it cannot parse.
				if a, err := caddy.ParseNetworkAddress(repl.ReplaceAll(text, "")); err == nil {
					list = append(list, a)
				}
			}
		}
	}
	return list
}

// mentions reports whether the named handler with that channel is somewhere in the raw JSON of routes.
func mentions(routes layer4.RouteList, handler, channel string) bool {
	for _, route := range routes {
		for _, raw := range route.HandlersRaw {
			var v any
			if json.Unmarshal(raw, &v) == nil && hasHandler(v, handler, channel) {
				return true
			}
		}
	}
	return false
}

// hasHandler looks into handlers that hold routes of their own, too.
func hasHandler(v any, handler, channel string) bool {
	switch v := v.(type) {
	case map[string]any:
		if v["handler"] == handler && v["channel"] == channel {
			return true
		}
		for _, inner := range v {
			if hasHandler(inner, handler, channel) {
				return true
			}
		}
	case []any:
		for _, inner := range v {
			if hasHandler(inner, handler, channel) {
				return true
			}
		}
	}
	return false
}
