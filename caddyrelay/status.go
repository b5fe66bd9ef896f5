package caddyrelay

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
)

func init() { caddy.RegisterModule(new(Status)) }

// Status is an HTTP handler that says what became of a message of an at_least_once channel.
//
// GET answers 200 with a JSON object,
//
//	{"mid":"…","channel":"…","id":"…","ref":"…","state":"acked","attempts":1,"stored":"…","finished":"…","node":"…"}
//
// or, when asked by ref, with {"messages":[…]}, newest first. 404 says that nothing is known of it: it
// never was, or was finished longer ago than the channel's receipts. With cancel, DELETE
// takes a message back that no back end has seen: 200 if that came in time, 409 if not,
// 202 if the node that holds the socket did not say.
type Status struct {
	// The channel. Messages of others are not found.
	Channel string `json:"channel,omitempty"`

	// Which message, by its MID: text with placeholders, such as {http.request.uri.path.1}. One of
	// mid and ref must be there.
	MID string `json:"mid,omitempty"`

	// Which messages, by their business number: text with placeholders.
	Ref string `json:"ref,omitempty"`

	// Tokens of which a request must bring one; see relay_publish.
	Tokens []string `json:"tokens,omitempty"`

	// Anybody may ask. One of tokens and open must be there.
	Open bool `json:"open,omitempty"`

	// Show the back end's reply.
	Reply bool `json:"reply,omitempty"`

	// Show the message's body, while it is kept.
	Body bool `json:"body,omitempty"`

	// Allow DELETE.
	Cancel bool `json:"cancel,omitempty"`

	begin      caddyfile.Token
	app        *App
	generation *generation
	tokens     tokens
	logger     *zap.Logger
}

// CaddyModule returns the Caddy module information.
func (*Status) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.relay_status", New: func() caddy.Module { return new(Status) }}
}

// Provision implements [caddy.Provisioner].
func (h *Status) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	app, err := ctx.App("relay")
	if err != nil {
		return err
	}
	h.app = app.(*App)
	h.generation = h.app.generation
	if err := h.app.checkChannel(h.Channel); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return err
	}
	if err := h.checkStored(h.app.Channels[h.Channel]); err != nil {
		return err
	}
	values, err := secrets("token", h.Tokens)
	if err != nil {
		return fmt.Errorf("relay_status %s: %w", h.Channel, err)
	}
	h.tokens = newTokens(values)
	return nil
}

func (h *Status) check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("relay_status %s: %w", h.Channel, fmt.Errorf(format, args...))
	}
	switch {
	case (h.MID == "") == (h.Ref == ""):
		return fail("which message is not said: write \"mid {path.1}\" or \"ref {path.1}\", one of them")
	case h.Cancel && h.MID == "":
		return fail("cancel needs mid: a ref can be that of several messages")
	case h.Open && len(h.Tokens) > 0:
		return fail("open and token contradict each other: write one of them")
	case !h.Open && len(h.Tokens) == 0:
		return fail("who may ask is not said: write \"token {env.RELAY_TOKEN}\", or \"open\" if something in front decides")
	}
	for _, token := range h.Tokens {
		if err := checkSecret("token", token); err != nil {
			return fail("%w", err)
		}
	}
	return nil
}

func (h *Status) checkStored(c *Channel) error {
	if c.stores() {
		return nil
	}
	return fmt.Errorf("relay_status %s: the channel is at_most_once, of which nothing is stored: take the handler out", h.Channel)
}

// maxFound bounds the messages that one ref can show.
const maxFound = 100

// ServeHTTP implements [caddyhttp.MiddlewareHandler].
func (h *Status) ServeHTTP(w http.ResponseWriter, r *http.Request, _ caddyhttp.Handler) error {
	w.Header().Set("Cache-Control", "no-store")
	cancel := r.Method == http.MethodDelete && h.Cancel
	if !cancel && r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		return h.fail(w, http.StatusMethodNotAllowed, "method_not_allowed", "ask with GET, not "+shortMethod(r.Method))
	}
	if !h.Open && !h.tokens.acceptRequest(r) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="relay"`)
		return h.fail(w, http.StatusUnauthorized, "unauthorized", "send a valid token as \"Authorization: Bearer TOKEN\"")
	}
	g, err := h.app.node.store(h.generation, h.Channel)
	if err != nil {
		return h.failed(w, err)
	}
	ctx, stop := context.WithTimeout(r.Context(), 5*time.Second)
	defer stop()
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	switch {
	case cancel:
		return h.cancel(ctx, w, g.store, repl.ReplaceAll(h.MID, ""))
	case h.MID != "":
		rec, err := h.lookup(ctx, g.store, repl.ReplaceAll(h.MID, ""))
		if err != nil {
			return h.failed(w, err)
		}
		return writeJSON(w, http.StatusOK, h.show(ctx, g.store, rec))
	}
	found, err := g.store.Find(ctx, h.Channel, repl.ReplaceAll(h.Ref, ""), maxFound)
	if err != nil {
		return h.failed(w, err)
	}
	answer := struct {
		Messages []shownRecord `json:"messages"`
	}{[]shownRecord{}}
	for _, rec := range found {
		answer.Messages = append(answer.Messages, h.show(ctx, g.store, rec))
	}
	return writeJSON(w, http.StatusOK, answer)
}

// lookup finds a message of the handler's own channel.
func (h *Status) lookup(ctx context.Context, store broker.Store, mid string) (broker.Record, error) {
	rec, err := store.Lookup(ctx, mid)
	if err == nil && rec.Channel != h.Channel {
		return rec, broker.ErrNotFound
	}
	return rec, err
}

func (h *Status) cancel(ctx context.Context, w http.ResponseWriter, store broker.Store, mid string) error {
	rec, err := h.lookup(ctx, store, mid)
	if err != nil {
		return h.failed(w, err)
	}
	done, err := cancelMessage(ctx, store, mid)
	if err != nil {
		return h.failed(w, err)
	}
	answer := struct {
		MID   string `json:"mid"`
		State string `json:"state"`
	}{rec.MID, "unknown"}
	status := http.StatusAccepted
	switch done {
	case broker.CancelDone:
		answer.State, status = string(broker.StateCancelled), http.StatusOK
	case broker.CancelTooLate:
		answer.State, status = "too_late", http.StatusConflict
	}
	h.logger.Info("cancel", zap.String("mid", mid), zap.String("channel", h.Channel), zap.String("state", answer.State))
	return writeJSON(w, status, answer)
}

// shownRecord is a record as HTTP shows it.
type shownRecord struct {
	MID         string            `json:"mid"`
	Channel     string            `json:"channel"`
	ID          string            `json:"id"`
	Ref         string            `json:"ref,omitempty"`
	State       broker.State      `json:"state"`
	Reason      broker.DeadReason `json:"reason,omitempty"`
	Detail      string            `json:"detail,omitempty"`
	Attempts    int               `json:"attempts"`
	Stored      time.Time         `json:"stored"`
	Finished    *time.Time        `json:"finished,omitempty"`
	Expires     *time.Time        `json:"expires,omitempty"`
	Node        string            `json:"node,omitempty"`
	Reply       json.RawMessage   `json:"reply,omitempty"`
	ContentType string            `json:"content_type,omitempty"`
	Size        int               `json:"size,omitempty"`
	Encoding    string            `json:"enc,omitempty"` // of body: "text" or "base64"
	Body        string            `json:"body,omitempty"`
}

func showRecord(rec broker.Record) shownRecord {
	return shownRecord{
		MID: rec.MID, Channel: rec.Channel, ID: rec.ID, Ref: rec.Ref, State: rec.State, Reason: rec.Reason, Detail: rec.Detail,
		Attempts: rec.Attempts, Stored: rec.Stored.UTC(), Finished: unlessZero(rec.Finished), Expires: unlessZero(rec.Expires),
		Node: rec.Node, Reply: rec.Reply,
	}
}

func unlessZero(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// withBody adds the content of a message, which is text or bytes of any kind.
func (s *shownRecord) withBody(m *broker.Message) {
	s.ContentType, s.Size, s.Encoding, s.Body = m.ContentType, len(m.Body), "text", string(m.Body)
	if !utf8.Valid(m.Body) {
		s.Encoding, s.Body = "base64", base64.StdEncoding.EncodeToString(m.Body)
	}
}

// show is what the handler's switches allow to be seen.
func (h *Status) show(ctx context.Context, store broker.Store, rec broker.Record) shownRecord {
	s := showRecord(rec)
	if !h.Reply {
		s.Reply, s.Detail = nil, ""
	}
	if h.Body {
		if m, err := store.Content(ctx, rec.MID); err == nil { // or it is no longer kept
			s.withBody(m)
		}
	}
	return s
}

// failed answers for a store that did not find the message, or could not be asked.
func (h *Status) failed(w http.ResponseWriter, err error) error {
	if errors.Is(err, broker.ErrNotFound) {
		return h.fail(w, http.StatusNotFound, "not_found", "nothing is known of this message: it never was, or was finished too long ago")
	}
	h.logger.Error("the status of a message could not be found out", zap.String("channel", h.Channel), zap.Error(err))
	w.Header().Set("Retry-After", "1")
	return h.fail(w, http.StatusServiceUnavailable, "broker_unavailable", "the store cannot be asked now: try again")
}

func (*Status) fail(w http.ResponseWriter, status int, code, text string) error {
	return writeJSON(w, status, struct {
		Error   string `json:"error"`
		Message string `json:"message"`
	}{code, text})
}

// acceptRequest reports whether a request brings one of the tokens.
func (t tokens) acceptRequest(r *http.Request) bool {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return t.accept(strings.TrimSpace(token)) && strings.EqualFold(scheme, "Bearer")
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Status)(nil)
	_ caddyhttp.MiddlewareHandler = (*Status)(nil)
	_ caddyfile.Unmarshaler       = (*Status)(nil)
)

// cancelMessage cancels a message. It may be asked again: whoever missed the first answer must not be told that a back end
// has seen the message.
func cancelMessage(ctx context.Context, store broker.Store, mid string) (broker.Cancelled, error) {
	done, err := store.Cancel(ctx, mid)
	if err != nil || done != broker.CancelTooLate {
		return done, err
	}
	if rec, err := store.Lookup(ctx, mid); err == nil && rec.State == broker.StateCancelled {
		return broker.CancelDone, nil
	}
	return done, nil
}
