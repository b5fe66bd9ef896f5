//go:build unix

package integration

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// answer is what a publisher gets.
type answer struct {
	status int
	header http.Header
	text   string
	fields map[string]any // of the JSON object, if it is one
}

// post publishes, as a sender would.
func (n *node) post(path, contentType, body string) answer {
	n.t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+n.http+path, strings.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	return do(n.t, req)
}

// curl publishes as "curl -d" does, whose content type says nothing true.
func (n *node) curl(path, body string) answer {
	n.t.Helper()
	return n.post(path, "application/x-www-form-urlencoded", body)
}

func do(t *testing.T, req *http.Request) answer {
	t.Helper()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a := answer{status: resp.StatusCode, header: resp.Header, text: string(body)}
	_ = json.Unmarshal(body, &a.fields)
	return a
}

func asOpError(err error, target **net.OpError) bool { return errors.As(err, target) }

// get asks for a path.
func (n *node) get(path string) answer {
	n.t.Helper()
	req, err := http.NewRequest(http.MethodGet, "http://"+n.http+path, nil)
	if err != nil {
		n.t.Fatal(err)
	}
	return do(n.t, req)
}
