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
		RunE: runListen,
	}
	cmd.Flags().StringP("address", "a", "127.0.0.1:9000", "Host and port that the relay listens on for sockets")
	cmd.Flags().String("framing", "line", "Framing of that listener: line, \"length 2\" or \"length 4\"")
	cmd.Flags().IntP("count", "n", 0, "Exit after so many messages; 0 goes on until Ctrl-C")
	cmd.Flags().Bool("json", false, "Print the whole message, not only its body")
	addTokenFlag(cmd)
	return cmd
}

func runListen(cmd *cobra.Command, args []string) error {
	l := newListener(args[0], cmd.OutOrStdout(), cmd.ErrOrStderr())
	var framing string
	for _, flag := range []struct {
		name string
		get  func(name string) error
	}{
		{"address", func(name string) (err error) { l.address, err = cmd.Flags().GetString(name); return }},
		{"framing", func(name string) (err error) { framing, err = cmd.Flags().GetString(name); return }},
		{"count", func(name string) (err error) { l.count, err = cmd.Flags().GetInt(name); return }},
		{"json", func(name string) (err error) { l.whole, err = cmd.Flags().GetBool(name); return }},
	} {
		if err := flag.get(flag.name); err != nil {
			return err
		}
	}
	var err error
	if l.framing, err = wire.ParseFraming(strings.Fields(framing)...); err != nil {
		return fmt.Errorf("--framing: %w", err)
	}
	if l.count < 0 {
		return errors.New("--count must not be negative")
	}
	if err := checkAddress(l.address); err != nil {
		return err
	}
	if l.token, err = tokenOf(cmd); err != nil {
		return err
	}
	ctx, stop := interruptible(cmd)
	defer stop()
	return l.run(ctx)
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

// listener is the back end that "caddy relay listen" is.
type listener struct {
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
	known   bool // a relay was met at the address
}

func newListener(id string, out, status io.Writer) *listener {
	return &listener{
		id: id, out: out, status: status,
		dial: func(ctx context.Context, address string) (net.Conn, error) {
			dialer := net.Dialer{Timeout: dialTimeout}
			return dialer.DialContext(ctx, "tcp", address)
		},
		random: func(below time.Duration) time.Duration { return rand.N(below) },
	}
}

// Times of the listener. They are the advice of the protocol's documentation to every client.
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
func (l *listener) run(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		lasted, err := l.session(ctx)
		var gone *lost
		switch {
		case !errors.As(err, &gone):
			return err
		case ctx.Err() != nil:
			return nil
		case lasted >= stableAfter:
			attempt = 1
		}
		wait := max(l.backoff(attempt), gone.after)
		fmt.Fprintf(l.status, "%s; trying again in %.1fs\n", gone.why, wait.Seconds())
		if !pause(ctx, wait) {
			return nil
		}
	}
}

// backoff returns how long to wait before the next attempt: a random time, so that the clients of a
// relay that restarts do not all come at once, below a limit that doubles each time.
func (l *listener) backoff(attempt int) time.Duration {
	limit := maxBackoff
	if attempt < 6 { // 2^6 halves of a second are more than the most, and a larger shift overflows
		limit = min(minBackoff<<attempt, maxBackoff)
	}
	return minBackoff + l.random(limit-minBackoff)
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
// on. The error is nil if the listener has done what it was to do, a *lost if another try may help.
func (l *listener) session(ctx context.Context) (time.Duration, error) {
	conn, err := l.dial(ctx, l.address)
	if err != nil {
		why := connectFailure(l.address, err)
		if isRefused(err) && !l.known {
			l.known = true // say it once
			why += startHint(l.address)
		}
		return 0, &lost{why: why}
	}
	defer conn.Close()
	s := newListening(ctx, l, conn)
	err = s.run()
	if s.welcomed.IsZero() {
		return 0, err
	}
	return time.Since(s.welcomed), err
}
