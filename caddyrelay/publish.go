package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
)

func init() { caddy.RegisterModule(new(Publish)) }

// Publish is an HTTP handler that publishes the body of a POST request to a destination of one
// of the relay's channels.
//
// On an at_least_once channel the answer is 202 once the message is stored:
//
//	{"mid":"…","channel":"…","id":"…","state":"stored","durability":"fsync"}
//
// or, if the request or the configuration asked to wait for the back end, 200 with its answer:
//
//	{"mid":"…",…,"state":"acked","reply":…}
//
// On an at_most_once channel it is 202 once the broker has taken the message:
//
//	{"mid":"…","channel":"…","id":"…","state":"published","redis_receivers":1}
//
// redis_receivers counts the Redis subscribers (nodes and other programs, not sockets) that the
// server passed it to; it is absent on the embedded broker. A refusal is a JSON object
// {"error":"…","message":"…"}, unless the site has handle_errors. With 429 and 503,
// Retry-After says when to try again.
//
// Where a field is called a selector, it is text with placeholders, such as
// {http.request.header.X-Order}, or a JSON pointer into the body, such as /order/number.
type Publish struct {
	// The channel to publish on. It must be one of the app's channels.
	Channel string `json:"channel,omitempty"`

	// The destination ID: text with placeholders, such as {http.request.uri.path.1}. The ID
	// "*" reaches every socket of an at_most_once channel. What it comes to is checked:
	// see the documentation of destination IDs.
	ID string `json:"id,omitempty"`

	// Tokens of which a request must bring one, as "Authorization: Bearer …". Each is a
	// placeholder, such as {env.RELAY_TOKEN}; with several, a token can be replaced
	// while the old one still works.
	Tokens []string `json:"tokens,omitempty"`

	// Anybody may publish. One of tokens and open must be there.
	Open bool `json:"open,omitempty"`

	// The largest body, in bytes. Default 1048576.
	MaxBody int64 `json:"max_body,omitempty"`

	// How long the broker may take. Default 5s.
	Timeout caddy.Duration `json:"timeout,omitempty"`

	// The answer to a message that was taken, instead of the JSON object.
	Respond *Respond `json:"respond,omitempty"`

	// Instead of answering, go on to the next handler, with {http.relay.mid} and
	// {http.relay.state} set. Refusals are still answered here.
	PassThrough bool `json:"pass_through,omitempty"`

	// The business number, such as an order, by which relay_status finds the message and which
	// the back end gets as "ref": a selector.
	Ref string `json:"ref,omitempty"`

	// Names of request headers that travel with the message.
	Headers []string `json:"headers,omitempty"`

	Stored

	begin      caddyfile.Token // where the Caddyfile has the directive; for errors
	app        *App
	generation *generation
	counts     *channelCounts
	tokens     tokens
	logger     *zap.Logger
}

// Stored is what of [Publish] applies to at_least_once channels only.
type Stored struct {
	// What makes a publish idempotent: a selector, or "off". A message with the key of an earlier
	// one for the same destination is not stored again; the answer is that of the first, with
	// "duplicate":true. Default {http.request.header.Idempotency-Key}. An empty key is none.
	IdempotencyKey string `json:"idempotency_key,omitempty"`

	// What must be equal for a message with a known key to be a duplicate; otherwise the answer is 409.
	// "body", "none", or selectors. Default body for the header Idempotency-Key and none
	// for other keys: senders that try again often change something, such as a time.
	DedupeCompare []string `json:"dedupe_compare,omitempty"`

	// The message's deadline: a selector whose value is a duration (90s), seconds (90), or a time (RFC
	// 3339, an HTTP date, or Unix seconds or milliseconds). It is not pushed after that. Default
	// {http.request.header.Relay-Expires}. An empty value is no deadline.
	Expires string `json:"expires,omitempty"`

	// How long to wait for the back end's answer when the request does not say, by "Prefer:
	// wait=5". Default: not at all.
	Wait caddy.Duration `json:"wait,omitempty"`

	// The longest time that a request may ask to wait. Default 30s.
	MaxWait caddy.Duration `json:"max_wait,omitempty"`

	// Answer with the back end's reply alone, as JSON, if there is one.
	WaitBodyReply bool `json:"wait_body_reply,omitempty"`

	// Where relay_status answers: the path that the MID is appended to, for the header Location of
	// a 202, such as /status/.
	StatusPath string `json:"status_path,omitempty"`
}

// Respond is an answer in the sender's own words.
type Respond struct {
	// The status. Default 200.
	Status int `json:"status,omitempty"`

	// The body.
	Body string `json:"body,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*Publish) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.relay_publish", New: func() caddy.Module { return new(Publish) }}
}

// Provision implements [caddy.Provisioner].
func (h *Publish) Provision(ctx caddy.Context) error {
	h.logger = ctx.Logger()
	app, err := ctx.App("relay")
	if err != nil {
		return err
	}
	h.app = app.(*App)
	if err := h.app.checkChannel(h.Channel); err != nil {
		return err
	}
	if err := h.check(); err != nil {
		return err
	}
	if err := h.checkStored(h.app.Channels[h.Channel].stores()); err != nil {
		return err
	}
	h.setDefaults()
	values, err := secrets("token", h.Tokens)
	if err != nil {
		return fmt.Errorf("relay_publish %s: %w", h.Channel, err)
	}
	h.tokens = newTokens(values)
	h.generation = h.app.generation
	h.counts = h.app.node.counts.channel(h.Channel)
	return nil
}

// check says what in the configuration cannot be, whatever the rest of the configuration holds.
func (h *Publish) check() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("relay_publish %s: %w", h.Channel, fmt.Errorf(format, args...))
	}
	switch {
	case h.ID == "":
		return fail("the destination is missing: write, for example, \"id {path.1}\"")
	case h.Open && len(h.Tokens) > 0:
		return fail("open and token contradict each other: write one of them")
	case !h.Open && len(h.Tokens) == 0:
		return fail("who may publish is not said: write \"token {env.RELAY_TOKEN}\", or \"open\" if something in front decides")
	case h.PassThrough && h.Respond != nil:
		return fail("respond and pass_through contradict each other: write one of them")
	case h.MaxBody < 0 || h.Timeout < 0:
		return fail("max_body and timeout must be positive, or left out for the default")
	case h.Respond != nil && (h.Wait != 0 || h.WaitBodyReply):
		return fail("respond and wait contradict each other: respond is sent as soon as the message is stored; write one of them")
	case h.Wait < 0 || h.MaxWait < 0:
		return fail("wait and max_wait must be positive, or left out for the default")
	case h.MaxWait != 0 && h.Wait > h.MaxWait:
		return fail("wait %s is longer than max_wait %s", time.Duration(h.Wait), time.Duration(h.MaxWait))
	case h.StatusPath != "" && !strings.HasPrefix(h.StatusPath, "/"):
		return fail("status_path %q must begin with a slash", h.StatusPath)
	case h.Respond != nil && h.Respond.Status != 0 && (h.Respond.Status < 200 || h.Respond.Status > 599):
		return fail("respond: %d is not a status from 200 to 599", h.Respond.Status)
	}
	for _, token := range h.Tokens {
		if err := checkSecret("token", token); err != nil {
			return fail("%w", err)
		}
	}
	return nil
}

func (h *Publish) setDefaults() {
	if h.MaxBody == 0 {
		h.MaxBody = 1 << 20
	}
	if h.Timeout == 0 {
		h.Timeout = caddy.Duration(5 * time.Second)
	}
	if h.MaxWait == 0 {
		h.MaxWait = max(h.Wait, caddy.Duration(30*time.Second))
	}
	if len(h.DedupeCompare) == 0 {
		h.DedupeCompare = []string{"none"}
		if h.IdempotencyKey == "" {
			h.DedupeCompare = []string{"body"}
		}
	}
	if h.IdempotencyKey == "" {
		h.IdempotencyKey = "{http.request.header.Idempotency-Key}"
	}
	if h.Expires == "" {
		h.Expires = "{http.request.header.Relay-Expires}"
	}
}

// checkStored says so if what belongs to at_least_once is configured for a channel that does not store.
func (h *Publish) checkStored(stored bool) error {
	if stored || reflect.ValueOf(h.Stored).IsZero() {
		return nil
	}
	return fmt.Errorf("relay_publish %s: idempotency_key, dedupe_compare, expires, wait, max_wait, wait_body and status_path "+
		"belong to at_least_once channels: take them out, or write \"delivery at_least_once\" in channel %s", h.Channel, h.Channel)
}

// ServeHTTP implements [caddyhttp.MiddlewareHandler].
func (h *Publish) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	m, o, err := h.message(w, r)
	if err != nil {
		return h.answerError(w, r, err)
	}
	wait := h.waitFor(r)
	o.Wait = wait > 0
	// What was accepted is not to be lost because the sender hung up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Duration(h.Timeout))
	defer cancel()
	out, err := h.app.node.accept(ctx, h.generation, m, o)
	if err != nil {
		e := publishError(h.Channel, err)
		if out.store != nil {
			e = e.about(out.MID, o.Key != "")
		}
		return h.refuseRequest(w, r, e)
	}
	h.counts.published.Add(1)
	if out.Duplicate {
		h.counts.duplicates.Add(1)
	}
	if c := h.logger.Check(zap.DebugLevel, "published"); c != nil {
		c.Write(zap.String("mid", out.MID), zap.String("channel", m.Channel), zap.String("id", m.ID),
			zap.Int("bytes", len(m.Body)), zap.String("state", string(out.State)), zap.Bool("duplicate", out.Duplicate))
	}
	if wait > 0 && out.store != nil {
		h.await(r, &out, wait)
	}
	return h.answer(w, r, next, out)
}

// answerError answers for a request that is no message. Errors that are not the relay's own belong
// to handlers before it.
func (h *Publish) answerError(w http.ResponseWriter, r *http.Request, err error) error {
	var e *refused
	if errors.As(err, &e) {
		return h.refuseRequest(w, r, e)
	}
	return err
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Publish)(nil)
	_ caddyhttp.MiddlewareHandler = (*Publish)(nil)
)
