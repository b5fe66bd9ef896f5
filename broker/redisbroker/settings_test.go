package redisbroker

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/redistest"
)

func TestNew(t *testing.T) {
	for _, o := range []Options{{}, {Network: "udp", Address: "127.0.0.1:1"}} {
		if _, err := New(o); err == nil {
			t.Errorf("New(%+v): no error", o)
		}
	}
	b := open(t, Options{Address: "127.0.0.1:1"})
	if err := b.Close(); err != nil { // it never connected
		t.Error(err)
	}
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile, pool := certificate(t, dir)
	server := redistest.Start(t, "--port", "0", "--tls-port", "{port}", "--tls-auth-clients", "no",
		"--tls-cert-file", certFile, "--tls-key-file", keyFile, "--tls-ca-cert-file", certFile)
	trusting := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12, ServerName: "127.0.0.1"}

	b := open(t, Options{Address: server.Addr(), Settings: Settings{TLS: trusting}})
	r, s := subscribe(t, b, "c")
	proven(t, s)
	mustPublish(t, b, "c", "x")
	until(t, "the publication", func() bool { return len(r.payloads()) == 1 })

	// A certificate that is not trusted is an error that says so, until a reload mends it.
	b = open(t, Options{
		Address: server.Addr(), Settings: Settings{TLS: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: "127.0.0.1"}}, MaxBackoff: time.Hour,
	})
	r, s = subscribe(t, b, "c")
	until(t, "the sink to be told", func() bool { return len(r.changes()) == 1 })
	if err := s.Err(); !strings.Contains(err.Error(), "unknown authority") || !strings.Contains(err.Error(), "that tls trusts") {
		t.Errorf("state %v", err)
	}
	b.Configure(Settings{TLS: trusting})
	proven(t, s)
}

// certificate writes a certificate for 127.0.0.1 that signs itself.
func certificate(t *testing.T, dir string) (certFile, keyFile string, pool *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyBytes, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, kind string, der []byte) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	certFile, keyFile = write("cert.pem", "CERTIFICATE", cert), write("key.pem", "PRIVATE KEY", keyBytes)
	pool = x509.NewCertPool()
	parsed, err := x509.ParseCertificate(cert)
	if err != nil {
		t.Fatal(err)
	}
	pool.AddCert(parsed)
	return certFile, keyFile, pool
}

// The rights that errors name are enough, with another database too.
func TestRightsAreEnough(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{Address: server.Addr(), DB: 3, Prefix: "mine", Settings: Settings{Username: "u", Password: "pw"}})
	named := strings.TrimSuffix(b.rights(), " and & with each channel's name")
	server.CLI(append([]string{"ACL", "SETUSER", "u", "on", ">pw", "&c"}, strings.Fields(named)...)...)
	r, s := subscribe(t, b, "c")
	proven(t, s)
	mustPublish(t, b, "c", "x")
	until(t, "the publication", func() bool { return len(r.payloads()) == 1 })
}

// What an operator reads names the address and the remedy.
func TestErrorsSayWhatToDo(t *testing.T) {
	locked := redistest.Start(t, "--requirepass", "secret")
	absent := redistest.Reserve(t)
	for _, c := range []struct {
		name string
		o    Options
		want string
	}{
		{"absent", Options{Address: absent.Addr()}, "connection refused; is redis-server running there?"},
		{"no socket", Options{Network: "unix", Address: absent.Socket()}, "is redis-server running, with this unixsocket?"},
		{"no password", Options{Address: locked.Addr()}, "set the broker's password"},
		{"wrong password", Options{Address: locked.Addr(), Settings: Settings{Password: "guess"}}, "correct the broker's username and password"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := open(t, c.o)
			r, s := subscribe(t, b, "c")
			until(t, "the sink to be told", func() bool { return len(r.changes()) == 1 })
			for _, err := range []error{s.Err(), r.changes()[0], publishErr(b, "c", "x")} {
				if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "redis at "+c.o.Address+": ") ||
					strings.Contains(err.Error(), "guess") {
					t.Errorf("%v, want an error with %q", err, c.want)
				}
			}
		})
	}
}

// Connections that stand are kept when the settings change.
func TestConfigureKeepsConnections(t *testing.T) {
	server := redistest.Start(t)
	b := open(t, Options{Address: server.Addr()})
	r, s := subscribe(t, b, "c")
	proven(t, s)
	b.Configure(Settings{Username: "nobody", Password: "wrong"})
	mustPublish(t, b, "c", "x")
	until(t, "the publication", func() bool { return len(r.payloads()) == 1 })
	if c := r.changes(); len(c) != 0 || s.Err() != nil {
		t.Errorf("told of %v, state %v", c, s.Err())
	}
}
