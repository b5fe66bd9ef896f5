package wire

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

func TestLooksLikeJSON(t *testing.T) {
	for frame, want := range map[string]bool{
		"{": true, " \r\n\t{}": true, "\ufeff{": true, "": false, "01": false, "[{}]": false, "0{": false, "\x00{": false,
	} {
		if got := LooksLikeJSON([]byte(frame)); got != want {
			t.Errorf("%q: %v", frame, got)
		}
	}
}

func TestGreeting(t *testing.T) {
	for first, want := range map[string]string{
		"GET / HTTP/1.1\r\nHost: x\r\n\r\n":                  "HTTP",
		"POST /pay/01 HTTP/1.0\r\n":                          "HTTP",
		"OPTIONS * HTTP/1.1\n":                               "HTTP",
		"CONNECT x:443 HTTP/1.1\r\n":                         "HTTP",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n":                   "HTTP",
		"GET /a/very/long/path":                              "HTTP",
		"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n01\n":         "PROXY protocol",
		"PROXY UNKNOWN\r\n":                                  "PROXY protocol",
		"\r\n\r\n\x00\r\nQUIT\n\x21\x11":                     "PROXY protocol",
		"\x10\x10\x00\x04MQTT\x04\x02\x00\x3c\x00\x04test":   "MQTT",
		"\x10\xff\xff\x03\x00\x04MQTT\x05":                   "MQTT",
		"\x10\x12\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x04test": "MQTT",
		"*1\r\n$4\r\nPING\r\n":                               "RESP (Redis)",
		"*12\r\n$4\r\n":                                      "RESP (Redis)",
		"\x16\x03\x01\x02\x00\x01":                           "TLS",
		"\x16\x03\x03":                                       "TLS",
		"SSH-2.0-OpenSSH_9.6\r\n":                            "SSH",

		// What may be an ID, alone or with a token, in any framing.
		"":                          "",
		"01\n":                      "",
		"01 token\n":                "",
		"GET\n":                     "",
		"GET token\n":               "",
		"GET /token\n":              "",
		"HTTP\n":                    "",
		"PROXY\n":                   "",
		"PROXY token\n":             "",
		"SSH-01\n":                  "",
		"*1\r\n":                    "",
		"*\r\n$":                    "",
		"*":                         "",
		"\r\n01\r\n":                "",
		"\x00\x0201":                "",
		"\x00\x00\x00\x0201":        "",
		"\x16\x03{\"op\":\"hello\"": "", // 5635 bytes in framing length 2
		"\x10\x04" + `{"op":`:       "", // 4100 bytes
		"\x10":                      "",
		`{"op":"hello"}` + "\n":     "",
	} {
		if got := Greeting([]byte(first)); got != want {
			t.Errorf("%q: %q, want %q", first, got, want)
		}
	}
}

// The first bytes of programs that nobody here wrote.
func TestGreetingOfRealClients(t *testing.T) {
	for want, start := range map[string]func(net.Conn) error{
		"TLS": func(c net.Conn) error {
			return tls.Client(c, &tls.Config{ServerName: "relay.test"}).Handshake()
		},
		"HTTP": func(c net.Conn) error {
			r, err := http.NewRequest(http.MethodPost, "http://relay.test/pay/01", nil)
			return errors.Join(err, r.Write(c))
		},
	} {
		ours, theirs := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- start(theirs) }()
		if err := ours.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		first := make([]byte, 4096)
		n, err := io.ReadAtLeast(ours, first, 20)
		if err != nil {
			t.Fatalf("%s: %v", want, err)
		}
		if got := Greeting(first[:n]); got != want {
			t.Errorf("%q: %q, want %q", bytes.TrimSpace(first[:n]), got, want)
		}
		_ = ours.Close()
		<-done // fails, as it should: nobody answers
	}
}
