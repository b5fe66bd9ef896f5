package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
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

func init() { caddy.RegisterModule(new(Publish)) }

// Publish is an HTTP handler that publishes the body of a POST request to a destination of one
// of the relay's channels.
//
// The answer is 202 with a JSON object once the broker has taken the message:
//
//	{"mid":"…","channel":"…","id":"…","state":"published","redis_receivers":1}
//
// redis_receivers counts the Redis subscribers (nodes and other programs, not sockets) that the
// server passed it to; it is absent on the embedded broker. A refusal is a JSON object
// {"error":"…","message":"…"}, unless the site has handle_errors. From 503 on,
// Retry-After says when to try again.
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

	// The answer to a published message, instead of the JSON object.
	Respond *Respond `json:"respond,omitempty"`

	// Instead of answering, go on to the next handler, with {http.relay.mid} and
	// {http.relay.state} set. Refusals are still answered here.
	PassThrough bool `json:"pass_through,omitempty"`

	begin      caddyfile.Token // where the Caddyfile has the directive; for errors
	app        *App
	generation *generation
	counts     *channelCounts
	tokens     tokens
	logger     *zap.Logger
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
}

// ServeHTTP implements [caddyhttp.MiddlewareHandler].
func (h *Publish) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	m, err := h.message(w, r)
	if err != nil {
		return h.answerError(w, r, err)
	}
	// What was accepted is not to be lost because the sender hung up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), time.Duration(h.Timeout))
	defer cancel()
	out, err := h.app.publish(ctx, h.generation, m)
	if err != nil {
		return h.refuseRequest(w, r, publishError(h.Channel, err))
	}
	h.counts.published.Add(1)
	if c := h.logger.Check(zap.DebugLevel, "published"); c != nil {
		c.Write(zap.String("mid", m.MID), zap.String("channel", m.Channel), zap.String("id", m.ID),
			zap.Int("bytes", len(m.Body)), zap.Int("receivers", out.Receivers))
	}

	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl.Set("http.relay.mid", m.MID)
	repl.Set("http.relay.state", "published")
	switch {
	case h.PassThrough:
		return next.ServeHTTP(w, r)
	case h.Respond != nil:
		if w.Header().Get("Content-Type") == "" {
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		}
		w.WriteHeader(positiveOr(h.Respond.Status, http.StatusOK))
		_, _ = io.WriteString(w, h.Respond.Body) // the client may be gone; the message is not
		return nil
	}
	answer := published{MID: m.MID, Channel: m.Channel, ID: m.ID, State: "published"}
	if out.Receivers >= 0 {
		answer.RedisReceivers = &out.Receivers
	}
	return writeJSON(w, http.StatusAccepted, answer)
}

// published is the answer to a message that was taken.
type published struct {
	MID            string `json:"mid"`
	Channel        string `json:"channel"`
	ID             string `json:"id"`
	State          string `json:"state"`
	RedisReceivers *int   `json:"redis_receivers,omitempty"`
}

func positiveOr(v, otherwise int) int {
	if v > 0 {
		return v
	}
	return otherwise
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

// message makes the message of a request. The cheap questions come first: a stranger's body is not read.
func (h *Publish) message(w http.ResponseWriter, r *http.Request) (*broker.Message, error) {
	if r.Method != http.MethodPost {
		return nil, refuse(methodNotAllowed, nil, "publish with POST, not %s", shortMethod(r.Method))
	}
	if !h.Open {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !h.tokens.accept(strings.TrimSpace(token)) || !strings.EqualFold(scheme, "Bearer") {
			return nil, refuse(unauthorized, nil, "send a valid token as \"Authorization: Bearer TOKEN\"")
		}
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return nil, refuse(encodingNotSupported, nil, "send the body without Content-Encoding")
	}
	body, err := h.readBody(w, r)
	if err != nil {
		return nil, err
	}
	id, err := h.destination(r)
	if err != nil {
		return nil, err
	}
	m := &broker.Message{
		MID: broker.NewMID(), Channel: h.Channel, ID: id,
		ContentType: r.Header.Get("Content-Type"), Body: body, Time: time.Now(),
	}
	if err := m.CheckBody(); err != nil {
		if !utf8.Valid(body) {
			return nil, refuse(notUTF8, err, "the body is not UTF-8; an at_most_once channel carries text only")
		}
		return nil, refuse(badJSON, err, "the body is not valid JSON, which its content type says it is")
	}
	return m, nil
}

// shortMethod keeps what a client sent from filling an answer.
func shortMethod(method string) string {
	if len(method) > 16 {
		return method[:16] + "…"
	}
	return method
}

// readBody reads the whole body, within the limit, and leaves it readable for those who come after.
func (h *Publish) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	if r.ContentLength > h.MaxBody {
		return nil, refuse(bodyTooLarge, nil, "the body has %d bytes; at most %d are allowed", r.ContentLength, h.MaxBody)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.MaxBody))
	var tooLarge *http.MaxBytesError
	var handlerError caddyhttp.HandlerError
	switch {
	case err == nil:
	case errors.As(err, &handlerError): // another handler's limit, such as request_body
		return nil, err
	case errors.As(err, &tooLarge):
		return nil, refuse(bodyTooLarge, nil, "the body is larger than %d bytes, the most that is allowed", h.MaxBody)
	default:
		return nil, refuse(bodyIncomplete, err, "the body ended early; nothing was published: send it again")
	}
	if len(body) == 0 {
		return nil, refuse(bodyEmpty, nil, "the body is empty; there is nothing to publish")
	}
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	return body, nil
}

// destination evaluates the ID.
func (h *Publish) destination(r *http.Request) (string, error) {
	// Placeholders see the decoded path, where the ID "a/b" is a segment "a" and one more: the
	// message would go to somebody else.
	if strings.Contains(strings.ToLower(r.URL.RawPath), "%2f") && strings.Contains(h.ID, "uri.path") {
		return "", refuse(badID, nil, "the path has an encoded slash, which an ID from the path cannot have")
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	id := repl.ReplaceAll(h.ID, "")
	if id == broker.Everyone {
		return id, nil
	}
	if err := broker.CheckID(id); err != nil {
		return "", refuse(badID, err, "%s", err.Error())
	}
	return id, nil
}

// Interface guards
var (
	_ caddy.Provisioner           = (*Publish)(nil)
	_ caddyhttp.MiddlewareHandler = (*Publish)(nil)
)
