package caddyrelay

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
)

// refusal says why a request was not published. It is the "error" of the answer, a metric label
// and {http.relay.error} at once, so a text, once released, stays.
type refusal uint8

const (
	methodNotAllowed refusal = iota
	unauthorized
	encodingNotSupported
	bodyTooLarge
	bodyIncomplete
	bodyEmpty
	badJSON
	notUTF8
	badSelector
	badDeadline
	deadlinePassed
	broadcastNotStored
	conflict
	mailboxFull
	channelFull
	deadLettersFull
	recordsFull
	badID
	unknownChannel
	notRunning
	brokerUnavailable
	unconfirmed
	unproven
	internalError
	refusals // the number of refusals
)

// refusalTable is the one place where reasons meet HTTP.
var refusalTable = [refusals]struct {
	text   string
	status int
}{
	methodNotAllowed:     {"method_not_allowed", http.StatusMethodNotAllowed},
	unauthorized:         {"unauthorized", http.StatusUnauthorized},
	encodingNotSupported: {"encoding_not_supported", http.StatusUnsupportedMediaType},
	bodyTooLarge:         {"body_too_large", http.StatusRequestEntityTooLarge},
	bodyIncomplete:       {"body_incomplete", http.StatusBadRequest},
	bodyEmpty:            {"body_empty", http.StatusBadRequest},
	badJSON:              {"bad_json", http.StatusBadRequest},
	notUTF8:              {"not_utf8", http.StatusUnsupportedMediaType},
	badSelector:          {"bad_value", http.StatusBadRequest},
	badDeadline:          {"bad_deadline", http.StatusBadRequest},
	deadlinePassed:       {"deadline_passed", http.StatusUnprocessableEntity},
	broadcastNotStored:   {"broadcast_not_stored", http.StatusUnprocessableEntity},
	conflict:             {"idempotency_conflict", http.StatusConflict},
	mailboxFull:          {"mailbox_full", http.StatusTooManyRequests},
	channelFull:          {"channel_full", http.StatusTooManyRequests},
	deadLettersFull:      {"dead_letters_full", http.StatusTooManyRequests},
	recordsFull:          {"records_full", http.StatusServiceUnavailable},
	badID:                {"bad_id", http.StatusBadRequest},
	unknownChannel:       {"unknown_channel", http.StatusNotFound},
	notRunning:           {"not_running", http.StatusServiceUnavailable},
	brokerUnavailable:    {"broker_unavailable", http.StatusServiceUnavailable},
	unconfirmed:          {"unconfirmed", http.StatusServiceUnavailable},
	unproven:             {"stored_unconfirmed", http.StatusServiceUnavailable},
	internalError:        {"internal", http.StatusInternalServerError},
}

func (r refusal) String() string { return refusalTable[r].text }

// refused is an error with the reason that the publisher is told.
type refused struct {
	refusal refusal
	text    string // for the publisher; says what to do
	err     error  // for the log; may be nil

	// For messages of at_least_once channels: their MID, if they are stored, and whether sending them
	// again cannot make two of them.
	stored    bool
	mid       string
	retrySafe bool
}

// about adds which message of an at_least_once channel it was, and whether it had a key.
func (e *refused) about(mid string, keyed bool) *refused {
	e.stored, e.mid, e.retrySafe = true, mid, keyed
	return e
}

// maybeStored reports whether the message may be stored all the same.
func (e *refused) maybeStored() bool {
	return e.stored && (e.refusal == unconfirmed || e.refusal == unproven)
}

func (e *refused) Error() string {
	if e.err != nil {
		return e.refusal.String() + ": " + e.err.Error()
	}
	return e.refusal.String() + ": " + e.text
}

func (e *refused) Unwrap() error { return e.err }

func refuse(r refusal, err error, format string, args ...any) *refused {
	return &refused{refusal: r, err: err, text: fmt.Sprintf(format, args...)}
}

// fullErrors are the errors of a store that have a refusal of their own.
var fullErrors = []struct {
	err     error
	refusal refusal
	text    string
}{
	{broker.ErrConflict, conflict, "the idempotency key was used for another message to this destination: use a new key for a new message"},
	{broker.ErrMailboxFull, mailboxFull, "too much waits for this destination already; nothing was stored: try again when it is being collected"},
	{broker.ErrChannelFull, channelFull, "too much waits on this channel already; nothing was stored: try again later"},
	{broker.ErrDeadLettersFull, deadLettersFull, "the channel has as many dead letters as it may; nothing was stored: its operator has to look at them"},
	{broker.ErrRecordsFull, recordsFull, "the channel knows as many messages as it may; nothing was stored: try again later"},
	{broker.ErrExpired, deadlinePassed, "the message's deadline has passed; nothing was stored"},
	{broker.ErrUnproven, unproven, "the message is stored and will be delivered, but the durability that the channel demands could not be proven in time"},
}

// publishError turns what publishing returned into what the publisher is told. The broker's own words
// stay in the log: they name hosts that are no business of the publisher's.
func publishError(channel string, err error) *refused {
	for _, f := range fullErrors {
		if errors.Is(err, f.err) {
			return refuse(f.refusal, err, "%s", f.text)
		}
	}
	switch {
	case errors.Is(err, errUnknownChannel):
		return refuse(unknownChannel, err, "the channel %s was removed from the configuration", channel)
	case errors.Is(err, errNotRunning), errors.Is(err, broker.ErrClosed):
		return refuse(notRunning, err, "the relay is starting or stopping; nothing was published: try again")
	case errors.Is(err, broker.ErrRefused):
		return refuse(brokerUnavailable, err, "the broker does not take messages now; nothing was published: try again later")
	case errors.Is(err, broker.ErrUnavailable):
		return refuse(unconfirmed, err, "the broker did not answer; the message may have been taken: if you try again "+
			"without an idempotency key it may arrive twice")
	}
	return refuse(internalError, err, "publishing failed; the relay's log says why")
}

// refuseRequest answers a request that is not published. Where the site has handle_errors, the error
// goes there, with {http.relay.error} and {http.relay.message} set; otherwise the
// answer is JSON. It makes one log line and one count.
func (h *Publish) refuseRequest(w http.ResponseWriter, r *http.Request, e *refused) error {
	h.counts.refused[e.refusal].Add(1)
	status := refusalTable[e.refusal].status
	switch status {
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		w.Header().Set("Retry-After", "1")
	case http.StatusUnauthorized:
		w.Header().Set("WWW-Authenticate", `Bearer realm="relay"`)
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodPost)
	}
	toRoutes := hasErrorRoutes(r)
	if !toRoutes || status < 500 { // Caddy logs errors from 500 up itself
		level := zap.WarnLevel
		if status >= 500 {
			level = zap.ErrorLevel
		}
		if c := h.logger.Check(level, "refused to publish"); c != nil {
			c.Write(zap.String("error", e.refusal.String()), zap.Int("status", status), zap.String("channel", h.Channel),
				zap.String("remote", r.RemoteAddr), zap.String("detail", e.Error()))
		}
	}
	if toRoutes {
		repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
		repl.Set("http.relay.error", e.refusal.String())
		repl.Set("http.relay.message", e.text)
		return caddyhttp.Error(status, e)
	}
	answer := struct {
		Error       string `json:"error"`
		Message     string `json:"message"`
		MID         string `json:"mid,omitempty"`
		Unconfirmed bool   `json:"stored_unconfirmed,omitempty"`
		RetrySafe   *bool  `json:"retry_safe,omitempty"`
	}{Error: e.refusal.String(), Message: e.text}
	if e.maybeStored() {
		answer.MID, answer.Unconfirmed, answer.RetrySafe = e.mid, true, &e.retrySafe
	}
	return writeJSON(w, status, answer)
}

// hasErrorRoutes reports whether the server has routes for errors.
func hasErrorRoutes(r *http.Request) bool {
	srv, ok := r.Context().Value(caddyhttp.ServerCtxKey).(*caddyhttp.Server)
	return ok && srv != nil && srv.Errors != nil && len(srv.Errors.Routes) > 0
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, err = w.Write(append(body, '\n'))
	if err != nil {
		return nil // the client is gone; nobody is left to tell
	}
	return nil
}
