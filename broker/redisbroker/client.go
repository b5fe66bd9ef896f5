package redisbroker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/caddyrelay/relay/broker"
)

// go-redis writes to standard error by itself; what matters of it is in the errors.
func init() { redis.SetLogger(silent{}) }

type silent struct{}

func (silent) Printf(context.Context, string, ...any) {}

type dialer func(ctx context.Context, network, addr string) (net.Conn, error)

// newClient returns a client that makes its connections with dial.
func (b *Broker) newClient(dial dialer) *redis.Client {
	return redis.NewClient(b.newClientOptions(dial))
}

func (b *Broker) newClientOptions(dial dialer) *redis.Options {
	return &redis.Options{
		Network: b.o.Network, Addr: b.o.Address, DB: b.o.DB,
		Dialer: dial, OnConnect: b.checkRole,
		CredentialsProviderContext: func(context.Context) (string, string, error) {
			s := b.settings.Load()
			return s.Username, s.Password, nil
		},
		ClientName: "caddyrelay-" + b.o.Node,

		// A command that is retried can be done twice; whoever called decides.
		MaxRetries:            -1,
		DialerRetries:         1,
		ContextTimeoutEnabled: true,
		DialTimeout:           b.o.Timeout, ReadTimeout: b.o.Timeout, WriteTimeout: b.o.Timeout, PoolTimeout: b.o.Timeout,

		// One batch is under way at a time, so one connection is used, of 64 KiB of buffers, or
		// a few after failures. With a size of 1, go-redis's own dialing would start at
		// the first error; see commit.
		PoolSize: 4, PipelinePoolSize: -1,

		// Two more commands for each new connection, that servers before 7.2 answer with errors.
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
}

// dial connects to the primary over which publications go.
func (b *Broker) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return b.dialKey(ctx, network, b.names.meta())
}

// dialPrimary connects to the one primary there is, with the newest settings.
func (b *Broker) dialPrimary(ctx context.Context, network string) (net.Conn, error) {
	addr, err := b.primary(ctx)
	if err != nil {
		return nil, &dialError{err}
	}
	conn, err := b.connect(ctx, network, addr)
	if err == nil && b.o.MasterName != "" {
		b.sawPrimary(addr)
	}
	return conn, err
}

// connect connects with the newest settings.
func (b *Broker) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: b.o.Timeout}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, &dialError{err}
	}
	config := b.settings.Load().TLS
	if config == nil {
		return conn, nil
	}
	if config.ServerName == "" { // the Sentinels have named the server
		config = config.Clone()
		config.ServerName, _, _ = net.SplitHostPort(addr)
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, &dialError{fmt.Errorf("TLS handshake: %w", err)}
	}
	return secure, nil
}

// dialError marks an error after which nothing can have been sent.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

func isDialError(err error) bool {
	var dial *dialError
	return errors.As(err, &dial)
}

// explain wraps an error of go-redis with where it happened and what to do about it.
func (b *Broker) explain(err error) error { return b.explainAt(b.o.Address, err) }

func (b *Broker) explainAt(where string, err error) error {
	return fmt.Errorf("%w: redis at %s: %w%s", broker.ErrUnavailable, where, err, b.advice(err))
}

// rights are what a Redis user needs, in the words of ACL SETUSER. The channels come on top, and
// +select for a database other than 0.
const rights = "+publish +subscribe +unsubscribe +hello +client|setname"

func (b *Broker) rights() string {
	text := rights
	if b.o.DB != 0 {
		text += " +select"
	}
	if b.o.MasterName != "" {
		text += sentinelRights
	}
	if b.kind.Load() == kindCluster {
		text += clusterRights
	}
	if b.store.begun.Load() {
		text += storeRights + " ~" + b.o.Prefix + ":* &" + b.o.Prefix + ":node:*"
	}
	return text + " &" + b.o.Prefix + ":probe:* and & with each channel's name"
}

func (b *Broker) advice(err error) string {
	text := err.Error()
	var reply redis.Error
	if isDialError(err) && !errors.As(err, &reply) {
		switch {
		case strings.Contains(text, "TLS handshake"):
			return "; does redis-server listen with TLS there, with a certificate that tls trusts?"
		case errors.Is(err, os.ErrNotExist):
			return "; is redis-server running, with this unixsocket?"
		case errors.Is(err, os.ErrPermission):
			return "; the user that this program runs as must be allowed to write to it: see unixsocketperm"
		}
		return "; is redis-server running there?"
	}
	// go-redis puts words of its own before the server's while it logs in.
	for _, a := range []struct{ code, advice string }{
		{"NOAUTH", "; set the broker's password"},
		{"WRONGPASS", "; correct the broker's username and password"},
		{"NOPERM", "; the user needs " + b.rights()},
		{"MOVED", "; this is a node of a Redis Cluster: write \"mode cluster\""},
		{"ASK", "; the slot is being moved to another node of the cluster; try again in a moment"},
		{"TRYAGAIN", "; the slot is being moved to another node of the cluster; try again in a moment"},
		{"CLUSTERDOWN", "; the cluster has no primary for some slots: see CLUSTER INFO and CLUSTER NODES"},
		{"READONLY", "; this is a replica: use the address of the primary"},
		{"LOADING", "; redis-server is still loading its data: wait"},
		{"MISCONF", "; look into the log of redis-server: it cannot write to its disk"},
		{"OOM", "; redis-server is out of memory: raise maxmemory"},
	} {
		if strings.HasPrefix(text, a.code+" ") || strings.Contains(text, ": "+a.code+" ") {
			return a.advice
		}
	}
	return ""
}

// notSent reports whether err proves that the server did not do what it was asked.
func notSent(err error) bool {
	var reply redis.Error
	return isDialError(err) || errors.As(err, &reply) || errors.Is(err, redis.ErrPoolTimeout)
}
