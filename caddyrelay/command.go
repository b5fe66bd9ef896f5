package caddyrelay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf8"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

func init() {
	caddycmd.RegisterCommand(caddycmd.Command{
		Name:      "relay",
		Usage:     "<command>",
		Short:     "Listens and publishes at a running relay",
		Long:      "Listens and publishes at a running relay, as a back end and as a sender would.",
		CobraFunc: relayCommand,
	})
}

// relayCommand makes "caddy relay", which only holds the commands below it.
func relayCommand(cmd *cobra.Command) {
	// Without these two, cobra answers a mistyped command with the help and exit code 0.
	cmd.Args = cobra.NoArgs
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	cmd.Example = "  caddy relay listen 01\n  caddy relay publish 01 hello"
	cmd.AddCommand(listenCommand(), publishCommand(), unmoveCommand())
}

// interruptible returns a context that ends when the user wants the command to end. From then on
// signals do again what they do without it, so a second Ctrl-C ends a command that hangs.
func interruptible(cmd *cobra.Command) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// tokenVariable is where the example configuration takes the relay's token from, too.
const tokenVariable = "RELAY_TOKEN"

// addTokenFlag leaves no way to write the token itself on the command line, where the list of
// processes and the shell's history would show it.
func addTokenFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "token-file", "", "File that holds the token (default: the environment variable "+tokenVariable+")")
}

// readToken returns the token to send, or "" for none.
func readToken(file string) (string, error) {
	if file == "" {
		return checkToken(tokenVariable, os.Getenv(tokenVariable))
	}
	return tokenFromFile(file)
}

// maxToken bounds what is read of a file that may be anything. The relay takes a first frame of 8 KiB
// at most.
const maxToken = 8 << 10

func tokenFromFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", fmt.Errorf("reading the token: %w", err)
	}
	defer func() { _ = f.Close() }() // only read
	text, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("reading the token: %w", err)
	case len(text) > maxToken:
		return "", fmt.Errorf("%s has more than %d bytes: it must hold the token alone", name, maxToken)
	}
	// As Caddy does with {file.…}, so that one file serves both ends.
	token := strings.TrimSuffix(strings.TrimSuffix(string(text), "\n"), "\r")
	if token == "" {
		return "", fmt.Errorf("%s is empty: it must hold the token", name)
	}
	return checkToken(name, token)
}

// checkToken refuses what cannot be a token, such as what some Windows programs write for text. The
// error does not show it.
func checkToken(source, token string) (string, error) {
	if !utf8.ValidString(token) || strings.ContainsFunc(token, unicode.IsControl) {
		return "", fmt.Errorf("%s does not hold a token: it must be one line of UTF-8 text", source)
	}
	return token, nil
}

// tell writes a line about the state of a command. Where that cannot be written, nobody is there to
// be told so.
func tell(status io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(status, format+"\n", args...)
}

// connectFailure says in a user's words why there is no connection to an address.
func connectFailure(address string, err error) string {
	if !isRefused(err) {
		return fmt.Sprintf("cannot connect to %s: %s", address, networkReason(err))
	}
	return "nothing listens on " + address
}

// startHint says how to get a relay to listen on an address, if it can be this machine's.
func startHint(address string) string {
	host, _, _ := net.SplitHostPort(address)
	if ip := net.ParseIP(host); host == "" || host == "localhost" || ip != nil && ip.IsLoopback() {
		return "; start it with: caddy run --config Caddyfile.example"
	}
	return ""
}

// isRefused reports whether the other machine answered that nothing listens there.
func isRefused(err error) bool {
	// WSAECONNREFUSED: on Windows, syscall.ECONNREFUSED is a number that no call returns.
	const windowsRefused = syscall.Errno(10061)
	var errno syscall.Errno
	return errors.As(err, &errno) && (errno == syscall.ECONNREFUSED || errno == windowsRefused)
}

// networkReason leaves out of a network error what the user knows already: the call and the addresses.
func networkReason(err error) string {
	var netErr net.Error
	if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &netErr) && netErr.Timeout() {
		return "no answer in time"
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		err = op.Err
	}
	if call := (*os.SyscallError)(nil); errors.As(err, &call) {
		err = call.Err
	}
	return err.Error()
}

// maxShown bounds what is shown of a text that came over the network.
const maxShown = 300

// oneLine makes such a text fit to be shown on a terminal: its control characters could do there
// what they like.
func oneLine(text string) string {
	text = strings.ToValidUTF8(text, "\ufffd")
	if runes := []rune(text); len(runes) > maxShown {
		text = string(runes[:maxShown]) + "…"
	}
	text = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, text)
	return strings.TrimSpace(text)
}
