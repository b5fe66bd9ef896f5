package redisbroker

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker/brokertest"
	"github.com/caddyrelay/relay/internal/redistest"
)

// The keys of format 1 as the release that introduced it wrote them, as the commands that make them. When the format
// changes this file stays, and a new one is added: run this test with the name of a file that isn't there.
func TestFormat1(t *testing.T) {
	const kept = "testdata/format1.redis"
	server := redistest.Start(t, durable...)
	client := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer client.Close()
	if _, err := os.Stat(kept); err != nil {
		b := open(t, Options{Address: server.Addr(), Node: "node"})
		b.SetPolicies(brokertest.FormatPolicies())
		brokertest.FillFormat(t, b)
		saveKeys(t, client, kept)
		t.Fatalf("%s was missing, and is new now: look at it and commit it", kept)
	}
	loadKeys(t, client, kept)
	b := open(t, Options{Address: server.Addr()})
	b.SetPolicies(brokertest.FormatPolicies())
	brokertest.CheckFormat(t, b)
}

// saveKeys writes the commands that make all keys of the server.
func saveKeys(t *testing.T, client *redis.Client, path string) {
	t.Helper()
	ctx := context.Background()
	var text strings.Builder
	write := func(words ...string) {
		for i, w := range words {
			words[i] = strconv.Quote(w)
		}
		fmt.Fprintln(&text, strings.Join(words, " "))
	}
	keys := client.Keys(ctx, "*").Val()
	slices.Sort(keys)
	for _, key := range keys {
		switch kind := client.Type(ctx, key).Val(); kind {
		case "hash":
			words := []string{"HSET", key}
			all := client.HGetAll(ctx, key).Val()
			var fields []string
			for field := range all {
				fields = append(fields, field)
			}
			slices.Sort(fields)
			for _, field := range fields {
				words = append(words, field, all[field])
			}
			write(words...)
		case "list":
			write(append([]string{"RPUSH", key}, client.LRange(ctx, key, 0, -1).Val()...)...)
		case "set":
			members := client.SMembers(ctx, key).Val()
			slices.Sort(members)
			write(append([]string{"SADD", key}, members...)...)
		case "zset":
			words := []string{"ZADD", key}
			for _, z := range client.ZRangeWithScores(ctx, key, 0, -1).Val() {
				words = append(words, strconv.FormatFloat(z.Score, 'f', -1, 64), z.Member.(string))
			}
			write(words...)
		default:
			t.Fatalf("%s is a %s", key, kind)
		}
		if at := client.Do(ctx, "PEXPIRETIME", key).Val().(int64); at > 0 {
			write("PEXPIREAT", key, strconv.FormatInt(at, 10))
		}
	}
	if err := os.WriteFile(path, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

func loadKeys(t *testing.T, client *redis.Client, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var args []any
		for rest := lines.Text(); rest != ""; rest = strings.TrimPrefix(rest, " ") {
			quoted, err := strconv.QuotedPrefix(rest)
			if err != nil {
				t.Fatal(err)
			}
			word, err := strconv.Unquote(quoted)
			if err != nil {
				t.Fatal(err)
			}
			args, rest = append(args, word), rest[len(quoted):]
		}
		if err := client.Do(context.Background(), args...).Err(); err != nil {
			t.Fatalf("%q: %v", args, err)
		}
	}
	if err := lines.Err(); err != nil {
		t.Fatal(err)
	}
}
