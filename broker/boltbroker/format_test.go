package boltbroker

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/caddyrelay/relay/broker/brokertest"
)

// A file of format 1 as the release that introduced it wrote it. When the format changes this file stays, and a new
// one is added: to write it, remove nothing, and run this test with the name of a file that isn't there.
func TestFormat1(t *testing.T) {
	const kept = "testdata/format1.db"
	if _, err := os.Stat(kept); err != nil {
		b := newStore(t, Options{Path: kept, Node: "node"})
		b.SetPolicies(brokertest.FormatPolicies())
		brokertest.FillFormat(t, b)
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		t.Fatalf("%s was missing, and is new now: look at it and commit it", kept)
	}
	data, err := os.ReadFile(kept)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "relay.db")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	b := newStore(t, Options{Path: path})
	b.SetPolicies(brokertest.FormatPolicies())
	brokertest.CheckFormat(t, b)
}
