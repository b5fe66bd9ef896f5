package broker

import (
	"fmt"
	"strconv"
	"strings"
)

// Durability names what a store has proven of a message when it answers.
//
//   - memory: the process or server holds it; it is gone if that ends.
//   - aof_everysec: Redis has it in its append-only file, which reaches the disk within
//     a second or two: a crash of redis-server loses nothing, a power failure up to that.
//   - aof_always, fsync: it is on the disk.
//   - replicas:n/m: n of the m replicas that were asked for have confirmed it.
//
// Several are joined with "+", as in "aof_everysec+replicas:1/1".
type Durability string

// The levels that are words.
const (
	Memory      Durability = "memory"
	AOFEverysec Durability = "aof_everysec"
	AOFAlways   Durability = "aof_always"
	Fsync       Durability = "fsync"
)

// Replicas returns the level "replicas:n/m".
func Replicas(n, m int) Durability { return Durability(fmt.Sprintf("replicas:%d/%d", n, m)) }

var diskRank = map[Durability]int{Memory: 0, AOFEverysec: 1, AOFAlways: 2, Fsync: 2}

// parse takes a level apart: how well the disk has it, and how many replicas do.
func (d Durability) parse() (disk, replicas int, err error) {
	for part := range strings.SplitSeq(string(d), "+") {
		if rank, ok := diskRank[Durability(part)]; ok {
			disk = max(disk, rank)
			continue
		}
		n, ok := strings.CutPrefix(part, "replicas:")
		if ok {
			n, _, _ = strings.Cut(n, "/")
			replicas, err = strconv.Atoi(n)
		}
		if !ok || err != nil || replicas < 1 && d.demand(part) {
			return 0, 0, fmt.Errorf("unknown durability %q: write memory, aof_everysec, aof_always, fsync or replicas:N", part)
		}
	}
	return disk, replicas, nil
}

// demand reports whether part is how a demand is written: without what was asked for.
func (Durability) demand(part string) bool { return !strings.Contains(part, "/") }

// Check returns an error that says what to write, if d is not a level that can be demanded.
func (d Durability) Check() error {
	if d == "" {
		return nil
	}
	_, _, err := d.parse()
	return err
}

// Meets reports whether d, which was proven, is at least what was demanded. Everything meets the
// empty demand.
func (d Durability) Meets(demanded Durability) bool {
	if demanded == "" {
		return true
	}
	disk, replicas, err := d.parse()
	if err != nil {
		return false
	}
	wantDisk, wantReplicas, err := demanded.parse()
	return err == nil && disk >= wantDisk && replicas >= wantReplicas
}
