package boltbroker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/caddyrelay/relay/broker"
)

// lockTimeout is how long to wait for another process to let go of the file, such as the one before a restart.
const lockTimeout = 2 * time.Second

// openFile opens the file or makes a new one, and reads the index. It never writes to a file that it does not know.
func (b *Broker) openFile() (*bolt.DB, *index, error) {
	path := b.o.Path
	fail := func(err error, advice string) (*bolt.DB, *index, error) {
		return nil, nil, fmt.Errorf("%w: %w: the store %s: %w: %s", broker.ErrRefused, broker.ErrUnavailable, path, err, advice)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fail(err, "make the directory, or let this user write there, or set another path")
	}
	const foreign = "this is not a store of the relay, and is left as it is: set another path, or move the file away"
	var db *bolt.DB
	err := error(nil)
	if info, e := os.Stat(path); e == nil && info.Size() > 0 {
		err = verify(path)
	}
	if err == nil {
		db, err = bolt.Open(path, 0o600, &bolt.Options{
			Timeout: lockTimeout, FreelistType: bolt.FreelistMapType, NoFreelistSync: true, NoSync: b.o.NoSync, NoGrowSync: b.o.NoSync,
		})
	}
	switch {
	case err == nil:
	case errors.Is(err, bolterrors.ErrTimeout):
		return fail(errors.New("another process has it open"), "only one process can: stop the other one, or set another path")
	case errors.Is(err, fs.ErrPermission):
		return fail(err, "let this user read and write it")
	default:
		return fail(err, foreign+"; if it is a damaged store, bring back a backup")
	}
	ix, err := b.readFile(db)
	if err != nil {
		_ = db.Close()
		if errors.Is(err, errForeign) {
			return fail(err, foreign)
		}
		return fail(err, "bring back a backup, or move the file away to begin with an empty store")
	}
	return db, ix, nil
}

var errForeign = errors.New("a bbolt file of another program")

// program is what the file says wrote it.
const program = "caddyrelay"

// readFile checks the format, makes the buckets of a new file, and reads the index.
func (b *Broker) readFile(db *bolt.DB) (*index, error) {
	empty := false
	err := db.View(func(tx *bolt.Tx) error {
		meta := tx.Bucket(bucketMeta)
		if meta == nil {
			if name, _ := tx.Cursor().First(); name != nil {
				return errForeign
			}
			empty = true
			return nil
		}
		if string(meta.Get(keyProgram)) != program {
			return errForeign
		}
		return checkFormat(meta.Get(keyFormat))
	})
	if err != nil {
		return nil, err
	}
	if empty {
		if err := b.makeBuckets(db); err != nil {
			return nil, err
		}
	}
	ix := newIndex()
	return ix, db.View(ix.read)
}

func checkFormat(value []byte) error {
	r := row{data: value}
	switch v := r.int(); {
	case r.err != nil || v < 1:
		return fmt.Errorf("%w: %w format number", broker.ErrFormat, errDamaged)
	case v > formatVersion:
		return fmt.Errorf("%w: it has format %d, and this release reads up to %d: use the release that wrote it, or a newer one",
			broker.ErrFormat, v, formatVersion)
	}
	// There is no earlier format. When there is, the file is copied aside before it is brought up to date.
	return nil
}

func (b *Broker) makeBuckets(db *bolt.DB) error {
	return db.Update(func(tx *bolt.Tx) error {
		for _, name := range allBuckets {
			if _, err := tx.CreateBucketIfNotExists(name); err != nil {
				return err
			}
		}
		meta := tx.Bucket(bucketMeta)
		return errors.Join(
			meta.Put(keyFormat, binary.AppendVarint(nil, formatVersion)),
			meta.Put(keyProgram, []byte(program)),
			meta.Put(keyCreated, []byte(b.o.Clock().UTC().Format(time.RFC3339))))
	})
}

// read rebuilds the index.
func (ix *index) read(tx *bolt.Tx) error {
	meta := tx.Bucket(bucketMeta)
	if high := meta.Get(keyHigh); len(high) == 8 {
		ix.high = binary.BigEndian.Uint64(high)
	}
	err := eachPrefix(tx.Bucket(bucketMeta), recordsKey(""), func(key, value []byte) error {
		r := readRow(value)
		ix.of(string(key[len(recordsKey("")):])).Records = int(r.int())
		return r.err
	})
	if err != nil {
		return err
	}
	err = tx.Bucket(bucketBoxes).ForEach(func(key, value []byte) error {
		channel, id, _, err := parseBoxKey(key)
		if err != nil {
			return err
		}
		r := readRow(value)
		b := ix.box(channel, id)
		b.owned, b.window = true, int(r.int())
		return r.err
	})
	if err != nil {
		return err
	}
	err = tx.Bucket(bucketEntries).ForEach(func(key, value []byte) error {
		channel, id, rest, err := parseBoxKey(key)
		if err == nil && len(rest) != 8 {
			err = fmt.Errorf("%w: %w key", broker.ErrFormat, errDamaged)
		}
		if err != nil {
			return err
		}
		expires, retain, m, err := parseEntry(value)
		if err != nil {
			return err
		}
		seq := binary.BigEndian.Uint64(rest)
		ix.high = max(ix.high, seq)
		ix.add(ix.box(channel, id), &slot{seq: seq, mid: m.MID, size: len(m.Body), due: earlier(expires, retain)})
		return nil
	})
	if err != nil {
		return err
	}
	return tx.Bucket(bucketDead).ForEach(func(key, _ []byte) error {
		channel, _, err := cutString(key)
		if err == nil {
			ix.of(channel).Dead++
		}
		return err
	})
}

// earlier returns the earlier of two deadlines, of which expires may be none.
func earlier(expires, retain time.Time) time.Time {
	if !expires.IsZero() && expires.Before(retain) {
		return expires
	}
	return retain
}

// recordsKey is where meta counts a channel's records: to count them at each start would take a minute for many.
func recordsKey(channel string) []byte { return []byte("records:" + channel) }

// eachPrefix calls f for each key that begins with prefix.
func eachPrefix(bucket *bolt.Bucket, prefix []byte, f func(key, value []byte) error) error {
	c := bucket.Cursor()
	for k, v := c.Seek(prefix); k != nil && len(k) >= len(prefix) && string(k[:len(prefix)]) == string(prefix); k, v = c.Next() {
		if err := f(k, v); err != nil {
			return err
		}
	}
	return nil
}
