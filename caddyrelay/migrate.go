package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"go.uber.org/zap"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/boltbroker"
)

// MigrateFrom names the store that a broker takes over messages from before it serves any.
type MigrateFrom struct {
	// The broker that kept them: embedded.
	Type string `json:"type,omitempty"`

	// Its file. Default that of broker embedded. A file that is named must be there; without a name and a file there
	// is nothing to move.
	Path string `json:"path,omitempty"`

	named bool
}

// unmarshalCaddyfile parses "migrate_from embedded [<path>]".
func (m *MigrateFrom) unmarshalCaddyfile(d *caddyfile.Dispenser) error {
	args := d.RemainingArgs()
	if m.Type != "" || len(args) < 1 || len(args) > 2 {
		return d.Errf("migrate_from: write \"migrate_from embedded\" once, with the path of the file behind it if it is not the default")
	}
	token := d.Token()
	m.Type = args[0]
	if len(args) == 2 {
		m.Path = args[1]
	}
	return at(token, m.check())
}

func (m *MigrateFrom) check() error {
	if m.Type != "embedded" {
		return fmt.Errorf("broker redis: migrate_from %q: messages can be moved from \"embedded\" only", m.Type)
	}
	return nil
}

// provision finds out the path, as the embedded broker does.
func (m *MigrateFrom) provision() error {
	if err := m.check(); err != nil {
		return err
	}
	m.named = m.Path != ""
	e := &EmbeddedBroker{Path: m.Path}
	if err := e.Provision(caddy.Context{}); err != nil {
		return err
	}
	m.Path = e.Path
	return nil
}

// moveIn has g's store take over what its configuration says, unless it has. Nothing is accepted or delivered
// by g before.
func (n *node) moveIn(g *generation) error {
	r, ok := g.app.brokerModule.(*RedisBroker)
	if !ok || r.MigrateFrom == nil {
		return nil
	}
	from, log := r.MigrateFrom, g.app.logger
	before := n.active.Load()
	if before != nil && before.stores() {
		if e, ok := before.app.brokerModule.(*EmbeddedBroker); ok && e.Path == from.Path {
			return from.notOnReload()
		}
	}
	move, moved, err := boltbroker.Moved(from.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !from.named:
		log.Info("there is no embedded store to move messages from", zap.String("path", from.Path))
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("migrate_from: %w: correct the path, or take migrate_from out if there is nothing to move", err)
	case err != nil:
		return fmt.Errorf("migrate_from: %w", err)
	case moved && !move.Done.IsZero() && move.To == r.Key():
		from.logMoved(log, move)
		return nil
	case !moved && before != nil && before.stores():
		return from.notOnReload()
	case g.store == nil:
		return errors.New("migrate_from moves messages of at_least_once channels, and this configuration has none: configure those that the " +
			"embedded store has, or take migrate_from out")
	}
	n.applyStore(g)
	return from.run(g, r.Key())
}

func (m *MigrateFrom) logMoved(log *zap.Logger, move broker.Move) {
	log.Info("the embedded store has moved already; migrate_from can be taken out", zap.String("path", m.Path), zap.Time("moved", move.Done))
}

func (m *MigrateFrom) notOnReload() error {
	return fmt.Errorf("migrate_from cannot move the messages of %s while a configuration with at_least_once channels runs: stop Caddy, and start it "+
		"with this configuration; until then the running one goes on", m.Path)
}

// moveLogInterval is how often the log says how far the move is.
const moveLogInterval = 5 * time.Second

func (m *MigrateFrom) run(g *generation, name string) error {
	log := g.app.logger
	export, err := boltbroker.OpenExport(m.Path)
	if err != nil {
		return fmt.Errorf("migrate_from: %w", err)
	}
	defer func() { _ = export.Close() }()
	if err := m.checkChannels(g, export.Usage()); err != nil {
		return err
	}
	before, _ := export.Move()
	ctx, stop := untilExit()
	defer stop()
	began, logged, total := time.Now(), time.Now(), export.Total()
	log.Info("messages move; until that is done, nothing is accepted", zap.String("from", m.Path), zap.String("to", name), zap.Int("messages", total))
	moved, err := broker.Migration{
		From: export, To: g.store.(broker.Importer), Name: name, Channels: slices.Sorted(maps.Keys(export.Usage())),
		Progress: func(what string, done int) {
			if time.Since(logged) >= moveLogInterval {
				logged = time.Now()
				log.Info("messages move: "+what, zap.Int("done", done), zap.Int("of", total))
			}
		},
	}.Run(ctx)
	if err != nil {
		return m.explain(err)
	}
	if !before.Done.IsZero() { // to this Redis, by another of its names
		m.logMoved(log, before)
		return nil
	}
	log.Info("the messages have moved; migrate_from can be taken out, and the file be kept as a backup", zap.String("from", m.Path), zap.String("to", name),
		zap.Int("messages", moved.Items), zap.Int("went_on", moved.Ended), zap.String("sha256", moved.Checksum), zap.Duration("took", time.Since(began)))
	return nil
}

// checkChannels returns an error if messages would move that nobody delivers.
func (m *MigrateFrom) checkChannels(g *generation, usage map[string]broker.Usage) error {
	for _, name := range slices.Sorted(maps.Keys(usage)) {
		if u := usage[name]; u.Pending+u.Dead > 0 && !g.keeps(name) {
			return fmt.Errorf("migrate_from: the store %s holds messages of channel %s, %d unfinished and %d dead letters, and it is not configured "+
				"at_least_once: configure it, until they are delivered or dropped", m.Path, name, u.Pending, u.Dead)
		}
	}
	return nil
}

// explain says what to do about an error of the move.
func (m *MigrateFrom) explain(err error) error {
	advice := "the file is still there, complete; when that is mended, start Caddy again: the copy goes on where it stopped"
	switch {
	case errors.Is(err, broker.ErrMovedElsewhere):
		advice = "use the broker that it names, or take migrate_from out; to move once more what the file had then, run \"caddy relay unmove " + m.Path + "\" first"
	case errors.Is(err, broker.ErrMoveDiffers):
		advice = "the file is still there, complete; delete the relay's keys in redis (those that begin with its prefix), if nothing else has " +
			"stored there, and start Caddy again"
	}
	return fmt.Errorf("migrate_from: moving the messages of %s: %w: %s", m.Path, err, advice)
}

// untilExit returns a context that ends when Caddy begins to exit: a move that takes minutes must not hold that up.
func untilExit() (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancelCause(context.Background())
	go func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if caddy.Exiting() {
					stop(errors.New("caddy exits"))
				}
			}
		}
	}()
	return ctx, func() { stop(nil) }
}
