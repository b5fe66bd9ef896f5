package redisbroker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// masterInterval is the time between two looks at who is the primary, while all is well.
const masterInterval = 2 * time.Second

// primary returns where the primary is: what the first Sentinel says that answers, or the one address there is.
//
// A Sentinel that was cut off may name one that is none any more; whoever connects looks at its role.
func (b *Broker) primary(ctx context.Context) (string, error) {
	if b.o.MasterName == "" {
		return b.o.Address, nil
	}
	var failures []error
	first := int(b.sentinel.Load())
	for i := range b.o.Sentinels {
		n := (first + i) % len(b.o.Sentinels)
		addr, err := b.askSentinel(ctx, b.o.Sentinels[n])
		if err == nil {
			b.sentinel.Store(int32(n)) //nolint:gosec // a few
			return addr, nil
		}
		failures = append(failures, fmt.Errorf("sentinel %s: %w", b.o.Sentinels[n], err))
	}
	return "", fmt.Errorf("no sentinel knows the primary %s: %w", b.o.MasterName, errors.Join(failures...))
}

func (b *Broker) askSentinel(ctx context.Context, sentinel string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, b.o.Timeout/2) // the others are to have their turn
	defer cancel()
	o := b.newClientOptions(b.connect)
	o.Network, o.Addr, o.DB, o.OnConnect = "tcp", sentinel, 0, nil
	o.CredentialsProviderContext = func(context.Context) (string, string, error) {
		s := b.settings.Load()
		return s.SentinelUsername, s.SentinelPassword, nil
	}
	client := redis.NewSentinelClient(o)
	defer func() { _ = client.Close() }()
	addr, err := client.GetMasterAddrByName(ctx, b.o.MasterName).Result()
	switch {
	case errors.Is(err, redis.Nil):
		return "", fmt.Errorf("it does not know %s; correct master_name", b.o.MasterName)
	case err != nil:
		return "", err
	case len(addr) != 2:
		return "", fmt.Errorf("it answered %q", addr)
	}
	return net.JoinHostPort(addr[0], addr[1]), nil
}

// checkRole ends a connection to a server that is not the primary.
func (b *Broker) checkRole(ctx context.Context, conn *redis.Conn) error {
	if b.o.MasterName == "" {
		return nil
	}
	reply, err := conn.Do(ctx, "ROLE").Slice()
	if err != nil {
		return err
	}
	if len(reply) == 0 || reply[0] != "master" {
		return errNoPrimary
	}
	return nil
}

// errNoPrimary has the form of the server's own errors, as it is one that it would give sooner or later.
var errNoPrimary = &dialError{errors.New("READONLY sentinel named a server that is not the primary; it will know better soon")}

// masterLoop has all connections made anew when the primary is another one. They notice by themselves if the old one is
// gone or says that it is a replica, but one that was cut off does neither.
func (b *Broker) masterLoop() {
	tick := time.NewTicker(masterInterval)
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(b.ctx, b.o.Timeout)
		addr, err := b.primary(ctx)
		cancel()
		if err != nil {
			continue // whoever has to connect says so
		}
		b.sawPrimary(addr)
	}
}

// sawPrimary notes who the primary is.
func (b *Broker) sawPrimary(addr string) {
	before := b.master.Swap(&addr)
	if before == nil || *before == addr {
		return
	}
	b.moves.Add(1)
	b.o.Logger.Warn("redis has another primary", "master_name", b.o.MasterName, "address", addr, "before", *before)
	b.ear.endSession(fmt.Errorf("the primary is %s now", addr))
}

// demoted reports whether an error says that the server is no primary any more.
func demoted(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "READONLY ") || strings.Contains(err.Error(), "MASTERDOWN "))
}
