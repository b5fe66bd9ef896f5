package redisbroker

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/boltbroker"
	"github.com/caddyrelay/relay/broker/brokertest"
	"github.com/caddyrelay/relay/internal/redistest"
)

func TestMigration(t *testing.T) { brokertest.RunMigration(t, migrationHarness()) }

func migrationHarness() brokertest.MigrationHarness {
	return brokertest.MigrationHarness{
		Target: storeHarness(),
		Audit: func(t testing.TB, target broker.Store) {
			b := target.(*Broker)
			auditAt(t, b.o.Address, b)
		},
		Source: func(t testing.TB) (brokertest.StoreBackend, func() brokertest.SourceExport) {
			path := filepath.Join(t.TempDir(), "relay.db")
			open := func() broker.Store { return boltbroker.New(boltbroker.Options{Path: path, NoSync: true, Node: "one"}) }
			return brokertest.StoreBackend{Open: open}, func() brokertest.SourceExport {
				e, err := boltbroker.OpenExport(path)
				if err != nil {
					t.Fatal(err)
				}
				return e
			}
		},
	}
}

// source makes a store of the embedded broker with some of everything, and opens it for export.
func source(t *testing.T, messages int) *boltbroker.Export {
	t.Helper()
	path := filepath.Join(t.TempDir(), "relay.db")
	s := boltbroker.New(boltbroker.Options{Path: path, NoSync: true})
	for i := range messages {
		m := message("01", "", fmt.Sprint(i))
		m.Ref = "order"
		if _, err := s.Append(timeout(t), m, broker.AppendOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	box, page, err := s.Attach(timeout(t), "c", "01", new(owner), broker.AttachOptions{Limit: 2})
	if err != nil {
		t.Fatal(err)
	}
	mustSettle(t, box, broker.StateAcked, page.Entries[0])
	mustSettle(t, box, broker.StateDead, page.Entries[1])
	if err := errors.Join(box.Detach(timeout(t), nil), s.Close()); err != nil {
		t.Fatal(err)
	}
	e, err := boltbroker.OpenExport(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	return e
}

// I9: at maxmemory nothing is copied by half, and with room again the copy goes on.
func TestI9_MigrationAtMaxMemory(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	from := source(t, 200)
	m := broker.Migration{From: from, To: b, Name: "there", Channels: []string{"c"}, Patience: time.Millisecond}
	server.CLI("CONFIG", "SET", "maxmemory", "1")
	if _, err := m.Run(timeout(t)); !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "raise maxmemory") {
		t.Errorf("moving into a full redis: %v", err)
	}
	if keys := server.CLI("KEYS", "*:[qmrnob]*:*"); strings.TrimSpace(keys) != "" {
		t.Errorf("half done:\n%s", keys)
	}
	server.CLI("CONFIG", "SET", "maxmemory", "0")
	if moved, err := m.Run(timeout(t)); err != nil || moved.Items != 200 {
		t.Errorf("with room again: %+v, %v", moved, err)
	}
	audit(t, server, b)
}

// A Redis that may forget what it takes is refused before anything is noted in the file.
func TestI1_MigrationIntoVolatile(t *testing.T) {
	server := redistest.Start(t)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	from := source(t, 5)
	_, err := broker.Migration{From: from, To: b, Name: "there", Channels: []string{"c"}}.Run(timeout(t))
	if !errors.Is(err, broker.ErrUnavailable) || !strings.Contains(err.Error(), "appendonly yes") {
		t.Errorf("moving into a redis without a file: %v", err)
	}
	if m, begun := from.Move(); begun {
		t.Errorf("noted: %+v", m)
	}
}

// What the broker demands of replicas is demanded of the copy.
func TestI1_MigrationWaitsForReplicas(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr(), Settings: Settings{Replicas: 1}}, broker.Policy{})
	from := source(t, 5)
	_, err := broker.Migration{From: from, To: b, Name: "there", Channels: []string{"c"}, Patience: time.Millisecond}.Run(timeout(t))
	if !errors.Is(err, broker.ErrUnproven) {
		t.Errorf("moving without the replica: %v", err)
	}
	if m, _ := from.Move(); !m.Done.IsZero() {
		t.Errorf("noted as complete: %+v", m)
	}
	redistest.Start(t, append(durable, "--replicaof", "127.0.0.1 "+server.Port())...)
	until(t, "the replica", func() bool {
		_, err = broker.Migration{From: from, To: b, Name: "there", Channels: []string{"c"}, Patience: time.Millisecond}.Run(timeout(t))
		return err == nil
	})
}

// What is counted wrongly is found.
func TestBooksAreCompared(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	mustAppend(t, b, "01", "x")
	part := placeOf("c", "01").part
	if err := b.store.checkBooks(timeout(t), []string{"c"}); err != nil {
		t.Error(err)
	}
	for _, field := range []string{"pending", "bytes", "records", "dead"} {
		server.CLI("HINCRBY", b.names.in(part, "n:c"), field, "1")
		if err := b.store.checkBooks(timeout(t), []string{"c"}); !errors.Is(err, broker.ErrMoveDiffers) || !strings.Contains(err.Error(), field) {
			t.Errorf("with one more of %s: %v", field, err)
		}
		server.CLI("HINCRBY", b.names.in(part, "n:c"), field, "-1")
	}
}

// The rights that errors name are enough to move in.
func TestMigrationRightsAreEnough(t *testing.T) {
	server := redistest.Start(t, durable...)
	o := Options{Address: server.Addr(), Prefix: "mine", Settings: Settings{Username: "u", Password: "pw"}}
	asks := open(t, o)
	asks.store.begun.Store(true)
	named := strings.TrimSuffix(asks.rights(), " and & with each channel's name")
	server.CLI(append([]string{"ACL", "SETUSER", "u", "on", ">pw"}, strings.Fields(named)...)...)
	b := openStore(t, o, broker.Policy{})
	if _, err := (broker.Migration{From: source(t, 5), To: b, Name: "there", Channels: []string{"c"}}).Run(timeout(t)); err != nil {
		t.Error(err)
	}
	if text := server.CLI("ACL", "LOG"); text != "" {
		t.Errorf("denied: %s", text)
	}
}

// A server that was restarted while the copy was compared may have lost what was compared.
func TestI1_MigrationAcrossARestart(t *testing.T) {
	server := redistest.Start(t, durable...)
	b := openStore(t, Options{Address: server.Addr()}, broker.Policy{})
	compared := func(f func()) error {
		return b.Prove(timeout(t), []string{"c"}, func() error { f(); return nil })
	}
	if err := compared(func() {}); err != nil {
		t.Error(err)
	}
	err := compared(func() {
		server.Kill()
		server.Restart()
		until(t, "the broker to be back", func() bool { _, err := b.Usage(timeout(t)); return err == nil })
	})
	if !errors.Is(err, broker.ErrMoveLost) {
		t.Errorf("after a restart: %v", err)
	}
}

func TestImportScriptHeads(t *testing.T) {
	for _, s := range []*script{scriptImport, scriptImportRead, scriptBooks} {
		for _, want := range []string{"\n-- KEYS ", "\n-- ARGV ", "\n-- returns "} {
			if !strings.Contains(s.text, want) {
				t.Errorf("%s.lua does not say %q", s.name, strings.TrimSpace(want))
			}
		}
	}
}
