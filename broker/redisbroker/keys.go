package redisbroker

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/caddyrelay/relay/broker"
)

// Names of keys, with prefix pp and tag {t}. On a cluster all that has one tag is in one slot, so
// one script can touch it. The number of partitions is written into pp:meta, and so is the format.
//
//	pp:{t}:q:<box>      list    the mailbox's entries; see entry.go
//	pp:{t}:m:<box>      hash    f fence, o owner, w its window, l last sequence, n unfinished entries, b their
//	                            bytes, x holes in the list, u score in due, k 1 if deadlines are not in
//	                            order, v the last deadline, y who waits in line for it, c<seq> counts
//	pp:keep             string  the node that sees to deadlines at the moment
//	pp:live:<node>      string  expires when the node has not been heard of for a lease
//	pp:meta             hash    format, partitions; identity, once messages have moved in
//	pp:{t}:moved        string  written behind messages that moved in, for a minute
//	pp:{t}:r:<name>     hash    a record: m MID, p fingerprint, s state, c channel, i ID, f ref, t stored, x expires,
//	                            q sequence, w waiting nodes; once finished e when, a attempts, n node,
//	                            g reason, d detail, y reply
//	pp:{t}:r:<mid>      hash    a record whose key was used again after the dedupe window
//	pp:{t}:due          zset    mailbox -> the earliest deadline in it, or earlier
//	pp:{t}:channels     set     channels that anything is kept for in this partition
//	pp:{t}:n:<channel>  hash    pending, bytes, records, dead; e<slot> records that expire at a slot's begin; low the
//	                            oldest slot that may be there
//	pp:{t}:o:<channel>  zset    mailbox -> when its first entry was stored
//	pp:{t}:p:<channel>  hash    ID -> who has the mailbox: owner, since ms, window, address
//	pp:{t}:d:<channel>  zset    dead letter -> when it died
//	pp:{t}:b            hash    dead letter -> all of it
//	pp:{t}:f:<name>     zset    messages that have a ref: place and name of the record, or MID -> when
//	pp:classic:<channel> hash   o who takes in what others publish on a classic channel; see lease.go
//
// <box> is channel and ID, each with its length before it, so "a:b" with "c" is not "a" with "b:c".
const (
	format     = 1
	partitions = 64

	// slotMillis is the grain in which records expire, so that the number that is left is known
	// without looking at them.
	slotMillis = 10 * 60 * 1000
)

// place is a mailbox by all its names.
type place struct {
	channel, id string
	box         string // both in one
	part        int
}

func placeOf(channel, id string) place {
	return place{channel: channel, id: id, box: boxName(channel, id), part: partition(broker.PlaceOf(channel, id))}
}

func boxName(channel, id string) string {
	return strconv.Itoa(len(channel)) + ":" + channel + strconv.Itoa(len(id)) + ":" + id
}

// parseBox undoes boxName.
func parseBox(box string) (channel, id string, err error) {
	rest := box
	for _, part := range []*string{&channel, &id} {
		digits, after, ok := strings.Cut(rest, ":")
		n, err := strconv.Atoi(digits)
		if !ok || err != nil || n < 0 || n > len(after) {
			return "", "", fmt.Errorf("%w: a mailbox in redis is named %q", broker.ErrFormat, box)
		}
		*part, rest = after[:n], after[n:]
	}
	if rest != "" {
		return "", "", fmt.Errorf("%w: a mailbox in redis is named %q", broker.ErrFormat, box)
	}
	return channel, id, nil
}

func partition(place int) int { return place * partitions / 1024 }

// names makes keys.
type names struct{ prefix string }

func (n names) meta() string { return n.prefix + ":meta" }

func (n names) keeper() string { return n.prefix + ":keep" }

// live is the key that says that an owner's node is alive.
func (n names) live(owner string) string { return n.prefix + ":live:" + incarnationOf(owner) }

// incarnationOf returns the process of an owner.
func incarnationOf(owner string) string {
	incarnation, _, _ := strings.Cut(owner, "#")
	return incarnation
}

// node is the channel on which a node is told; owner may have the number of an attach behind it.
func (n names) node(owner string) string {
	return n.prefix + ":node:" + incarnationOf(owner)
}

func (n names) in(part int, name string) string {
	return n.prefix + ":{" + tags[part] + "}:" + name
}

// mailbox returns the keys that every script for a mailbox begins with.
func (n names) mailbox(p place) []string {
	return []string{
		n.in(p.part, "m:"+p.box), n.in(p.part, "q:"+p.box), n.in(p.part, "due"), n.in(p.part, "n:"+p.channel),
		n.in(p.part, "o:"+p.channel), n.in(p.part, "d:"+p.channel), n.in(p.part, "b"), n.in(p.part, "channels"),
	}
}

// presence is the key that says who has mailboxes of a channel in a partition.
func (n names) presence(part int, channel string) string { return n.in(part, "p:"+channel) }

// attachment returns the keys of the scripts by which a mailbox changes hands.
func (n names) attachment(p place) []string {
	return append(n.mailbox(p), n.presence(p.part, p.channel))
}

// record returns where the record of a message is, and where it is once its key was used again. The
// MID must be one for which RecordOf returns no error.
func (n names) record(mid string) (string, string) {
	name, _ := broker.RecordOf(mid)
	part := partition(broker.Place(mid))
	return n.in(part, "r:"+name), n.in(part, "r:"+mid)
}

// recordsIn is record for a MID that a caller made up, perhaps: keys of another slot must not get into a
// script, nor those of another mailbox's messages.
func (n names) recordsIn(part int, mid string) []string {
	if _, err := broker.RecordOf(mid); err != nil || partition(broker.Place(mid)) != part {
		none := n.in(part, "r:")
		return []string{none, none}
	}
	key, aside := n.record(mid)
	return []string{key, aside}
}

// ref returns where the messages with a ref are listed.
func (n names) ref(channel, ref string) string {
	return n.in(partition(broker.PlaceOf(channel, ref)), "f:"+broker.RecordName(channel, ref, ""))
}

// tags has a tag for each partition, such that the partitions' slots spread evenly over a cluster's
// range. Tags that merely count would collide, and leave gaps.
var tags = balancedTags()

const slots = 16384 // of a Redis Cluster

// keySlot returns the slot of a key: that of its tag, if it has one.
func keySlot(key string) int {
	if _, after, ok := strings.Cut(key, "{"); ok {
		if tag, _, ok := strings.Cut(after, "}"); ok && tag != "" {
			return slot(tag)
		}
	}
	return slot(key)
}

// balancedTags returns, for each of the equal ranges of slots, the smallest number whose slot is in it.
func balancedTags() (t [partitions]string) {
	for found, i := 0, 0; found < partitions; i++ {
		tag := strconv.Itoa(i)
		if k := slot(tag) * partitions / slots; t[k] == "" {
			t[k] = tag
			found++
		}
	}
	return t
}

// slot is Redis's: CRC16 (XMODEM) of what is in the braces.
func slot(tag string) int {
	crc := uint16(0)
	for i := range len(tag) {
		crc ^= uint16(tag[i]) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return int(crc) % slots
}
