package brokertest

import (
	"context"
	"errors"

	"github.com/caddyrelay/relay/broker"
)

// stubborn is an importer that fails.
type stubborn struct {
	broker.Importer
	imports  func(call int, items []broker.Item) (skip bool, err error)
	readBack func([]*broker.Item)
	calls    int
}

func (s *stubborn) Import(ctx context.Context, items []broker.Item) error {
	s.calls++
	if s.imports != nil {
		if skip, err := s.imports(s.calls, items); skip || err != nil {
			return err
		}
	}
	return s.Importer.Import(ctx, items)
}

func (s *stubborn) ReadBack(ctx context.Context, items []broker.Item) ([]*broker.Item, error) {
	found, err := s.Importer.ReadBack(ctx, items)
	if s.readBack != nil && err == nil {
		s.readBack(found)
	}
	return found, err
}

func checkMovesCrash(m *move) {
	m.fill()
	crash := errors.New("crash")
	for i := range 5 {
		to := &stubborn{Importer: m.target.(broker.Importer)}
		to.imports = func(_ int, items []broker.Item) (bool, error) {
			// Some of it comes there.
			if err := to.Importer.Import(m.ctx(), items[:len(items)*i/5]); err != nil {
				m.Fatal(err)
			}
			return true, crash
		}
		_, err := m.run(to)
		m.mustFail("a copy that breaks off", err, crash)
		s := m.source.b.Open()
		_, err = s.Usage(m.ctx())
		m.mustFail("using the store that began to move", err, broker.ErrRefused)
		_ = s.Close()
	}
	m.migrate()
	for _, id := range []string{"01", "02", "03"} {
		m.mustHold(m.target, id, numbers(150)[3:]...)
	}
}

func checkMovesElsewhere(m *move) {
	m.fill()
	m.migrate()
	other := &rig{TB: m, h: m.h, b: m.h.Backend(m)}
	_, err := m.run(other.open(m.policy).(broker.Importer))
	m.mustFail("moving to a second store", err, broker.ErrMovedElsewhere)
}

func checkMovesLost(m *move) {
	m.fill()
	to := &stubborn{Importer: m.target.(broker.Importer)}
	// As if a failover had lost it: all of a page, and then some of a mailbox, of which nothing may come behind the gap.
	to.imports = func(call int, items []broker.Item) (bool, error) {
		switch call {
		case 1:
			return true, nil
		case 2:
			if err := to.Importer.Import(m.ctx(), items[:len(items)/2]); err != nil {
				return true, err
			}
			err := to.Importer.Import(m.ctx(), items[len(items)/2+10:])
			m.mustFail("copying behind a gap", err, broker.ErrMoveLost)
			return true, err
		}
		return false, nil
	}
	if _, err := m.run(to); err != nil {
		m.Errorf("copying again what was lost: %v", err)
	}
	for _, id := range []string{"01", "02", "03"} {
		m.mustHold(m.target, id, numbers(150)[3:]...)
	}
}

func checkMovesDiffers(m *move) {
	m.fill()
	for name, spoil := range map[string]func(*broker.Item){
		"body":   func(i *broker.Item) { i.Message.Body = []byte("spoiled") },
		"counts": func(i *broker.Item) { i.Tried.Failures++ },
		"order":  func(i *broker.Item) { i.Seq = 0 },
	} {
		to := &stubborn{Importer: m.target.(broker.Importer), readBack: func(found []*broker.Item) {
			for _, i := range found {
				if i != nil && i.State == broker.StateStored {
					spoil(i)
					return
				}
			}
		}}
		_, err := m.run(to)
		m.mustFail("a copy with another "+name, err, broker.ErrMoveDiffers)
	}
	m.migrate()
}

func checkMovesWentOn(m *move) {
	m.fill()
	to := &stubborn{Importer: m.target.(broker.Importer)}
	done := false
	to.readBack = func([]*broker.Item) {}
	to.imports = func(call int, items []broker.Item) (bool, error) {
		if err := to.Importer.Import(m.ctx(), items); err != nil || done {
			return true, err
		}
		done = true
		h := m.attach(m.target, "01") // another node delivers what is there already
		h.finish(broker.StateAcked, h.page[:20]...)
		h.settle(outcome(h.page[20], broker.StateStored))
		h.detach()
		return true, nil
	}
	moved, err := m.run(to)
	if err != nil || moved.Ended != 21 {
		m.Errorf("%+v, %v; want 21 that went on", moved, err)
	}
	m.mustHold(m.target, "01", numbers(150)[23:]...)
}
