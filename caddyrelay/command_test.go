package caddyrelay

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	"github.com/spf13/cobra"
)

// runCommand runs "caddy relay" with arguments, and returns what it wrote.
func runCommand(t *testing.T, stdin string, args ...string) (out, status string, err error) {
	t.Helper()
	root := &cobra.Command{Use: "caddy", SilenceUsage: true}
	cmd := &cobra.Command{Use: "relay"}
	caddycmd.Commands()["relay"].CobraFunc(cmd)
	root.AddCommand(cmd)
	var outText, statusText strings.Builder
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&outText)
	root.SetErr(&statusText)
	root.SetArgs(append([]string{"relay"}, args...))
	err = root.ExecuteContext(t.Context())
	return outText.String(), statusText.String(), err
}

func writeFile(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestCommandLineMistakes(t *testing.T) {
	t.Setenv(tokenVariable, "")
	for _, test := range []struct{ args, want string }{
		{"lissen 01", `unknown command "lissen"`},
		{"listen", "caddy relay listen 01"},
		{"listen 01 02", "caddy relay listen 01"},
		{"listen 01 --count -1", "--count must not be negative"},
		{"listen 01 --framing netstrings", `use "line"`},
		{"listen 01 --address 127.0.0.1", "write it like 127.0.0.1:9000"},
		{"listen 01 --address 127.0.0.1:0", "write it like 127.0.0.1:9000"},
		{"listen 01 --address 127.0.0.1:99999", "write it like 127.0.0.1:9000"},
		{"listen 01 --address http://127.0.0.1:9000", "write it like 127.0.0.1:9000"},
		{"listen 01 --token-file /does/not/exist", "reading the token"},
		{"publish", "caddy relay publish 01 hello"},
		{"publish 01", "caddy relay publish 01 hello"},
		{"publish 01 hello world", "quote a body with spaces"},
		{"publish 01 hello --url http://127.0.0.1/pay/", "has no {id}"},
		{"publish 01 hello --url 127.0.0.1/pay/{id}", "write it like http://127.0.0.1:8080/pay/{id}"},
		{"publish 01 hello --url ftp://127.0.0.1/pay/{id}", "write it like http://127.0.0.1:8080/pay/{id}"},
		{"publish 01 hello --url http:///pay/{id}", "write it like http://127.0.0.1:8080/pay/{id}"},
		{"publish 01 hello --token-file /does/not/exist", "reading the token"},
		{"publish a/b hello", "cannot stand in the path"},
		{"publish .. hello", "cannot stand in the path"},
		{"unmove", "caddy relay unmove /var/lib"},
		{"unmove /does/not/exist", "nothing was changed: the store /does/not/exist"},
	} {
		_, _, err := runCommand(t, "", strings.Fields(test.args)...)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("caddy relay %s: %v, want %q", test.args, err, test.want)
		}
	}
	if out, _, err := runCommand(t, ""); err != nil || !strings.Contains(out, "listen") || !strings.Contains(out, "publish") {
		t.Errorf("caddy relay: %v, printed %q", err, out)
	}
}

func TestReadToken(t *testing.T) {
	t.Setenv(tokenVariable, "from the environment")
	if token, err := readToken(""); token != "from the environment" || err != nil {
		t.Errorf("got %q, %v", token, err)
	}
	for text, want := range map[string]string{"a": "a", "a\n": "a", "a\r\n": "a", " a b \n": " a b "} {
		if token, err := readToken(writeFile(t, text)); token != want || err != nil {
			t.Errorf("file with %q: got %q, %v", text, token, err)
		}
	}
	for text, want := range map[string]string{
		"":                            "is empty",
		"\n":                          "is empty",
		"secret\nsecret\n":            "one line of UTF-8 text",
		"\xff\xfes\x00e\x00":          "one line of UTF-8 text", // UTF-16, of Windows PowerShell
		strings.Repeat("secret", 2e3): "more than 8192 bytes",
	} {
		_, err := readToken(writeFile(t, text))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("file with %.20q: %v, want %q", text, err, want)
		}
	}
	t.Setenv(tokenVariable, "secret\nsecret")
	if _, err := readToken(""); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("variable of two lines: %v", err)
	}
}

func TestConnectFailure(t *testing.T) {
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	for _, test := range []struct {
		err  error
		want string
	}{
		{dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), "nothing listens on h:1"},
		{dial(os.NewSyscallError("connectex", syscall.Errno(10061))), "nothing listens on h:1"},
		{dial(os.NewSyscallError("connect", syscall.EHOSTUNREACH)), "cannot connect to h:1: " + syscall.EHOSTUNREACH.Error()},
		{dial(&net.DNSError{Err: "no such host", Name: "h"}), "cannot connect to h:1: lookup h: no such host"},
		{dial(context.DeadlineExceeded), "cannot connect to h:1: no answer in time"},
		{errors.New("other"), "cannot connect to h:1: other"},
	} {
		if got := connectFailure("h:1", test.err); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
	for address, want := range map[string]bool{
		"127.0.0.1:9000": true, "[::1]:9000": true, "localhost:9000": true, ":9000": true,
		"192.0.2.1:9000": false, "example.com:9000": false,
	} {
		if got := startHint(address) != ""; got != want {
			t.Errorf("hint for %s: %t", address, got)
		}
	}
}

func TestOneLine(t *testing.T) {
	for text, want := range map[string]string{
		"":                       "",
		" a\nb\t":                "a b",
		"\x1b[2Jgone\u009b1m":    "[2Jgone 1m",
		"bad \xff":               "bad \ufffd",
		strings.Repeat("ä", 400): strings.Repeat("ä", 300) + "…",
	} {
		if got := oneLine(text); got != want {
			t.Errorf("oneLine(%q) = %q, want %q", text, got, want)
		}
	}
}
