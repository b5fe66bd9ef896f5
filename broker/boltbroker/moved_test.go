package boltbroker

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
)

// What is noted of a move is found again, keeps the file closed, and can be taken back.
func TestMoved(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	if _, _, err := Moved(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	if _, err := OpenExport(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("exporting without a file: %v", err)
	}
	b := New(Options{Path: path, NoSync: true})
	if err := b.Start(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Moved(path); err == nil || !strings.Contains(err.Error(), "a process has it open") {
		t.Errorf("of a store in use: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if m, moved, err := Moved(path); moved || err != nil {
		t.Errorf("before: %+v %t %v", m, moved, err)
	}
	e, err := OpenExport(path)
	if err != nil {
		t.Fatal(err)
	}
	now := time.UnixMilli(time.Now().UnixMilli())
	for _, test := range []struct {
		move broker.Move
		want string
	}{
		{broker.Move{To: "redis there", Store: "id", Began: now}, "began to move to redis there on "},
		{broker.Move{To: "redis there", Store: "id", Began: now, Done: now.Add(time.Second)}, "has moved to redis there on "},
	} {
		if err := e.SetMove(test.move); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		m, moved, err := Moved(path)
		if !moved || err != nil || !m.Began.Equal(test.move.Began) || !m.Done.Equal(test.move.Done) || m.To != "redis there" || m.Store != "id" {
			t.Errorf("%+v %t %v", m, moved, err)
		}
		b := New(Options{Path: path})
		if err := b.Start(); !errors.Is(err, broker.ErrRefused) || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "caddy relay unmove "+path) {
			t.Errorf("opened: %v", err)
		}
		_ = b.Close()
		if e, err = OpenExport(path); err != nil {
			t.Fatal(err)
		}
	}
	_ = e.Close()
	if m, err := Unmove(path); err != nil || m.Done.IsZero() {
		t.Errorf("taken back: %+v %v", m, err)
	}
	if _, err := Unmove(path); err == nil {
		t.Error("taken back twice")
	}
	b = New(Options{Path: path})
	defer b.Close()
	if err := b.Start(); err != nil {
		t.Error(err)
	}
}

// Files of others stay as they are.
func TestMovedOfForeignFiles(t *testing.T) {
	for name, text := range map[string]string{"empty": "", "text": strings.Repeat("not a store\n", 1000)} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := Moved(path); err == nil || !strings.Contains(err.Error(), "not a store") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := Unmove(path); err == nil {
			t.Errorf("%s: taken back", name)
		}
		if now, _ := os.ReadFile(path); string(now) != text {
			t.Errorf("%s was changed", name)
		}
	}
}
