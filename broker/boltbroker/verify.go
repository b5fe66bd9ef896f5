package boltbroker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	bolt "go.etcd.io/bbolt"
)

// verify reads all of a file before it is opened for writing. bbolt does so too when it opens one, but in a goroutine
// of its own, where what is damaged ends the process, and with it everything else that Caddy serves.
func verify(path string) (err error) {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	if err := looksLikeBolt(path); err != nil {
		return err
	}
	// A page that is not there faults; one that is not what it should be panics.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("%w file: %v", errDamaged, v)
		}
	}()
	db, err := bolt.Open(path, 0o600, &bolt.Options{ReadOnly: true, Timeout: lockTimeout})
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	return db.View(func(tx *bolt.Tx) error {
		if tx.Size() > info.Size() {
			return fmt.Errorf("%w file: it has %d bytes and should have %d", errDamaged, info.Size(), tx.Size())
		}
		return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
			var last []byte
			return b.ForEach(func(key, _ []byte) error {
				if last != nil && bytes.Compare(key, last) <= 0 {
					return fmt.Errorf("%w file: the keys of %s are not in order", errDamaged, name)
				}
				last = key
				return nil
			})
		})
	})
}

// looksLikeBolt keeps bbolt away from files of others: it would take a short one for its own to begin.
func looksLikeBolt(path string) error {
	f, err := os.Open(path) //nolint:gosec // the operator's own path
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var page [24]byte // the page header and the magic number of the first meta page
	if _, err := f.ReadAt(page[:], 0); err != nil {
		return errors.New("too short for a store")
	}
	const magic = 0xED0CDAED
	if binary.LittleEndian.Uint32(page[16:]) != magic && binary.BigEndian.Uint32(page[16:]) != magic {
		return errors.New("not a bbolt file")
	}
	return nil
}
