package caddyrelay

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// shownPresence is who has a destination, as HTTP shows it.
type shownPresence struct {
	ID      string    `json:"id"`
	Node    string    `json:"node"`
	Address string    `json:"address"`
	Since   time.Time `json:"since"`
	Window  int       `json:"window"`
	Pending int       `json:"pending"`
}

func showPresence(p broker.Presence) shownPresence {
	return shownPresence{p.ID, p.Node, p.Address, p.Since.UTC(), p.Window, p.Pending}
}

// adminPresence shows a page of those that are online on an at_least_once channel, on any node.
func adminPresence(n *node, w http.ResponseWriter, r *http.Request) error {
	g, err := n.store(n.active.Load(), r.PathValue("channel"))
	if err != nil {
		return err
	}
	v := r.URL.Query()
	if err := onlyParameters(v, "after", "limit"); err != nil {
		return err
	}
	q := broker.PresenceQuery{After: v.Get("after")}
	if text := v.Get("limit"); text != "" {
		if q.Limit, err = strconv.Atoi(text); err != nil || q.Limit < 1 || q.Limit > 1000 {
			return fmt.Errorf("%w: limit %q: write a number from 1 to 1000", errBadQuery, text)
		}
	}
	page, err := g.store.Presence(r.Context(), r.PathValue("channel"), q)
	if err != nil {
		return err
	}
	out := struct {
		Online []shownPresence `json:"online"`
		Next   string          `json:"next,omitempty"`
	}{[]shownPresence{}, page.Next}
	for _, p := range page.Online {
		out.Online = append(out.Online, showPresence(p))
	}
	return writeJSON(w, http.StatusOK, out)
}

// adminOnline shows who has one destination.
func adminOnline(n *node, w http.ResponseWriter, r *http.Request) error {
	g, err := n.store(n.active.Load(), r.PathValue("channel"))
	if err != nil {
		return err
	}
	p, err := g.store.Online(r.Context(), r.PathValue("channel"), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, showPresence(p))
}
