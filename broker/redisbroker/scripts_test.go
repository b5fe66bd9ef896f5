package redisbroker

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// since says which release of Redis has a command, as it is used here. Forms that are newer than the command are
// named in newer.
var since = map[string]string{
	"DEL": "1.0", "EXISTS": "1.0", "RENAME": "1.0", "PTTL": "2.6", "PEXPIREAT": "2.6", "PERSIST": "2.2", "TIME": "2.6",
	"HGET": "2.0", "HMGET": "2.0", "HGETALL": "2.0", "HSET": "4.0", "HSETNX": "2.0", "HDEL": "2.4", "HINCRBY": "2.0", "HSCAN": "2.8",
	"LINDEX": "1.0", "LLEN": "1.0", "LPOP": "1.0", "LRANGE": "1.0", "LREM": "1.0", "LSET": "1.0", "RPUSH": "2.4",
	"SADD": "2.4", "SMEMBERS": "1.0", "SREM": "2.4",
	"ZADD": "2.4", "ZCARD": "1.2", "ZRANGE": "1.2", "ZRANGEBYSCORE": "1.0.5", "ZREM": "2.4", "ZREMRANGEBYRANK": "2.0",
	"ZREVRANGE": "1.2", "ZSCORE": "1.2", "INFO": "1.0", "CONFIG": "2.0", "WAIT": "3.0", "ROLE": "2.8.12", "PUBLISH": "2.0", "SET": "2.6.12",
}

// newer are options that only releases after 6.2 have.
var newer = regexp.MustCompile(`'(PEXPIRE|PEXPIREAT)'[^\n]*'(NX|XX|GT|LT)'|'HEXPIRE|'EXPIRETIME|'PEXPIRETIME|'(LMPOP|ZMPOP|SINTERCARD)'|^#!`)

// Redis 6.2 is what a Debian of three years ago has.
func TestCommandsOfRedis62(t *testing.T) {
	scripts, _ := filepath.Glob("scripts/*.lua")
	sources, _ := filepath.Glob("*.go")
	if len(scripts) < 10 || len(sources) < 10 {
		t.Fatalf("%d scripts, %d sources", len(scripts), len(sources))
	}
	inLua := regexp.MustCompile(`redis\.p?call\(([^,)]*)`)
	inGo := regexp.MustCompile(`(?:newOp\(nil, nil, |\.command\(ctx, |\.Do\(ctx, )"([^"]*)"`)
	for _, file := range append(scripts, sources...) {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		re := inGo
		if strings.HasSuffix(file, ".lua") {
			re = inLua
			if f := newer.FindString(string(text)); f != "" {
				t.Errorf("%s uses %s, which Redis 6.2 does not know", file, f)
			}
		}
		for _, m := range re.FindAllStringSubmatch(string(text), -1) {
			name := strings.Trim(m[1], "'")
			if strings.Contains(clusterRights+" ", " +"+strings.ToLower(name)+" ") {
				continue // Cluster mode is for Redis 7
			}
			if since[name] == "" {
				t.Errorf("%s calls %s, which is not known to be in Redis 6.2", file, m[1])
			}
			if !strings.Contains(" "+rights+storeRights+sentinelRights+" ", " +"+strings.ToLower(name)) {
				t.Errorf("%s calls %s, which is not in storeRights", file, name)
			}
		}
	}
}

// Numbers of the size of a sequence must not be put into a string by Lua itself: that gives 1.79e+15.
func TestNumbersInScripts(t *testing.T) {
	scripts, _ := filepath.Glob("scripts/*.lua")
	for _, file := range scripts {
		text, _ := os.ReadFile(file)
		for i, line := range strings.Split(string(text), "\n") {
			code, _, _ := strings.Cut(line, "--")
			if strings.Contains(code, "tostring") || regexp.MustCompile(`\.\.\s*(seq|fence|now|ms|due|expires|retain|size|slot)\b`).MatchString(code) {
				t.Errorf("%s:%d: %s", file, i+1, strings.TrimSpace(line))
			}
		}
	}
}

// All keys of a script are in one slot, and every script is documented.
func TestScriptHeads(t *testing.T) {
	for _, s := range []*script{scriptAppend, scriptAttach, scriptRead, scriptSettle, scriptScan, scriptOwner, scriptContent,
		scriptLookup, scriptDead, scriptGet, scriptResend, scriptDrop, scriptUsage, scriptRef, scriptLease} {
		for _, want := range []string{"\n-- KEYS ", "\n-- ARGV ", "\n-- returns "} {
			if !strings.Contains(s.text, want) {
				t.Errorf("%s.lua does not say %q", s.name, strings.TrimSpace(want))
			}
		}
		if len(s.sha) != 40 {
			t.Errorf("%s has the name %q", s.name, s.sha)
		}
	}
}

// The rights that errors name are enough for all that a store does.
func TestStoreRightsAreEnough(t *testing.T) {
	server := redistest.Start(t, durable...)
	o := Options{Address: server.Addr(), Prefix: "mine", Settings: Settings{Username: "u", Password: "pw"}}
	asks := open(t, o)
	asks.store.begun.Store(true) // as if: it is to connect only when the user is there
	named := strings.TrimSuffix(asks.rights(), " and & with each channel's name")
	server.CLI(append([]string{"ACL", "SETUSER", "u", "on", ">pw"}, strings.Fields(named)...)...)
	b := open(t, o)
	b.SetPolicies(map[string]broker.Policy{"c": {}})
	useAll(t, b)
	if text := server.CLI("ACL", "LOG"); text != "" {
		t.Errorf("denied: %s", text)
	}
}

// useAll calls whatever a store has.
func useAll(t *testing.T, b *Broker) {
	t.Helper()
	until(t, "the store", func() bool { return b.Start() == nil && b.Ready() == nil })
	ref := message("01", "", "0")
	ref.Ref = "order"
	if _, err := b.Append(timeout(t), ref, broker.AppendOptions{TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := b.Append(timeout(t), message("01", "k", "1"), broker.AppendOptions{Key: "k", Wait: true}); err != nil {
			t.Fatal(err)
		}
	}
	short := message("02", "", "2")
	if _, err := b.Append(timeout(t), short, broker.AppendOptions{TTL: time.Millisecond}); err != nil {
		t.Fatal(err)
	}
	m, page := mustAttach(t, b, "01", new(owner), 2)
	mustSettle(t, m, broker.StateDead, page[0])
	if _, err := b.Resend(timeout(t), ref.MID, 0); err != nil {
		t.Error(err)
	}
	rest, err := entries(m.Read(timeout(t), page[1].Seq, 10, 100))
	if err != nil || len(rest) != 1 {
		t.Fatalf("%d entries, %v", len(rest), err)
	}
	mustSettle(t, m, broker.StateDead, rest[0])
	if p, err := b.DeadLetters(timeout(t), "c", broker.DeadQuery{}); err != nil || len(p.Letters) != 1 {
		t.Errorf("%d dead letters, %v", len(p.Letters), err)
	}
	if err := b.Drop(timeout(t), ref.MID); err != nil {
		t.Error(err)
	}
	if _, err := b.Content(timeout(t), page[1].Message.MID); err != nil {
		t.Error(err)
	}
	if found, err := b.Find(timeout(t), "c", "order", 10); err != nil || len(found) != 1 || found[0].State != broker.StateErased {
		t.Errorf("found %+v, %v", found, err)
	}
	until(t, "a message to expire", func() bool { return stateOf(t, b, short.MID) == broker.StateExpired })
	if err := m.Detach(timeout(t), nil); err != nil {
		t.Error(err)
	}
	if c, err := b.Cancel(timeout(t), page[1].Message.MID); err != nil || c != broker.CancelTooLate && c != broker.CancelDone {
		t.Errorf("cancel: %d, %v", c, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := b.Await(ctx, page[1].Message.MID); err != nil {
		t.Error(err)
	}
	if _, err := b.Usage(timeout(t)); err != nil {
		t.Error(err)
	}
	l := b.NewLease("classic:c", time.Minute)
	if held, err := l.Take(timeout(t)); err != nil || !held {
		t.Errorf("lease: %v, %v", held, err)
	}
	if err := l.Release(timeout(t)); err != nil {
		t.Error(err)
	}
}

func TestTagsAreBalanced(t *testing.T) {
	if slot("123456789") != 0x31C3 {
		t.Error("this is not the CRC that Redis has")
	}
	for k, tag := range tags {
		if s := slot(tag); s < k*slots/partitions || s >= (k+1)*slots/partitions {
			t.Errorf("tag %s of partition %d is in slot %d", tag, k, s)
		}
	}
}

// TestBoxNames: names that are made to collide do not.
func TestBoxNames(t *testing.T) {
	known := make(map[string]bool)
	for _, p := range [][2]string{{"a:b", "c"}, {"a", "b:c"}, {"1:a", "b"}, {"", "1:a1:b"}, {"a1", ":b"}} {
		box := boxName(p[0], p[1])
		if known[box] {
			t.Errorf("%q has the name of another", p)
		}
		known[box] = true
		if c, id, err := parseBox(box); err != nil || c != p[0] || id != p[1] {
			t.Errorf("%q is read as %q, %q, %v", box, c, id, err)
		}
	}
	for _, bad := range []string{"", "1", "1:", "9:a1:b", "1:a1:bc", "-1:a1:b", "1:a"} {
		if _, _, err := parseBox(bad); err == nil {
			t.Errorf("%q is read", bad)
		}
	}
}
