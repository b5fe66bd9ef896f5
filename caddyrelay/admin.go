package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/caddyrelay/relay/broker"
)

func init() { caddy.RegisterModule(new(Admin)) }

// Admin is the relay's part of Caddy's admin endpoint:
//
//	GET    /relay/channels                            what is kept of each channel
//	GET    /relay/ready                               what the node is ready for, and why not: ?for=publish or sockets
//	GET    /relay/drain                               whether the node is being emptied, and how many sockets it has
//	POST   /relay/drain                               empty it: ask ?rate= sockets a second to go elsewhere, and take no new ones
//	DELETE /relay/drain                               take that back
//	GET    /relay/presence/{channel}                  who is online, on any node: ?after= &limit=
//	GET    /relay/presence/{channel}/{id}             who has one destination
//	GET    /relay/messages/{mid}                      what is known of a message; ?body shows the content too
//	DELETE /relay/messages/{mid}                      take a message back that no back end has seen
//	GET    /relay/dead/{channel}                      dead letters, oldest first: ?id= &reason= &before= &after= &limit=
//	GET    /relay/dead/{channel}/{mid}                one, with its body
//	POST   /relay/dead/{channel}/{mid}/resend         send it again: ?ttl=
//	POST   /relay/dead/{channel}/resend               send those again that a filter selects: ?id= &reason= &before= &ttl= &rate=
//	DELETE /relay/dead/{channel}/{mid}                drop it for good
//	DELETE /relay/dead/{channel}                      drop those that a filter selects; ?all for every one
type Admin struct{}

// CaddyModule returns the Caddy module information.
func (*Admin) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api.relay", New: func() caddy.Module { return new(Admin) }}
}

// Routes implements [caddy.AdminRouter].
func (*Admin) Routes() []caddy.AdminRoute {
	mux := http.NewServeMux()
	for pattern, handle := range map[string]func(*node, http.ResponseWriter, *http.Request) error{
		"GET /relay/channels":                     adminChannels,
		"GET /relay/ready":                        adminReady,
		"GET /relay/drain":                        adminDraining,
		"POST /relay/drain":                       adminDrain,
		"DELETE /relay/drain":                     adminRefill,
		"GET /relay/presence/{channel}":           adminPresence,
		"GET /relay/presence/{channel}/{id}":      adminOnline,
		"GET /relay/messages/{mid}":               adminMessage,
		"DELETE /relay/messages/{mid}":            adminCancel,
		"GET /relay/dead/{channel}":               adminDead,
		"GET /relay/dead/{channel}/{mid}":         adminDeadLetter,
		"POST /relay/dead/{channel}/{mid}/resend": adminResend,
		"POST /relay/dead/{channel}/resend":       adminResendAll,
		"DELETE /relay/dead/{channel}/{mid}":      adminDrop,
		"DELETE /relay/dead/{channel}":            adminDropAll,
	} {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			n := theNode()
			err := caddy.APIError{HTTPStatus: http.StatusServiceUnavailable, Err: errNotRunning}
			if n != nil && n.active.Load() != nil {
				err = adminError(handle(n, w, r))
			}
			if err.Err != nil {
				_ = writeJSON(w, err.HTTPStatus, map[string]string{"error": err.Err.Error()})
			}
		})
	}
	return []caddy.AdminRoute{{Pattern: "/relay/", Handler: caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		mux.ServeHTTP(w, r)
		return nil
	})}}
}

// theNode returns this process's node, if any configuration has a relay.
func theNode() (found *node) {
	nodes.Range(func(_, value any) bool {
		found, _ = value.(*node)
		return false
	})
	return found
}

// errBadQuery says that a parameter cannot be read.
var errBadQuery = errors.New("bad query")

// adminError chooses the status of an error.
func adminError(err error) caddy.APIError {
	status := http.StatusInternalServerError
	switch {
	case err == nil:
		return caddy.APIError{}
	case errors.Is(err, errBadQuery):
		status = http.StatusBadRequest
	case errors.Is(err, broker.ErrNotFound), errors.Is(err, errUnknownChannel), errors.Is(err, errUnstored):
		status = http.StatusNotFound
	case errors.Is(err, broker.ErrMailboxFull), errors.Is(err, broker.ErrChannelFull), errors.Is(err, broker.ErrRecordsFull):
		status = http.StatusTooManyRequests
	case errors.Is(err, broker.ErrUnavailable), errors.Is(err, broker.ErrClosed):
		status = http.StatusServiceUnavailable
	}
	return caddy.APIError{HTTPStatus: status, Err: err}
}

// adminStore returns the store of the running configuration.
func adminStore(n *node) (broker.Store, error) {
	if g := n.active.Load(); g != nil && g.store != nil {
		return g.store, nil
	}
	return nil, fmt.Errorf("%w: no channel is at_least_once", errUnstored)
}

func adminLetters(n *node, r *http.Request) *DeadLetters {
	return &DeadLetters{node: n, generation: n.active.Load(), channel: r.PathValue("channel")}
}

func adminChannels(n *node, w http.ResponseWriter, r *http.Request) error {
	store, err := adminStore(n)
	if err != nil {
		return err
	}
	usage, err := store.Usage(r.Context())
	if err != nil {
		return err
	}
	type shown struct {
		Mailboxes  int        `json:"mailboxes"`
		Pending    int        `json:"pending"`
		Bytes      int64      `json:"bytes"`
		Records    int        `json:"records"`
		Dead       int        `json:"dead_letters"`
		Oldest     *time.Time `json:"oldest,omitempty"`
		Configured bool       `json:"configured"`
	}
	g, out := n.active.Load(), make(map[string]shown)
	for name, u := range usage {
		out[name] = shown{u.Mailboxes, u.Pending, u.Bytes, u.Records, u.Dead, unlessZero(u.Oldest), g.keeps(name)}
	}
	for name := range g.channels {
		if _, there := out[name]; !there && g.keeps(name) {
			out[name] = shown{Configured: true}
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

func adminMessage(n *node, w http.ResponseWriter, r *http.Request) error {
	store, err := adminStore(n)
	if err != nil {
		return err
	}
	rec, err := store.Lookup(r.Context(), r.PathValue("mid"))
	if err != nil {
		return err
	}
	s := showRecord(rec)
	if r.URL.Query().Has("body") {
		if m, err := store.Content(r.Context(), rec.MID); err == nil { // or it is no longer kept
			s.withBody(m)
		}
	}
	return writeJSON(w, http.StatusOK, s)
}

func adminCancel(n *node, w http.ResponseWriter, r *http.Request) error {
	store, err := adminStore(n)
	if err != nil {
		return err
	}
	done, err := cancelMessage(r.Context(), store, r.PathValue("mid"))
	if err != nil {
		return err
	}
	text := map[broker.Cancelled]string{
		broker.CancelDone: "cancelled", broker.CancelTooLate: "too_late", broker.CancelUnknown: "unknown",
	}[done]
	return writeJSON(w, http.StatusOK, map[string]string{"mid": r.PathValue("mid"), "state": text})
}

func adminDead(n *node, w http.ResponseWriter, r *http.Request) error {
	q, err := deadQuery(r.URL.Query(), "after", "limit")
	if err != nil {
		return err
	}
	page, err := adminLetters(n, r).List(r.Context(), q)
	if err != nil {
		return err
	}
	out := struct {
		Letters []shownRecord `json:"dead_letters"`
		Next    string        `json:"next,omitempty"`
	}{[]shownRecord{}, page.Next}
	for _, l := range page.Letters {
		s := showRecord(l.Record)
		s.ContentType, s.Size = l.ContentType, l.Size
		out.Letters = append(out.Letters, s)
	}
	return writeJSON(w, http.StatusOK, out)
}

func adminDeadLetter(n *node, w http.ResponseWriter, r *http.Request) error {
	rec, m, err := adminLetters(n, r).Get(r.Context(), r.PathValue("mid"))
	if err != nil {
		return err
	}
	s := showRecord(rec)
	s.withBody(m)
	return writeJSON(w, http.StatusOK, s)
}

func adminResend(n *node, w http.ResponseWriter, r *http.Request) error {
	if err := onlyParameters(r.URL.Query(), "ttl"); err != nil {
		return err
	}
	ttl, err := durationParameter(r.URL.Query(), "ttl")
	if err != nil {
		return err
	}
	out, err := adminLetters(n, r).Resend(r.Context(), r.PathValue("mid"), ttl)
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]any{"mid": out.MID, "state": out.State, "durability": out.Durability})
}

func adminResendAll(n *node, w http.ResponseWriter, r *http.Request) error {
	ttl, err := durationParameter(r.URL.Query(), "ttl")
	if err != nil {
		return err
	}
	letters := adminLetters(n, r)
	return adminEach(w, r, letters, "resent", []string{"ttl", "rate"}, func(ctx context.Context, mid string) error {
		_, err := letters.Resend(ctx, mid, ttl)
		return err
	})
}

func adminDrop(n *node, w http.ResponseWriter, r *http.Request) error {
	if err := adminLetters(n, r).Drop(r.Context(), r.PathValue("mid")); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, map[string]any{"mid": r.PathValue("mid"), "state": broker.StateErased})
}

func adminDropAll(n *node, w http.ResponseWriter, r *http.Request) error {
	letters := adminLetters(n, r)
	return adminEach(w, r, letters, "dropped", []string{"rate"}, letters.Drop)
}

// adminEach does something with the dead letters that the request's filter selects, and says with how many. On an
// error it says so too: part of them is done. Without a filter it does nothing: a script whose variable is empty
// must not mean all of them.
func adminEach(w http.ResponseWriter, r *http.Request, letters *DeadLetters, done string, more []string, do func(context.Context, string) error) error {
	v := r.URL.Query()
	q, err := deadQuery(v, append(more, "all")...)
	if err != nil {
		return err
	}
	if filtered := v.Has("id") || v.Has("reason") || v.Has("before"); filtered == v.Has("all") {
		return fmt.Errorf("%w: say which: ?id=, ?reason= or ?before=, or ?all for every dead letter of the channel", errBadQuery)
	}
	rate := 0
	if text := r.URL.Query().Get("rate"); text != "" {
		if rate, err = strconv.Atoi(text); err != nil || rate < 1 || rate > 1e6 {
			return fmt.Errorf("%w: rate %q: write how many a second, from 1 to 1000000", errBadQuery, text)
		}
	}
	count, err := letters.Each(r.Context(), q, rate, func(mid string) error { return do(r.Context(), mid) })
	if err != nil {
		return fmt.Errorf("after %d were %s: %w", count, done, err)
	}
	return writeJSON(w, http.StatusOK, map[string]int{done: count})
}

// deadQuery reads a filter.
// deadReasons are those that a filter may name.
var deadReasons = []broker.DeadReason{
	broker.DeadAttempts, broker.DeadCrashes, broker.DeadTerminated, broker.DeadRetention, broker.DeadUnframable, broker.DeadTooLarge,
}

// onlyParameters returns an error for a parameter that is not known, or that is empty: a filter that is passed over
// would select more than was asked for.
func onlyParameters(v url.Values, known ...string) error {
	for name, values := range v {
		if !slices.Contains(known, name) {
			return fmt.Errorf("%w: unknown parameter %q: write %s", errBadQuery, name, strings.Join(known, ", "))
		}
		if name != "all" && slices.Contains(values, "") {
			return fmt.Errorf("%w: the parameter %q is empty: give it a value, or leave it out", errBadQuery, name)
		}
	}
	return nil
}

// deadQuery reads a filter; more are the parameters that there may be besides.
func deadQuery(v url.Values, more ...string) (broker.DeadQuery, error) {
	if err := onlyParameters(v, append([]string{"id", "reason", "before"}, more...)...); err != nil {
		return broker.DeadQuery{}, err
	}
	if reason := broker.DeadReason(v.Get("reason")); reason != "" && !slices.Contains(deadReasons, reason) {
		return broker.DeadQuery{}, fmt.Errorf("%w: unknown reason %q: write one of %v", errBadQuery, reason, deadReasons)
	}
	q := broker.DeadQuery{ID: v.Get("id"), Reason: broker.DeadReason(v.Get("reason")), After: v.Get("after")}
	if text := v.Get("before"); text != "" {
		t, err := time.Parse(time.RFC3339, text)
		if err != nil {
			return q, fmt.Errorf("%w: before %q is not a time such as 2026-01-31T12:00:00Z", errBadQuery, text)
		}
		q.Before = t
	}
	if text := v.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 1000 {
			return q, fmt.Errorf("%w: limit %q: write a number from 1 to 1000", errBadQuery, text)
		}
		q.Limit = n
	}
	return q, nil
}

func durationParameter(v url.Values, name string) (time.Duration, error) {
	text := v.Get(name)
	if text == "" {
		return 0, nil
	}
	d, err := caddy.ParseDuration(text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%w: %s %q is not a positive duration, such as 72h", errBadQuery, name, text)
	}
	return d, nil
}

// Interface guard
var _ caddy.AdminRouter = (*Admin)(nil)
