package caddyrelay

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/redisbroker"
)

func init() { caddy.RegisterModule(new(RedisBroker)) }

// RedisBroker serves many machines through Redis or Valkey: one server, a primary that Sentinels name, or a
// cluster. On at_most_once channels it uses plain PUBLISH and SUBSCRIBE, so programs that know nothing of
// the relay take part.
type RedisBroker struct {
	// Where the server is: host:port, a redis://, rediss:// or unix:// URL, or a
	// placeholder for one of these. Default 127.0.0.1:6379. A URL may carry user name and
	// database; a password belongs in its own field.
	Address string `json:"address,omitempty"`

	// Where some nodes of a Redis Cluster are, host:port each, instead of the address. They name the
	// others.
	Nodes []string `json:"nodes,omitempty"`

	// What kind of Redis there is: auto (the default) asks the server whether it is a node of a
	// cluster; standalone, sentinel, cluster.
	Mode string `json:"mode,omitempty"`

	// Where Redis Sentinels are, host:port each, instead of the address; and what they call the
	// primary. Several make sense: one that is away is passed over.
	Sentinels  []string `json:"sentinels,omitempty"`
	MasterName string   `json:"master_name,omitempty"`

	// The user and the password of the Sentinels, which have their own. The password is a
	// placeholder, as above.
	SentinelUsername string `json:"sentinel_username,omitempty"`
	SentinelPassword string `json:"sentinel_password,omitempty"`

	// The database number. Publish and subscribe are the same in all databases.
	Database int `json:"database,omitempty"`

	// The user to log in as (Redis 6 ACL). Default: Redis's default user.
	Username string `json:"username,omitempty"`

	// The password, as a placeholder such as {env.REDIS_PASSWORD} or
	// {file./run/secrets/redis}. A reload may change it: connections that stand stay, new
	// ones use it.
	Password string `json:"password,omitempty"`

	// Connect with TLS. A rediss:// URL does so too.
	TLS *RedisTLS `json:"tls,omitempty"`

	// What the names of the relay's own keys and channels begin with. The story's channels
	// have no prefix. Default relay.
	Prefix string `json:"prefix,omitempty"`

	// How many replicas must confirm a message of an at_least_once channel before it is answered
	// 2xx; and how long they have. If fewer confirm in time, the answer is 503 with
	// "stored_unconfirmed". At most 1s; default none, and 50ms. With all_replicas it is as many as are
	// connected to the primary at the moment, and at least one.
	AllReplicas    bool           `json:"all_replicas,omitempty"`
	Replicas       int            `json:"replicas,omitempty"`
	ReplicaTimeout caddy.Duration `json:"replica_timeout,omitempty"`

	// For how long the node may be out of touch with Redis until it asks the sockets of at_least_once
	// channels to try another node. Until then they stay, and what they acknowledge is settled when
	// Redis is back. Default 5m.
	IsolateAfter caddy.Duration `json:"isolate_after,omitempty"`

	// Messages to take over from another store before this one serves any, once. It may stay here
	// when that is done.
	MigrateFrom *MigrateFrom `json:"migrate_from,omitempty"`

	network, addr string
	addresses     []string // in the Caddyfile
	settings      redisbroker.Settings
}

// CaddyModule returns the Caddy module information.
func (*RedisBroker) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "relay.brokers.redis", New: func() caddy.Module { return new(RedisBroker) }}
}

// maxReplicas is more than anybody has.
const maxReplicas = 100

var keyPrefix = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,64}$`)

// check says what in the configuration cannot be. It can be asked before placeholders have values.
func (b *RedisBroker) check() error {
	if b.Prefix != "" && !keyPrefix.MatchString(b.Prefix) {
		return fmt.Errorf("broker redis: prefix %q: write 1 to 64 letters, digits, or any of _ . : -", b.Prefix)
	}
	if b.Database < 0 {
		return fmt.Errorf("broker redis: database %d: write a number from 0 up", b.Database)
	}
	if b.Replicas < 0 || b.Replicas > maxReplicas {
		return fmt.Errorf("broker redis: durability replicas %d: write a number from 1 to %d, or all, or leave it out", b.Replicas, maxReplicas)
	}
	if t := time.Duration(b.ReplicaTimeout); t < 0 || t > time.Second {
		return fmt.Errorf("broker redis: durability replicas: the time %s: write up to 1s; the default is 50ms", t)
	}
	if b.IsolateAfter < 0 {
		return errors.New("broker redis: isolate_after is negative: write a positive duration, or leave it out for 5m")
	}
	if b.AllReplicas && b.Replicas != 0 {
		return errors.New("broker redis: replicas and all_replicas contradict each other: set one of them")
	}
	if b.ReplicaTimeout != 0 && b.Replicas == 0 && !b.AllReplicas {
		return errors.New("broker redis: replica_timeout belongs to replicas: set it too, or take the time out")
	}
	for name, value := range map[string]string{"password": b.Password, "sentinel_password": b.SentinelPassword} {
		if value == "" {
			continue
		}
		if err := checkSecret("broker redis: "+name, value); err != nil {
			return err
		}
	}
	if err := b.checkMode(); err != nil {
		return err
	}
	if done, err := b.checkSentinels(); done || err != nil {
		return err
	}
	if len(b.Nodes) > 0 {
		return nil
	}
	if strings.HasPrefix(b.Address, "{") {
		return nil // not known yet
	}
	trial := *b
	if err := trial.parseAddress(); err != nil {
		return fmt.Errorf("broker redis: address: %w", err)
	}
	return nil
}

// checkMode returns an error if what is given does not suit the mode.
func (b *RedisBroker) checkMode() error {
	switch b.Mode {
	case "", "auto", "cluster", "standalone", "sentinel":
	default:
		return fmt.Errorf("broker redis: unknown mode %q: write auto, standalone, sentinel or cluster", b.Mode)
	}
	sentinels, cluster := b.MasterName != "" || len(b.Sentinels) > 0, len(b.Nodes) > 0
	switch {
	case sentinels && cluster:
		return errors.New("broker redis: master_name is for Sentinels, and nodes are those of a cluster: give one of them")
	case b.Mode == "sentinel" && !sentinels:
		return errors.New("broker redis: mode sentinel needs the addresses of the Sentinels, and what they call the primary (master_name mymaster)")
	case sentinels && (b.Mode == "cluster" || b.Mode == "standalone"):
		return fmt.Errorf("broker redis: master_name is for Sentinels, and the mode is %s: write mode sentinel, or take master_name out", b.Mode)
	case cluster && b.Mode == "standalone":
		return errors.New("broker redis: mode standalone has one address: write mode cluster, or one address")
	case (cluster || b.Mode == "cluster") && b.Database != 0:
		return fmt.Errorf("broker redis: a Redis Cluster has database 0 only: take database %d out", b.Database)
	case cluster && b.Address != "":
		return errors.New("broker redis: a cluster has nodes, and no address: give one of them")
	}
	for _, node := range b.Nodes {
		if strings.Contains(node, "://") || node == "" {
			return fmt.Errorf("broker redis: the node %q: write host:port", node)
		}
	}
	return nil
}

// checkSentinels reports whether the servers are found by Sentinels.
func (b *RedisBroker) checkSentinels() (bool, error) {
	switch {
	case len(b.Sentinels) == 0 && b.MasterName == "":
		if b.SentinelUsername != "" || b.SentinelPassword != "" {
			return false, errors.New("broker redis: sentinel_username and sentinel_password are for Sentinels: " +
				"give their addresses, and master_name")
		}
		return false, nil
	case len(b.Sentinels) == 0:
		return false, errors.New("broker redis: master_name is for Sentinels: give their addresses")
	case b.MasterName == "":
		return false, errors.New("broker redis: say what the Sentinels call the primary (master_name mymaster)")
	case b.Address != "":
		return false, errors.New("broker redis: with Sentinels there is no address: they know it")
	}
	for _, s := range b.Sentinels {
		if strings.Contains(s, "://") || s == "" {
			return false, fmt.Errorf("broker redis: the Sentinel %q: write host:port", s)
		}
	}
	return true, nil
}

// Provision implements [caddy.Provisioner].
func (b *RedisBroker) Provision(caddy.Context) error {
	if err := b.check(); err != nil {
		return err
	}
	if b.Prefix == "" {
		b.Prefix = "relay"
	}
	if b.MigrateFrom != nil {
		if err := b.MigrateFrom.provision(); err != nil {
			return err
		}
	}
	if b.MasterName == "" && len(b.Nodes) == 0 {
		if err := b.parseAddress(); err != nil {
			return fmt.Errorf("broker redis: address: %w", err)
		}
	}
	b.settings.SentinelUsername = caddy.NewReplacer().ReplaceAll(b.SentinelUsername, "")
	if b.SentinelPassword != "" {
		var err error
		if b.settings.SentinelPassword, err = secret("broker redis: sentinel_password", b.SentinelPassword); err != nil {
			return err
		}
	}
	b.settings.AllReplicas = b.AllReplicas
	b.settings.Replicas, b.settings.ReplicaTimeout = b.Replicas, time.Duration(b.ReplicaTimeout)
	b.settings.Username = caddy.NewReplacer().ReplaceAll(b.Username, "")
	if b.Password != "" {
		var err error
		if b.settings.Password, err = secret("broker redis: password", b.Password); err != nil {
			return err
		}
	}
	if b.TLS == nil {
		return nil
	}
	var err error
	if b.settings.TLS, err = b.TLS.config(b.addr); err != nil {
		return fmt.Errorf("broker redis: tls: %w", err)
	}
	return nil
}

// parseAddress understands the forms of Address.
func (b *RedisBroker) parseAddress() error {
	address := caddy.NewReplacer().ReplaceAll(b.Address, "")
	if b.Address != "" && address == "" {
		return fmt.Errorf("%s stands for nothing", b.Address)
	}
	if address == "" {
		address = "127.0.0.1:6379"
	}
	b.network = "tcp"
	if !strings.Contains(address, "://") {
		b.addr = withPort(address, "6379")
		return nil
	}
	u, err := url.Parse(address)
	if err != nil {
		return errors.New("it is not a valid URL") // which may hold a password, so it is not shown
	}
	if _, has := u.User.Password(); has && !strings.HasPrefix(b.Address, "{") {
		return errors.New("it holds a password, which anybody who can read the configuration can read: " +
			"write \"password {env.REDIS_PASSWORD}\" instead")
	}
	if password, has := u.User.Password(); has && b.Password == "" {
		b.settings.Password = password
	}
	if b.Username == "" {
		b.Username = u.User.Username()
	}
	database := strings.Trim(u.Path, "/")
	switch u.Scheme {
	case "rediss":
		if b.TLS == nil {
			b.TLS = new(RedisTLS)
		}
		b.addr = withPort(u.Host, "6379")
	case "redis":
		b.addr = withPort(u.Host, "6379")
	case "unix":
		b.network, b.addr = "unix", u.Path
		database = u.Query().Get("db")
	default:
		return fmt.Errorf("unknown scheme %q: write redis://, rediss:// or unix://", u.Scheme)
	}
	if database == "" {
		return nil
	}
	if b.Database, err = strconv.Atoi(database); err != nil {
		return fmt.Errorf("%q is not a database number", database)
	}
	return nil
}

func withPort(address, port string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), port)
}

// Key implements [BrokerModule].
func (b *RedisBroker) Key() string {
	if b.MasterName != "" {
		return fmt.Sprintf("redis %s of %s db=%d prefix=%s", b.MasterName, strings.Join(b.sentinels(), " "), b.Database, b.Prefix)
	}
	if len(b.Nodes) > 0 {
		return fmt.Sprintf("redis cluster %s prefix=%s", strings.Join(b.nodes(), " "), b.Prefix)
	}
	return fmt.Sprintf("redis %s %s db=%d prefix=%s", b.network, b.addr, b.Database, b.Prefix)
}

// sentinels returns their addresses, each with its port, in an order that does not matter.
func (b *RedisBroker) sentinels() []string { return withPorts(b.Sentinels, "26379") }

// nodes does so for those of a cluster.
func (b *RedisBroker) nodes() []string { return withPorts(b.Nodes, "6379") }

func withPorts(addresses []string, port string) (all []string) {
	for _, a := range addresses {
		all = append(all, withPort(caddy.NewReplacer().ReplaceAll(a, ""), port))
	}
	slices.Sort(all)
	return all
}

// Open implements [BrokerModule].
func (b *RedisBroker) Open(logger *slog.Logger) (broker.Broker, error) {
	host, _ := os.Hostname() // without, it has a random name
	modes := map[string]redisbroker.Mode{"standalone": redisbroker.Standalone, "cluster": redisbroker.Cluster}
	return redisbroker.New(redisbroker.Options{
		Mode: modes[b.Mode], Seeds: b.nodes(),
		Node:    host,
		Network: b.network, Address: b.addr, Sentinels: b.sentinels(), MasterName: b.MasterName, DB: b.Database, Prefix: b.Prefix, Settings: b.settings, Logger: logger,
	})
}

// Proves implements [BrokerModule].
func (b *RedisBroker) Proves() broker.Durability {
	if b.AllReplicas { // how many those are is not known here
		return broker.AOFAlways + "+" + broker.Replicas(maxReplicas, maxReplicas)
	}
	if b.Replicas == 0 {
		return broker.AOFAlways
	}
	return broker.AOFAlways + "+" + broker.Replicas(b.Replicas, b.Replicas)
}

// isolateAfter implements isolator.
func (b *RedisBroker) isolateAfter() time.Duration {
	return cmp.Or(time.Duration(b.IsolateAfter), 5*time.Minute)
}

// Apply implements [BrokerModule].
func (b *RedisBroker) Apply(to broker.Broker) { to.(*redisbroker.Broker).Configure(b.settings) }

// Interface guards
var (
	_ BrokerModule          = (*RedisBroker)(nil)
	_ caddy.Provisioner     = (*RedisBroker)(nil)
	_ caddyfile.Unmarshaler = (*RedisBroker)(nil)
)
