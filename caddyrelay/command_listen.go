package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/caddyrelay/relay/internal/wire"
)

func listenCommand() *cobra.Command {
	b := newBackEnd()
	var framing, tokenFile string
	cmd := &cobra.Command{
		Use:   "listen <id>",
		Short: "Registers as a destination and prints its messages",
		Long: `Registers under a destination ID, as a back end does, and prints the body of each
message that comes, then acknowledges it. Its own state goes to standard error.

A body is printed as it was posted, with a line end behind it if it has none: a
text of several lines takes several lines, and control characters reach the
terminal. With --json each message is one line, whatever it holds.

When the connection ends, listen connects again. It exits with 1 when that is of
no use, such as with a wrong token, and with 0 on Ctrl-C.`,
		Example: "  caddy relay listen 01\n  caddy relay listen 01 --count 1 --json",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 || args[0] == "" {
				return errors.New("one destination ID is expected, such as: caddy relay listen 01")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := b.configure(args[0], framing, tokenFile); err != nil {
				return err
			}
			b.out, b.status = cmd.OutOrStdout(), cmd.ErrOrStderr()
			ctx, stop := interruptible(cmd)
			defer stop()
			return b.run(ctx)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&b.address, "address", "a", "127.0.0.1:9000", "Host and port that the relay listens on for sockets")
	flags.StringVar(&framing, "framing", "line", "Framing of that listener: line, \"length 2\" or \"length 4\"")
	flags.IntVarP(&b.count, "count", "n", 0, "Exit after so many messages (default: go on until Ctrl-C)")
	flags.BoolVar(&b.whole, "json", false, "Print the whole message, not only its body")
	addTokenFlag(cmd, &tokenFile)
	return cmd
}

// configure takes what the command line says.
func (b *backEnd) configure(id, framing, tokenFile string) (err error) {
	b.id = id
	if b.framing, err = wire.ParseFraming(strings.Fields(framing)...); err != nil {
		return fmt.Errorf("--framing: %w", err)
	}
	if b.count < 0 {
		return errors.New("--count must not be negative")
	}
	if err := checkAddress(b.address); err != nil {
		return err
	}
	b.token, err = readToken(tokenFile)
	return err
}

// checkAddress refuses what no connection could ever be made to, so that listen does not try for ever.
func checkAddress(address string) error {
	_, port, err := net.SplitHostPort(address)
	if err == nil {
		var n uint64
		if n, err = strconv.ParseUint(port, 10, 16); err == nil && n > 0 {
			return nil
		}
	}
	return fmt.Errorf("--address %q is not a host and a port: write it like 127.0.0.1:9000", address)
}

// backEnd is what "caddy relay listen" is to the relay.
type backEnd struct {
	id      string
	token   string
	address string
	framing wire.Framing
	count   int  // messages to print before the end; 0 is no end
	whole   bool // print all of a message

	out    io.Writer // for messages
	status io.Writer // for what happens meanwhile

	dial   func(ctx context.Context, address string) (net.Conn, error)
	random func(below time.Duration) time.Duration // below is > 0

	printed int
	hinted  bool // how to start a relay was said, or need not be
}

func newBackEnd() *backEnd {
	return &backEnd{
		dial: func(ctx context.Context, address string) (net.Conn, error) {
			dialer := net.Dialer{Timeout: dialTimeout}
			return dialer.DialContext(ctx, "tcp", address)
		},
		random: func(below time.Duration) time.Duration { return rand.N(below) },
	}
}

// Times of the back end. They are the advice of the protocol's documentation to every client.
const (
	dialTimeout    = 10 * time.Second
	welcomeTimeout = 15 * time.Second // more than a relay that is just starting makes a client wait
	writeTimeout   = 10 * time.Second
	goodbyeTimeout = time.Second
	minBackoff     = 500 * time.Millisecond
	maxBackoff     = 20 * time.Second
	maxAfter       = 5 * time.Minute  // the longest wait that a relay can ask for
	stableAfter    = 30 * time.Second // a session that lasted so long makes the next wait short again
)

// lost is the end of a session that is worth another try.
type lost struct {
	why   string
	after time.Duration // the relay asked not to come back before
}

func (e *lost) Error() string { return e.why }

// run holds one session after another. It returns nil when ctx ends or all messages that were asked for
// have come, and an error when trying again is of no use.
func (b *backEnd) run(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		lasted, err := b.session(ctx)
		var gone *lost
		switch {
		case !errors.As(err, &gone):
			return err
		case ctx.Err() != nil:
			return nil
		case lasted >= stableAfter:
			attempt = 1
		}
		wait := max(b.backoff(attempt), gone.after)
		tell(b.status, "%s; trying again in %.1fs", gone.why, wait.Seconds())
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// backoff returns how long to wait before the next attempt: a random time, so that the clients of a
// relay that restarts do not all come at once, below a limit that doubles each time.
func (b *backEnd) backoff(attempt int) time.Duration {
	limit := maxBackoff
	if attempt < 6 { // 2^6 halves of a second are more than the most, and a larger shift overflows
		limit = min(minBackoff<<attempt, maxBackoff)
	}
	return minBackoff + b.random(limit-minBackoff)
}

// pause waits, and reports whether it was let wait to the end.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// session connects and holds one session. It returns how long the session lasted from the welcome
// on. The error is nil if the back end has done what it was to do, a *lost if another try may help.
func (b *backEnd) session(ctx context.Context) (time.Duration, error) {
	conn, err := b.dial(ctx, b.address)
	if err != nil {
		why := connectFailure(b.address, err)
		if isRefused(err) && !b.hinted {
			b.hinted = true
			why += startHint(b.address)
		}
		return 0, &lost{why: why}
	}
	defer conn.Close()
	s := newListening(ctx, b, conn)
	err = s.run()
	if s.welcomed.IsZero() {
		return 0, err
	}
	return time.Since(s.welcomed), err
}
