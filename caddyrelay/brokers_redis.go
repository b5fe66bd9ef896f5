package caddyrelay

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/broker/redisbroker"
)

func init() { caddy.RegisterModule(new(RedisBroker)) }

// RedisBroker serves many machines through one Redis or Valkey server. On at_most_once channels it
// uses plain PUBLISH and SUBSCRIBE, so programs that know nothing of the relay take part.
//
// Sentinel and Cluster are not available yet.
type RedisBroker struct {
	// Where the server is: host:port, a redis://, rediss:// or unix:// URL, or a
	// placeholder for one of these. Default 127.0.0.1:6379. A URL may carry user name and
	// database; a password belongs in its own field.
	Address string `json:"address,omitempty"`

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
	// "stored_unconfirmed". At most 1s; default none, and 50ms.
	Replicas       int            `json:"replicas,omitempty"`
	ReplicaTimeout caddy.Duration `json:"replica_timeout,omitempty"`

	network, addr string
	settings      redisbroker.Settings
}

// RedisTLS says how to connect with TLS.
type RedisTLS struct {
	// A PEM file with the authorities to trust. Default: the system's.
	CAFile string `json:"ca_file,omitempty"`

	// The name that the server's certificate must be for. Default: the host of the address.
	ServerName string `json:"server_name,omitempty"`

	// PEM files with a certificate to show and its key, for servers that ask for one.
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`
}

// CaddyModule returns the Caddy module information.
func (*RedisBroker) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "relay.brokers.redis", New: func() caddy.Module { return new(RedisBroker) }}
}

var keyPrefix = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,64}$`)

// check says what in the configuration cannot be. It can be asked before placeholders have values.
func (b *RedisBroker) check() error {
	if b.Prefix != "" && !keyPrefix.MatchString(b.Prefix) {
		return fmt.Errorf("broker redis: prefix %q: write 1 to 64 letters, digits, or any of _ . : -", b.Prefix)
	}
	if b.Database < 0 {
		return fmt.Errorf("broker redis: database %d: write a number from 0 up", b.Database)
	}
	if b.Replicas < 0 || b.Replicas > 100 {
		return fmt.Errorf("broker redis: durability replicas %d: write a number from 1 to 100, or leave it out", b.Replicas)
	}
	if t := time.Duration(b.ReplicaTimeout); t < 0 || t > time.Second {
		return fmt.Errorf("broker redis: durability replicas: the time %s: write up to 1s; the default is 50ms", t)
	}
	if b.ReplicaTimeout != 0 && b.Replicas == 0 {
		return errors.New("broker redis: replica_timeout belongs to replicas: set it too, or take the time out")
	}
	if b.Password != "" {
		if err := checkSecret("broker redis: password", b.Password); err != nil {
			return err
		}
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

// Provision implements [caddy.Provisioner].
func (b *RedisBroker) Provision(caddy.Context) error {
	if err := b.check(); err != nil {
		return err
	}
	if b.Prefix == "" {
		b.Prefix = "relay"
	}
	if err := b.parseAddress(); err != nil {
		return fmt.Errorf("broker redis: address: %w", err)
	}
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
		b.addr = withPort(address)
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
		b.addr = withPort(u.Host)
	case "redis":
		b.addr = withPort(u.Host)
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

func withPort(address string) string {
	if _, _, err := net.SplitHostPort(address); err == nil {
		return address
	}
	return net.JoinHostPort(strings.Trim(address, "[]"), "6379")
}

// config reads the files, so a file that is not there is an error of the configuration.
func (t *RedisTLS) config(addr string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if c.ServerName == "" {
		c.ServerName, _, _ = net.SplitHostPort(addr)
	}
	if t.CAFile != "" {
		pem, err := os.ReadFile(t.CAFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file %s holds no certificate in PEM form", t.CAFile)
		}
	}
	if t.CertFile == "" && t.KeyFile == "" {
		return c, nil
	}
	cert, err := tls.LoadX509KeyPair(t.CertFile, t.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("cert_file and key_file: %w", err)
	}
	c.Certificates = []tls.Certificate{cert}
	return c, nil
}

// Key implements [BrokerModule].
func (b *RedisBroker) Key() string {
	return fmt.Sprintf("redis %s %s db=%d prefix=%s", b.network, b.addr, b.Database, b.Prefix)
}

// Open implements [BrokerModule].
func (b *RedisBroker) Open(logger *slog.Logger) (broker.Broker, error) {
	return redisbroker.New(redisbroker.Options{
		Network: b.network, Address: b.addr, DB: b.Database, Prefix: b.Prefix, Settings: b.settings, Logger: logger,
	})
}

// Proves implements [BrokerModule].
func (b *RedisBroker) Proves() broker.Durability {
	if b.Replicas == 0 {
		return broker.AOFAlways
	}
	return broker.AOFAlways + "+" + broker.Replicas(b.Replicas, b.Replicas)
}

// Apply implements [BrokerModule].
func (b *RedisBroker) Apply(to broker.Broker) { to.(*redisbroker.Broker).Configure(b.settings) }

// UnmarshalCaddyfile implements [caddyfile.Unmarshaler]. Syntax:
//
//	redis {
//		address  <host:port or URL>
//		database <number>
//		username <name>
//		password <placeholder>
//		prefix   <text>
//		durability replicas <number> [<duration>]
//		tls {
//			ca_file     <path>
//			server_name <name>
//			cert_file   <path>
//			key_file    <path>
//		}
//	}
func (b *RedisBroker) UnmarshalCaddyfile(d *caddyfile.Dispenser) error {
	d.Next() // the broker's name
	begin := d.Token()
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		if err := b.unmarshalOption(d); err != nil {
			return err
		}
	}
	return at(begin, b.check())
}

func (b *RedisBroker) unmarshalOption(d *caddyfile.Dispenser) (err error) {
	switch option := d.Val(); option {
	case "address":
		if args := d.RemainingArgs(); len(args) != 1 {
			err = d.Errf("address: one address is expected; Sentinel and Cluster, which have several, are not available yet")
		} else {
			b.Address = args[0]
		}
	case "database":
		var text string
		if err = word(d, &text); err == nil {
			if b.Database, err = strconv.Atoi(text); err != nil {
				err = d.Errf("database: %q is not a number", text)
			}
		}
	case "username":
		err = word(d, &b.Username)
	case "password":
		err = word(d, &b.Password)
	case "prefix":
		err = word(d, &b.Prefix)
	case "tls":
		b.TLS = new(RedisTLS)
		err = b.TLS.unmarshalCaddyfile(d)
	case "durability":
		err = b.unmarshalDurability(d)
	case "mode", "master_name":
		err = d.Errf("%s is not available yet: take it out", option)
	default:
		err = unknown(d, "broker redis", "address", "database", "durability", "password", "prefix", "tls", "username")
	}
	return err
}

func (b *RedisBroker) unmarshalDurability(d *caddyfile.Dispenser) (err error) {
	args := d.RemainingArgs()
	if len(args) < 2 || len(args) > 3 || args[0] != "replicas" {
		return d.Errf("durability: write \"durability replicas 1\", with a time behind it if 50ms is not enough; " +
			"other levels are demanded in the channel")
	}
	if args[1] == "all" {
		return d.Errf("durability replicas all is not available yet: write a number")
	}
	if b.Replicas, err = strconv.Atoi(args[1]); err != nil || b.Replicas < 1 {
		return d.Errf("durability: %q is not a number of replicas", args[1])
	}
	if len(args) == 3 {
		t, err := caddy.ParseDuration(args[2])
		if err != nil {
			return d.Errf("durability: %q is not a duration: write one such as 50ms", args[2])
		}
		b.ReplicaTimeout = caddy.Duration(t)
	}
	return nil
}

func (t *RedisTLS) unmarshalCaddyfile(d *caddyfile.Dispenser) error {
	if d.NextArg() {
		return d.ArgErr()
	}
	for nesting := d.Nesting(); d.NextBlock(nesting); {
		fields := map[string]*string{
			"ca_file": &t.CAFile, "server_name": &t.ServerName, "cert_file": &t.CertFile, "key_file": &t.KeyFile,
		}
		field := fields[d.Val()]
		if field == nil {
			return unknown(d, "tls", "ca_file", "cert_file", "key_file", "server_name")
		}
		if err := word(d, field); err != nil {
			return err
		}
	}
	return nil
}

// Interface guards
var (
	_ BrokerModule          = (*RedisBroker)(nil)
	_ caddy.Provisioner     = (*RedisBroker)(nil)
	_ caddyfile.Unmarshaler = (*RedisBroker)(nil)
)
