package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/caddyrelay/relay/broker"
)

// condition is what is known of the server, by looking at it.
type condition struct {
	known  bool
	err    error // why it cannot be used at all
	aof    bool  // it writes an append-only file, and the last write went well
	fsync  string
	policy string // what it does at maxmemory
	runID  string // of the server's process
	// replicas is how many are connected; they may lag behind.
	replicas int
}

// volatile says why the server may forget what it has taken, with the command that mends it; empty if it does not.
func (c condition) volatile() string {
	switch {
	case c.policy != "" && c.policy != "noeviction":
		return fmt.Sprintf("it evicts keys when memory is full (maxmemory-policy %s): CONFIG SET maxmemory-policy noeviction, and CONFIG REWRITE", c.policy)
	case !c.aof:
		return "it does not keep an append-only file, or cannot write to it: write \"appendonly yes\" into redis.conf, or CONFIG SET appendonly yes and " +
			"CONFIG REWRITE. If it was restarted without, restart it with it first: CONFIG SET would begin a new file in place of the one that has the messages"
	}
	return ""
}

// level is what a write has proven that the server has answered.
func (c condition) level() broker.Durability {
	switch {
	case c.volatile() != "" || c.fsync == "no":
		return broker.Memory
	case c.fsync == "always":
		return broker.AOFAlways
	}
	return broker.AOFEverysec
}

// newClient returns a client for the shard with a look at the server at each connect, before anything else goes over the
// connection.
func (sh *shard) newClient() *redis.Client {
	b := sh.s.b
	o := *b.newClientOptions(func(ctx context.Context, network, addr string) (net.Conn, error) {
		if sh.addr == "" {
			return b.dialPrimary(ctx, network)
		}
		return b.connect(ctx, network, sh.addr)
	})
	o.OnConnect = sh.inspect
	return redis.NewClient(&o)
}

// inspect looks at the server and at the format of what it holds. Its error ends the connection.
func (sh *shard) inspect(ctx context.Context, conn *redis.Conn) error {
	b := sh.s.b
	if err := b.checkRole(ctx, conn); err != nil {
		return err
	}
	c, err := b.look(ctx, conn)
	if err == nil && sh.addr == "" { // on a cluster another primary may have the key; see lookAtFormat
		err = sh.s.noteFormat(b.checkFormat(ctx, conn))
	}
	if err != nil && !errors.Is(err, broker.ErrFormat) {
		return err
	}
	sh.setCondition(c)
	return err
}

// lookAtFormat looks at the format of the keys, wherever that is said.
func (s *store) lookAtFormat(ctx context.Context) error {
	err := s.noteFormat(s.b.checkFormat(ctx, commander{s: s}))
	if errors.Is(err, broker.ErrFormat) {
		return nil // it is known
	}
	return err
}

// noteFormat notes what was found.
func (s *store) noteFormat(err error) error {
	switch {
	case err == nil:
		s.formatErr.Store(nil)
		s.formatSeen.Store(true)
	case errors.Is(err, broker.ErrFormat):
		s.formatErr.CompareAndSwap(nil, &err) // what comes later may be the driver's words for it
		s.formatSeen.Store(true)
	}
	return err
}

// asker is a connection, or a client.
type asker interface {
	Do(ctx context.Context, args ...any) *redis.Cmd
}

// look asks the server about itself. INFO is enough; CONFIG, which many users may not, tells more.
func (b *Broker) look(ctx context.Context, conn asker) (condition, error) {
	text, err := conn.Do(ctx, "INFO").Text()
	if err != nil {
		return condition{}, err
	}
	info := make(map[string]string)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			info[name] = value
		}
	}
	c := condition{
		known: true, policy: info["maxmemory_policy"], runID: info["run_id"],
		aof: info["aof_enabled"] == "1" && info["aof_last_write_status"] != "err",
	}
	c.replicas, _ = strconv.Atoi(info["connected_slaves"])
	reply, err := conn.Do(ctx, "CONFIG", "GET", "appendfsync").Result()
	var refused redis.Error
	if err != nil && !errors.As(err, &refused) {
		return condition{}, err
	}
	switch v := reply.(type) {
	case map[any]any:
		c.fsync, _ = v["appendfsync"].(string)
	case []any:
		if len(v) == 2 {
			c.fsync, _ = v[1].(string)
		}
	}
	return c, nil
}

// checkFormat writes the format of the keys at the first use, and compares it later.
func (b *Broker) checkFormat(ctx context.Context, conn asker) error {
	key := b.names.meta()
	for _, field := range []struct {
		name  string
		value int
	}{{"partitions", partitions}, {"format", format}} {
		found, err := conn.Do(ctx, "HGET", key, field.name).Text()
		if errors.Is(err, redis.Nil) {
			if err := conn.Do(ctx, "HSETNX", key, field.name, field.value).Err(); err != nil {
				return err
			}
			found, err = conn.Do(ctx, "HGET", key, field.name).Text()
		}
		if err != nil {
			return err
		}
		if found != strconv.Itoa(field.value) {
			return fmt.Errorf("%w: the keys in redis that begin with %s: have %s %s, and this release reads %s %d: "+
				"use the release that wrote them, or another prefix, or delete them",
				broker.ErrFormat, b.o.Prefix, field.name, found, field.name, field.value)
		}
	}
	return nil
}

// Ready implements [broker.Store]. On a cluster it is ready as long as any partition is; see Unavailable.
func (b *Broker) Ready() error {
	leave, err := b.enter()
	if err != nil {
		return err
	}
	leave()
	all := b.store.current()
	if len(all) == 0 {
		return fmt.Errorf("%w: redis at %s was not reached yet", broker.ErrUnavailable, b.o.Address)
	}
	for _, sh := range all {
		if err = sh.ready(); err == nil {
			return nil
		}
	}
	return err
}

// proven is what an append has proven that so many replicas have confirmed.
func (c condition) proven(r replicas) broker.Durability {
	if r.asked == 0 {
		return c.level()
	}
	return c.level() + "+" + broker.Replicas(r.confirmed, r.asked)
}

// storeRights are what the user needs on top to keep messages. The commands of the scripts are among
// them. Without config|get the level aof_always is never named.
const storeRights = " +evalsha +script|load +ping +info +config|get +wait +time" +
	" +del +exists +rename +pttl +pexpireat +persist" +
	" +hget +hmget +hgetall +hset +hsetnx +hdel +hincrby" +
	" +hscan +set" +
	" +lindex +llen +lpop +lrange +lrem +lset +rpush" +
	" +sadd +smembers +srem" +
	" +zadd +zcard +zrange +zrangebyscore +zrem +zremrangebyrank +zrevrange +zscore"

// clusterRights are what the user needs on top on a Redis Cluster, of Redis 7 or later.
const clusterRights = " +cluster|slots +spublish +ssubscribe +sunsubscribe"

// sentinelRights are what the user needs on top when Sentinels say who the primary is.
const sentinelRights = " +role"
