package caddyrelay

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/caddyrelay/relay/broker"
)

// statePublished is where a message of an at_most_once channel is, for ever.
const statePublished broker.State = "published"

// receipt is a message that was taken, and what became of it.
type receipt struct {
	broker.Stored
	message   *broker.Message
	receivers int               // -1 if unknown
	store     broker.Store      // nil on an at_most_once channel
	waited    time.Duration     // how long the answer was waited for, at most
	ended     broker.DeadReason // why it is dead
	detail    string
	reply     []byte
}

// accept publishes or stores a message, as the running configuration has its channel.
func (n *node) accept(ctx context.Context, from *generation, m *broker.Message, o broker.AppendOptions) (receipt, error) {
	out := receipt{message: m, receivers: -1}
	g, err := n.ruling(from, m.Channel)
	if err != nil {
		return out, fmt.Errorf("%w: %w", broker.ErrRefused, err)
	}
	if g.keeps(m.Channel) {
		if m.MID == "" {
			m.MID = broker.NewMessageID(m.Channel, m.ID, o.Key)
		}
		out.store = g.store
		out.Stored, err = n.keep(ctx, from, m, o)
		return out, err
	}
	m.MID = broker.NewMID()
	p, err := broker.FromMessage(m)
	if err != nil {
		return out, err
	}
	published, err := n.publish(ctx, from, m.Channel, p)
	out.Stored = broker.Stored{MID: m.MID, State: statePublished}
	out.receivers = published.Receivers
	return out, err
}

// waitFor returns how long the request wants to wait for the back end's answer.
func (h *Publish) waitFor(r *http.Request) time.Duration {
	if h.Respond != nil || !h.app.Channels[h.Channel].stores() {
		return 0
	}
	wait := time.Duration(h.Wait)
	for _, header := range r.Header.Values("Prefer") { // RFC 7240
		for preference := range strings.SplitSeq(header, ",") {
			preference, _, _ = strings.Cut(preference, ";")
			name, value, _ := strings.Cut(preference, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "wait") {
				continue
			}
			seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(value), `"`), 10, 31)
			if err == nil {
				return min(time.Duration(seconds)*time.Second, time.Duration(h.MaxWait))
			}
		}
	}
	return wait
}

// await waits until the back end has answered, the sender has hung up, Caddy exits or the time is up. The
// message is stored already, so none of it is an error.
func (h *Publish) await(r *http.Request, out *receipt, wait time.Duration) {
	out.waited = wait
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	defer context.AfterFunc(h.app.leaving, cancel)()
	rec, err := out.store.Await(ctx, out.MID)
	if err != nil { // the broker failed meanwhile; what is known is that it is stored
		return
	}
	out.State, out.ended, out.detail, out.reply = rec.State, rec.Reason, rec.Detail, rec.Reply
}

// answered is the JSON object that a publisher gets.
type answered struct {
	MID            string            `json:"mid"`
	Channel        string            `json:"channel"`
	ID             string            `json:"id"`
	State          broker.State      `json:"state"`
	Durability     broker.Durability `json:"durability,omitempty"`
	Duplicate      bool              `json:"duplicate,omitempty"`
	Reply          json.RawMessage   `json:"reply,omitempty"`
	Reason         broker.DeadReason `json:"reason,omitempty"`
	Detail         string            `json:"detail,omitempty"`
	RedisReceivers *int              `json:"redis_receivers,omitempty"`
}

// statusOf says how a publisher who waited is told of the end.
func statusOf(state broker.State) int {
	switch state {
	case broker.StateAcked, broker.StateWritten:
		return http.StatusOK
	case broker.StateDead, broker.StateErased:
		return http.StatusBadGateway
	case broker.StateExpired:
		return http.StatusGatewayTimeout
	case broker.StateCancelled:
		return http.StatusGone
	}
	return http.StatusAccepted
}

// answer tells the publisher what became of a message that was taken.
func (h *Publish) answer(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, out receipt) error {
	repl := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer)
	repl.Set("http.relay.mid", out.MID)
	repl.Set("http.relay.state", string(out.State))
	repl.Set("http.relay.duplicate", strconv.FormatBool(out.Duplicate))
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
	status := http.StatusAccepted
	if out.waited > 0 {
		w.Header().Set("Preference-Applied", "wait="+strconv.Itoa(int(out.waited/time.Second)))
		status = statusOf(out.State)
	}
	if h.StatusPath != "" && status == http.StatusAccepted && out.store != nil {
		w.Header().Set("Location", h.StatusPath+out.MID)
	}
	if h.WaitBodyReply && out.State == broker.StateAcked && out.reply != nil {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write(out.reply)
		return nil
	}
	a := answered{
		MID: out.MID, Channel: out.message.Channel, ID: out.message.ID, State: out.State, Durability: out.Durability,
		Duplicate: out.Duplicate, Reply: out.reply, Reason: out.ended, Detail: out.detail,
	}
	if out.receivers >= 0 {
		a.RedisReceivers = &out.receivers
	}
	return writeJSON(w, status, a)
}

func positiveOr(v, otherwise int) int {
	if v > 0 {
		return v
	}
	return otherwise
}
