package caddyrelay

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyrelay/relay/broker"
)

// message makes the message of a request. The cheap questions come first: a stranger's body is not read.
func (h *Publish) message(w http.ResponseWriter, r *http.Request) (*broker.Message, broker.AppendOptions, error) {
	var o broker.AppendOptions
	id, body, err := h.request(w, r)
	if err != nil {
		return nil, o, err
	}
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	values := selector{repl: repl, body: body}
	m := &broker.Message{
		Channel: h.Channel, ID: id, ContentType: r.Header.Get("Content-Type"), Body: body, Time: time.Now(),
		Headers: h.headers(r),
	}
	if m.Ref, err = h.short(values, "ref", h.Ref); err != nil {
		return nil, o, err
	}
	if !h.app.Channels[h.Channel].stores() {
		return m, o, checkPublishable(m)
	}
	if id == broker.Everyone {
		return nil, o, refuse(broadcastNotStored, nil, "the channel is at_least_once: it has no broadcast; name one destination")
	}
	if broker.IsJSON(m.ContentType) && !json.Valid(body) {
		return nil, o, refuse(badJSON, nil, "the body is not valid JSON, which its content type says it is")
	}
	if err := h.options(values, m, &o); err != nil {
		return nil, o, err
	}
	return m, o, nil
}

// checkPublishable says so if a message cannot travel on an at_most_once channel.
func checkPublishable(m *broker.Message) error {
	err := m.CheckBody()
	switch {
	case err == nil:
		return nil
	case !utf8.Valid(m.Body):
		return refuse(notUTF8, err, "the body is not UTF-8; an at_most_once channel carries text only")
	}
	return refuse(badJSON, err, "the body is not valid JSON, which its content type says it is")
}

// options evaluates what the message's storing depends on.
func (h *Publish) options(values selector, m *broker.Message, o *broker.AppendOptions) (err error) {
	if h.IdempotencyKey != "off" {
		if o.Key, err = h.short(values, "idempotency_key", h.IdempotencyKey); err != nil {
			return err
		}
	}
	m.Key = o.Key
	if o.Key != "" {
		if o.Fingerprint, err = h.fingerprint(values); err != nil {
			return err
		}
	}
	text, err := h.short(values, "expires", h.Expires)
	if err != nil || text == "" {
		return err
	}
	if o.TTL, o.Expires, err = parseDeadline(text); err != nil {
		return refuse(badDeadline, err, "%s", err.Error())
	}
	return nil
}

// fingerprint is what a repeated key is compared by.
func (h *Publish) fingerprint(values selector) ([]byte, error) {
	switch h.DedupeCompare[0] {
	case "none":
		return nil, nil
	case "body":
		sum := sha256.Sum256(values.body)
		return sum[:16], nil
	}
	hash := sha256.New()
	for _, s := range h.DedupeCompare {
		v, err := values.get(s)
		if err != nil {
			return nil, refuse(badSelector, err, "dedupe_compare: %s", err.Error())
		}
		_, _ = fmt.Fprintf(hash, "%d:%s", len(v), v)
	}
	return hash.Sum(nil)[:16], nil
}

// maxShort bounds what becomes part of keys and records.
const maxShort = 256

// short evaluates a selector whose value is short.
func (h *Publish) short(values selector, what, expression string) (string, error) {
	if expression == "" {
		return "", nil
	}
	v, err := values.get(expression)
	switch {
	case err != nil:
		return "", refuse(badSelector, err, "%s: %s", what, err.Error())
	case len(v) > maxShort:
		return "", refuse(badSelector, nil, "%s has %d bytes; at most %d are allowed", what, len(v), maxShort)
	case !utf8.ValidString(v):
		return "", refuse(badSelector, nil, "%s is not valid UTF-8", what)
	}
	return v, nil
}

// headers returns the chosen headers. What isn't UTF-8 could not travel unchanged, and is left out.
func (h *Publish) headers(r *http.Request) map[string]string {
	var chosen map[string]string
	for _, name := range h.Headers {
		if v := r.Header.Values(name); len(v) > 0 && utf8.ValidString(strings.Join(v, ", ")) {
			if chosen == nil {
				chosen = make(map[string]string)
			}
			chosen[http.CanonicalHeaderKey(name)] = strings.Join(v, ", ")
		}
	}
	return chosen
}

// request checks the request, and returns its destination and body.
func (h *Publish) request(w http.ResponseWriter, r *http.Request) (string, []byte, error) {
	if r.Method != http.MethodPost {
		return "", nil, refuse(methodNotAllowed, nil, "publish with POST, not %s", shortMethod(r.Method))
	}
	if !h.Open {
		scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !h.tokens.accept(strings.TrimSpace(token)) || !strings.EqualFold(scheme, "Bearer") {
			return "", nil, refuse(unauthorized, nil, "send a valid token as \"Authorization: Bearer TOKEN\"")
		}
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return "", nil, refuse(encodingNotSupported, nil, "send the body without Content-Encoding")
	}
	body, err := h.readBody(w, r)
	if err != nil {
		return "", nil, err
	}
	id, err := h.destination(r)
	return id, body, err
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
