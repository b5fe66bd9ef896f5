package caddyrelay

import (
	"fmt"
	"net/http"
	"strconv"

	"go.uber.org/zap"
)

// defaultDrainRate is how many sockets a second are asked to go when an operator empties a node.
const defaultDrainRate = 100

// draining is what the endpoint says of a drain.
type draining struct {
	Draining bool `json:"draining"`
	Sockets  int  `json:"sockets"` // that are registered here
}

func (n *node) drainingNow() draining {
	d, left := n.hub.Draining()
	return draining{d, left}
}

// adminDraining is GET /relay/drain.
func adminDraining(n *node, w http.ResponseWriter, r *http.Request) error {
	if err := onlyParameters(r.URL.Query()); err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, n.drainingNow())
}

// adminDrain is POST /relay/drain: the sockets are asked to go elsewhere, and no new ones are taken.
func adminDrain(n *node, w http.ResponseWriter, r *http.Request) error {
	v := r.URL.Query()
	if err := onlyParameters(v, "rate"); err != nil {
		return err
	}
	rate := defaultDrainRate
	if text := v.Get("rate"); text != "" {
		var err error
		if rate, err = strconv.Atoi(text); err != nil || rate < 1 || rate > 1e6 {
			return fmt.Errorf("%w: rate %q: write how many sockets a second, from 1 to 1000000", errBadQuery, text)
		}
	}
	count := n.hub.Empty(rate, n.active.Load().app.spread())
	n.logger.Load().Info("the node is being emptied; new sockets are refused until that is taken back",
		zap.Int("sockets", count), zap.Int("rate", rate))
	return writeJSON(w, http.StatusAccepted, n.drainingNow())
}

// adminRefill is DELETE /relay/drain: it takes a drain back.
func adminRefill(n *node, w http.ResponseWriter, r *http.Request) error {
	if err := onlyParameters(r.URL.Query()); err != nil {
		return err
	}
	if n.hub.Refill() {
		n.logger.Load().Info("the node takes sockets again")
	}
	return writeJSON(w, http.StatusOK, n.drainingNow())
}
