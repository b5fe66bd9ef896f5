package redisbroker

import (
	"context"
	"errors"
	"fmt"
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

// newStoreClient is newClient with a look at the server at each connect, before anything else goes over the
// connection.
func (b *Broker) newStoreClient() *redis.Client {
	o := *b.newClientOptions(b.dial)
	o.OnConnect = b.inspect
	return redis.NewClient(&o)
}

// inspect looks at the server and at the format of what it holds. Its error ends the connection.
func (b *Broker) inspect(ctx context.Context, conn *redis.Conn) error {
	if err := b.checkRole(ctx, conn); err != nil {
		return err
	}
	c, err := b.look(ctx, conn)
	if err == nil {
		err = b.checkFormat(ctx, conn)
		c.err = err
	}
	if err != nil && !errors.Is(err, broker.ErrFormat) {
		return err
	}
	b.store.setCondition(c)
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
		known: true, policy: info["maxmemory_policy"],
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

// setCondition notes what was seen, and logs what an operator has to do, once for each change.
func (s *store) setCondition(c condition) {
	s.mu.Lock()
	complaint := ""
	for _, p := range s.policies {
		if !p.AllowVolatile {
			complaint = c.volatile()
		}
	}
	if c.err != nil {
		complaint = c.err.Error()
	}
	news := complaint != s.complaint
	s.condition, s.complaint = c, complaint
	s.mu.Unlock()
	switch log := s.b.o.Logger; {
	case !news:
	case complaint != "":
		log.Error("redis cannot be trusted with messages; at_least_once channels are answered 503, but those with allow_volatile",
			"address", s.b.o.Address, "remedy", complaint)
	default:
		log.Info("redis keeps messages", "address", s.b.o.Address)
	}
}

func (s *store) seen() condition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.condition
}

// admit returns why a message of a channel with policy p cannot be taken by a server in this condition.
func (s *store) admit(p broker.Policy) error {
	c := s.seen()
	if !c.known || c.err != nil {
		return c.err // without a connection, making one tells
	}
	if why := c.volatile(); why != "" && !p.AllowVolatile {
		return fmt.Errorf("%w: %w: redis at %s may forget messages: %s", broker.ErrRefused, broker.ErrUnavailable, s.b.o.Address, why)
	}
	return nil
}

// Ready implements [broker.Store].
func (b *Broker) Ready() error {
	leave, err := b.enter()
	if err != nil {
		return err
	}
	leave()
	s := b.store
	c := s.seen()
	if c.err != nil {
		return b.explain(c.err)
	}
	if err := s.failure(); err != nil {
		return err
	}
	if !c.known {
		return fmt.Errorf("%w: redis at %s was not reached yet", broker.ErrUnavailable, b.o.Address)
	}
	asked := b.settings.Load().Replicas
	if c.replicas < asked {
		return fmt.Errorf("%w: %d replicas must confirm each message, and redis at %s has %d: see its INFO replication",
			broker.ErrUnavailable, asked, b.o.Address, c.replicas)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, p := range s.policies {
		if why := c.volatile(); why != "" && !p.AllowVolatile {
			return fmt.Errorf("%w: channel %s: redis at %s may forget messages: %s", broker.ErrUnavailable, name, b.o.Address, why)
		}
		if got := c.proven(replicas{asked, asked}); !got.Meets(p.Durability) {
			return fmt.Errorf("%w: channel %s demands the durability %s, and redis at %s gives %s",
				broker.ErrUnavailable, name, p.Durability, b.o.Address, got)
		}
	}
	return nil
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

// sentinelRights are what the user needs on top when Sentinels say who the primary is.
const sentinelRights = " +role"
