package caddyrelay

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
)

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
