package caddyrelay

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// posted is what a site got.
type posted struct {
	method, uri, contentType, authorization, body string
}

// site is an HTTP server that answers everything alike. It returns its --url.
func site(t *testing.T, status int, header, answer string) (string, *posted) {
	t.Helper()
	got := new(posted)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		*got = posted{r.Method, r.RequestURI, r.Header.Get("Content-Type"), r.Header.Get("Authorization"), string(body)}
		if name, value, ok := strings.Cut(header, ": "); ok {
			w.Header().Set(name, value)
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, answer)
	}))
	t.Cleanup(server.Close)
	return server.URL + "/pay/{id}", got
}

func accepted(id string) string {
	return fmt.Sprintf(`{"mid":"M","channel":"pay","id":%q,"state":"published"}`, id) + "\n"
}

func TestPublish(t *testing.T) {
	t.Setenv(tokenVariable, "")
	for _, test := range []struct {
		id, body, stdin, uri, contentType string
	}{
		{"01", "hello", "", "/pay/01", "text/plain; charset=utf-8"},
		{"01", `{"amount":1}`, "", "/pay/01", "application/json"},
		{"01", ` [1]`, "", "/pay/01", "application/json"},
		{"01", `{"amount":1`, "", "/pay/01", "text/plain; charset=utf-8"},
		{"01", `12345678901234567890`, "", "/pay/01", "text/plain; charset=utf-8"},
		{"01", "\xff", "", "/pay/01", "application/octet-stream"},
		{"01", "{\"a\":\"\xff\"}", "", "/pay/01", "application/octet-stream"},
		{"01", "", "", "/pay/01", "text/plain; charset=utf-8"},
		{"01", "-", "from stdin\r\n", "/pay/01", "text/plain; charset=utf-8"},
		{"01", "-", strings.Repeat("x", maxStdin), "/pay/01", "text/plain; charset=utf-8"},
		{"*", "hello", "", "/pay/%2A", "text/plain; charset=utf-8"},
		{"ä?#%{id}", "hello", "", "/pay/%C3%A4%3F%23%25%7Bid%7D", "text/plain; charset=utf-8"},
	} {
		url, got := site(t, 202, "", accepted(test.id))
		out, status, err := runCommand(t, test.stdin, "publish", test.id, test.body, "--url", url)
		if err != nil || out != accepted(test.id) || status != "" {
			t.Errorf("%+v: %v, printed %q, %q", test, err, out, status)
		}
		body := test.body
		if body == "-" {
			body = test.stdin
		}
		if want := (posted{"POST", test.uri, test.contentType, "", body}); *got != want {
			t.Errorf("posted %+v, want %+v", *got, want)
		}
	}
}

func TestPublishOptions(t *testing.T) {
	t.Setenv(tokenVariable, "from the environment")
	url, got := site(t, 202, "", accepted("a/b&c"))
	url = strings.Replace(url, "/pay/", "/pay?id=", 1)
	if _, _, err := runCommand(t, "", "publish", "a/b&c", "x", "--url", url, "--content-type", "text/xml"); err != nil {
		t.Error(err)
	}
	if want := (posted{"POST", "/pay?id=a%2Fb%26c", "text/xml", "Bearer from the environment", "x"}); *got != want {
		t.Errorf("posted %+v, want %+v", *got, want)
	}
	if _, _, err := runCommand(t, "", "publish", "a/b&c", "x", "--url", url, "--token-file", writeFile(t, "s3cret\n")); err != nil {
		t.Error(err)
	}
	if got.authorization != "Bearer s3cret" {
		t.Errorf("authorization %q", got.authorization)
	}
}

func TestPublishRefused(t *testing.T) {
	t.Setenv(tokenVariable, "s3cret")
	for _, test := range []struct {
		status               int
		header, answer, want string
	}{
		{401, "", `{"error":"unauthorized","message":"send a token"}`,
			"answered 401 Unauthorized: unauthorized: send a token; name the file that holds the token with --token-file, or set RELAY_TOKEN"},
		{503, "", `{"error":"broker_unavailable","message":"try again"}`, "answered 503 Service Unavailable: broker_unavailable: try again"},
		{404, "", "no such path", "answered 404 Not Found: no such path; check --url"},
		{404, "", `{"error":"unknown_channel","message":"it was removed"}`, "answered 404 Not Found: unknown_channel: it was removed"},
		{500, "", "<html>\x1b[2J", "answered 500 Internal Server Error: <html> [2J"},
		{502, "", "", "answered 502 Bad Gateway"},
		{302, "Location: https://example.com/", "", "answered 302 Found; it points to https://example.com/, so publish there with --url"},
		{202, "", accepted("1"), `the message went to the destination "1", not to "01"`},
	} {
		url, _ := site(t, test.status, test.header, test.answer)
		_, _, err := runCommand(t, "", "publish", "01", "x", "--url", url)
		if err == nil || !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%d %s: %v, want %q", test.status, test.answer, err, test.want)
		}
	}
}

// A site may have its own words for success, but a Caddy that has no route says 200 too.
func TestPublishAnsweredByOthers(t *testing.T) {
	t.Setenv(tokenVariable, "")
	for answer, printed := range map[string]string{"": "", "success": "success\n", "{}": "{}\n"} {
		url, _ := site(t, 200, "", answer)
		out, status, err := runCommand(t, "", "publish", "01", "x", "--url", url)
		if err != nil || out != printed || !strings.Contains(status, "note: 200 OK is not the relay's own answer") {
			t.Errorf("answer %q: %v, printed %q, %q", answer, err, out, status)
		}
	}
}

// A redirect that is followed as a GET would end in a 200 that means nothing.
func TestPublishFollowsNoRedirect(t *testing.T) {
	t.Setenv(tokenVariable, "s3cret")
	other, got := site(t, 200, "", accepted("01"))
	url, _ := site(t, 301, "Location: "+strings.TrimSuffix(other, "/pay/{id}"), "")
	if _, _, err := runCommand(t, "", "publish", "01", "x", "--url", url); err == nil {
		t.Error("no error")
	}
	if *got != (posted{}) {
		t.Errorf("the other site got %+v", *got)
	}
}

func TestPublishTooMuchStdin(t *testing.T) {
	t.Setenv(tokenVariable, "")
	url, got := site(t, 202, "", accepted("01"))
	_, _, err := runCommand(t, strings.Repeat("x", maxStdin+1), "publish", "01", "-", "--url", url)
	if err == nil || !strings.Contains(err.Error(), "more than 1048576 bytes") || *got != (posted{}) {
		t.Errorf("%v, posted %d bytes", err, len(got.body))
	}
}

// The errors say whether trying again can publish twice.
func TestPublishWithoutAnswer(t *testing.T) {
	t.Setenv(tokenVariable, "")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	url := "http://user:s3cret@" + ln.Addr().String() + "/pay/{id}"
	publish := func() error {
		_, _, err := runCommand(t, "", "publish", "01", "x", "--url", url)
		return err
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		_, _ = conn.Read(make([]byte, 1)) // it has come
		conn.Close()
		ln.Close()
	}()
	err = publish()
	if err == nil || !strings.Contains(err.Error(), "may have been published: if you try again it may arrive twice") ||
		strings.Contains(err.Error(), "s3cret") {
		t.Errorf("connection closed: %v", err)
	}
	<-closed
	err = publish()
	if want := "nothing listens on " + ln.Addr().String() + "; start it with: caddy run --config Caddyfile.example"; err == nil || err.Error() != want {
		t.Errorf("refused: %v", err)
	}
}

func TestPublishStops(t *testing.T) {
	arrived := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		close(arrived)
		<-r.Context().Done()
	}))
	defer server.Close()
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	p := newPublisher()
	p.url, p.out, p.status = server.URL+"/{id}", io.Discard, io.Discard
	err := p.publish(ctx, "01", []byte("x"))
	if err == nil || !strings.Contains(err.Error(), "may have been published") {
		t.Errorf("ended with %v", err)
	}
}
