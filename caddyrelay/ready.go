package caddyrelay

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
)

func init() { caddy.RegisterModule(new(Ready)) }

// Ready is an HTTP handler for the checks of load balancers. It answers 200 if this node is ready for what is asked, and 503 if
// not, with a JSON object that says why:
//
//	{"publish":{"ready":true},"sockets":{"ready":false,"reasons":["the node is draining"]}}
//
// publish: messages are accepted; the durability that the channels demand can be proven. It belongs in the check of the
// load balancer that spreads publishers. sockets: sockets may register here. It belongs in that which spreads back
// ends. A node that is not ready for sockets keeps those that it has.
//
// On a Redis Cluster both stay true as long as any part of it works; "partitions" says how much does not.
type Ready struct {
	// What the status of the answer is about: publish, sockets or, by default, both.
	For string `json:"for,omitempty"`

	app *App
}

// CaddyModule returns the Caddy module information.
func (*Ready) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.relay_ready", New: func() caddy.Module { return new(Ready) }}
}

// Provision implements [caddy.Provisioner].
func (h *Ready) Provision(ctx caddy.Context) error {
	app, err := ctx.App("relay")
	if err != nil {
		return err
	}
	h.app = app.(*App)
	return h.check()
}

func (h *Ready) check() error {
	switch h.For {
	case "", "publish", "sockets":
		return nil
	}
	return fmt.Errorf("relay_ready: ready for what? unknown word %q: write publish, sockets, or nothing for both", h.For)
}

// ServeHTTP implements [caddyhttp.MiddlewareHandler].
func (h *Ready) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return writeJSON(w, http.StatusMethodNotAllowed, map[string]string{"error": "method_not_allowed"})
	}
	ready := h.app.node.readiness()
	return writeJSON(w, ready.status(h.For), ready)
}

// readiness is what a node is ready for now.
type readiness struct {
	Publish    readyFor         `json:"publish"`
	Sockets    readyFor         `json:"sockets"`
	Partitions *readyPartitions `json:"partitions,omitempty"`
}

type readyFor struct {
	Ready   bool     `json:"ready"`
	Reasons []string `json:"reasons,omitempty"`

	details []error // of the reasons that have any; they may hold addresses
}

// readyPartitions is how much of a cluster does not work.
type readyPartitions struct {
	Unavailable int `json:"unavailable"`
	Of          int `json:"of"`
}

func (f *readyFor) not(reason string, detail error) {
	f.Ready = false
	f.Reasons, f.details = append(f.Reasons, reason), append(f.details, detail)
}

// partitioned is a store of which a part can be unavailable. Unavailable must do no I/O.
type partitioned interface {
	Unavailable() (unavailable, total int)
}

// unreachedFor is how long a store may be silent while it is taken for reachable. All is well within a second or two.
const unreachedFor = 5 * time.Second

// readiness says what the node is ready for. It does no I/O.
func (n *node) readiness() readiness {
	r := readiness{Publish: readyFor{Ready: true}, Sockets: readyFor{Ready: true}}
	g := n.active.Load()
	if g == nil {
		r.Publish.not("the relay is not running", nil)
		r.Sockets.not("the relay is not running", nil)
		return r
	}
	if g.store != nil {
		if err := g.store.Ready(); err != nil {
			r.Publish.not("the store cannot take messages at the durability that is demanded", err)
		}
		if s, ok := g.store.(unreached); ok && s.Unreached() > unreachedFor {
			r.Sockets.not("the store cannot be reached", fmt.Errorf("it has been silent for %s", s.Unreached().Round(time.Second)))
		}
		if s, ok := g.store.(partitioned); ok {
			if unavailable, total := s.Unavailable(); unavailable > 0 {
				r.Partitions = &readyPartitions{unavailable, total}
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(g.routes)) {
		if err := g.routes[name].err(); err != nil {
			r.Publish.not("the broker cannot be heard on channel "+name, err)
		}
	}
	if draining, _ := n.hub.Draining(); draining {
		r.Sockets.not("the node is draining", nil)
	}
	if limit := g.app.MaxSockets; limit > 0 && n.hub.Sockets() >= limit {
		r.Sockets.not("the node holds as many sockets as max_sockets allows", nil)
	}
	return r
}

// status is that of the answer to who asks for one of the two, or for both.
func (r *readiness) status(what string) int {
	if (r.Publish.Ready || what == "sockets") && (r.Sockets.Ready || what == "publish") {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

// full adds what lies behind the reasons.
func (r *readiness) full() readiness {
	out := *r
	for _, f := range []*readyFor{&out.Publish, &out.Sockets} {
		reasons := slices.Clone(f.Reasons)
		for i, err := range f.details {
			if err != nil {
				reasons[i] = fmt.Sprintf("%s: %v", reasons[i], err)
			}
		}
		f.Reasons = reasons
	}
	return out
}

// adminReady is GET /relay/ready.
func adminReady(n *node, w http.ResponseWriter, r *http.Request) error {
	if err := onlyParameters(r.URL.Query(), "for"); err != nil {
		return err
	}
	what := r.URL.Query().Get("for")
	if err := (&Ready{For: what}).check(); err != nil {
		return errors.Join(errBadQuery, err)
	}
	ready := n.readiness()
	return writeJSON(w, ready.status(what), ready.full())
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Ready)(nil)
	_ caddyhttp.MiddlewareHandler = (*Ready)(nil)
	_ caddyfile.Unmarshaler       = (*Ready)(nil)
)
