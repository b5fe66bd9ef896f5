package boltbroker

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/caddyrelay/relay/broker"
)

// keyMoved is where meta says that the messages went to another store, or began to.
var keyMoved = []byte("moved")

func encodeMove(m broker.Move) []byte {
	r := newRow()
	r.putString(m.To)
	r.putString(m.Store)
	r.putInt(millis(m.Began))
	r.putInt(millis(m.Done))
	return r.data
}

// readMove returns what meta says of a move.
func readMove(tx *bolt.Tx) (m broker.Move, moved bool, err error) {
	meta := tx.Bucket(bucketMeta)
	if meta == nil {
		return m, false, nil
	}
	value := meta.Get(keyMoved)
	if value == nil {
		return m, false, nil
	}
	r := readRow(value)
	m.To, m.Store = r.string(), r.string()
	m.Began, m.Done = fromMillis(r.int()), fromMillis(r.int())
	return m, true, r.err
}

// refuseMoved returns an error if the file's messages went elsewhere: they would be delivered twice.
func refuseMoved(db *bolt.DB, path string) error {
	var m broker.Move
	var moved bool
	err := db.View(func(tx *bolt.Tx) (err error) {
		m, moved, err = readMove(tx)
		return err
	})
	if err != nil || !moved {
		return err
	}
	refused := func(format string, args ...any) error {
		return fmt.Errorf("%w: %w: the store %s %s", broker.ErrRefused, broker.ErrUnavailable, path, fmt.Sprintf(format, args...))
	}
	if m.Done.IsZero() {
		return refused("began to move to %s on %s, and the copy is not complete: start the configuration with migrate_from again, and "+
			"it goes on; to give it up, delete the relay's keys there, run \"caddy relay unmove %s\", and start this one",
			m.To, m.Began.UTC().Format(time.RFC3339), path)
	}
	return refused("has moved to %s on %s, and its messages are delivered from there: use that broker, or set another path; "+
		"to go back to what this file had then, run \"caddy relay unmove %s\": what was delivered since is delivered again",
		m.To, m.Done.UTC().Format(time.RFC3339), path)
}

// Moved says whether the messages of a file went to another store, or began to. It changes nothing. If there is no
// file the error wraps fs.ErrNotExist.
func Moved(path string) (m broker.Move, moved bool, err error) {
	err = withFile(path, &bolt.Options{ReadOnly: true, Timeout: lockTimeout}, func(db *bolt.DB) error {
		return db.View(func(tx *bolt.Tx) (err error) {
			m, moved, err = readMove(tx)
			return err
		})
	})
	return m, moved, err
}

// Unmove takes back what was noted of a move, so that a broker opens the file again, and returns what it was.
func Unmove(path string) (m broker.Move, err error) {
	err = withFile(path, &bolt.Options{Timeout: lockTimeout}, func(db *bolt.DB) error {
		return db.Update(func(tx *bolt.Tx) error {
			was, moved, err := readMove(tx)
			if err != nil {
				return err
			}
			if !moved {
				return errors.New("it has not moved")
			}
			m = was
			return tx.Bucket(bucketMeta).Delete(keyMoved)
		})
	})
	return m, err
}

// withFile opens a file that is there and is a store, for as long as use takes. What is damaged is an error and no panic.
func withFile(path string, o *bolt.Options, use func(*bolt.DB) error) (err error) {
	fail := func(err error) error { return fmt.Errorf("the store %s: %w", path, err) }
	if _, err := os.Stat(path); err != nil {
		return fail(err)
	}
	if err := looksLikeBolt(path); err != nil {
		return fail(fmt.Errorf("%w: this is not a store of the relay", err))
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			err = fail(fmt.Errorf("%w file: %v", errDamaged, v))
		}
	}()
	db, err := bolt.Open(path, 0o600, o)
	if errors.Is(err, bolterrors.ErrTimeout) {
		err = errInUse
	}
	if err != nil {
		return fail(err)
	}
	defer func() { _ = db.Close() }()
	err = db.View(func(tx *bolt.Tx) error {
		if meta := tx.Bucket(bucketMeta); meta == nil || string(meta.Get(keyProgram)) != program {
			return errForeign
		}
		return nil
	})
	if err == nil {
		err = use(db)
	}
	if err != nil {
		return fail(err)
	}
	return nil
}

var errInUse = errors.New("a process has it open: stop that first")
