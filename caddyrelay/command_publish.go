package caddyrelay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

func publishCommand() *cobra.Command {
	p := newPublisher()
	var tokenFile string
	cmd := &cobra.Command{
		Use:   "publish <id> <body>",
		Short: "Publishes a message to a destination",
		Long: `Posts a message for a destination to a running relay, as a sender does, and prints
the answer. It exits with 1 if the relay did not take the message. The ID "*"
reaches every socket of an at_most_once channel; quote it.

With "-" for the body, the standard input is posted byte for byte, the line end that
echo writes included: a listener with framing line passes a text with a line feed
to JSON back ends only. Windows PowerShell takes double quotes out of arguments;
there, write JSON to the standard input.`,
		Example: `  caddy relay publish 01 hello
  caddy relay publish 01 '{"amount":1}'
  caddy relay publish 01 - < body.json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 || args[0] == "" {
				return errors.New("a destination ID and a body are expected, such as: caddy relay publish 01 hello " +
					"(quote a body with spaces; - reads it from the standard input)")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if p.token, err = readToken(tokenFile); err != nil {
				return err
			}
			p.out, p.status = cmd.OutOrStdout(), cmd.ErrOrStderr()
			// Before signals are caught: a read from a terminal would not notice one.
			body, err := bodyOf(args[1], cmd.InOrStdin(), p.status)
			if err != nil {
				return err
			}
			ctx, stop := interruptible(cmd)
			defer stop()
			return p.publish(ctx, args[0], body)
		},
	}
	flags := cmd.Flags()
	flags.StringVarP(&p.url, "url", "u", "http://127.0.0.1:8080/pay/{id}", "Where the relay takes messages, with {id} in the ID's place")
	flags.StringVar(&p.contentType, "content-type", "", "Content type of the body (default: application/json for a JSON\nobject or array, else text/plain; charset=utf-8)")
	addTokenFlag(cmd, &tokenFile)
	return cmd
}

// Limits of the publisher.
const (
	maxStdin       = 1 << 20 // what a relay takes by default
	maxAnswer      = 1 << 20
	publishTimeout = 30 * time.Second
)

// bodyOf returns the body that an argument stands for.
func bodyOf(argument string, stdin io.Reader, status io.Writer) ([]byte, error) {
	if argument != "-" {
		return []byte(argument), nil
	}
	if isTerminal(stdin) {
		tell(status, "type the body; Ctrl-D on a line of its own ends it (on Windows Ctrl-Z and Enter)")
	}
	body, err := io.ReadAll(io.LimitReader(stdin, maxStdin+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("reading the body from the standard input: %w", err)
	case len(body) > maxStdin:
		return nil, fmt.Errorf("the standard input has more than %d bytes: nothing was published", maxStdin)
	}
	return body, nil
}

func isTerminal(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// typeOf returns the content type of a body whose sender named none. A number or a word stays a text,
// as on the relay's sockets: an order number is not to lose digits.
func typeOf(body []byte) string {
	text := bytes.TrimLeft(body, " \t\r\n")
	switch {
	case !utf8.Valid(body):
		return "application/octet-stream"
	case len(text) > 0 && (text[0] == '{' || text[0] == '[') && json.Valid(body):
		return "application/json"
	}
	return "text/plain; charset=utf-8"
}

// publisher is the sender that "caddy relay publish" is.
type publisher struct {
	url         string // with {id}
	token       string
	contentType string // or "" for that of the body

	out    io.Writer // for the answer
	status io.Writer
	client *http.Client
}

func newPublisher() *publisher {
	return &publisher{client: &http.Client{
		Timeout: publishTimeout,
		// A redirect can turn the POST into a GET, whose 200 would look like success, and
		// the token belongs to nobody but the address that the user named.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// publish posts one message and prints the answer. Its errors say whether the message may have been
// published all the same.
func (p *publisher) publish(ctx context.Context, id string, body []byte) error {
	target, err := targetOf(p.url, id)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("--url: %w", err)
	}
	contentType := p.contentType
	if contentType == "" {
		contentType = typeOf(body)
	}
	req.Header.Set("Content-Type", contentType)
	if p.token != "" {
		req.Header.Set("Authorization", "Bearer "+p.token)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return postFailure(target, err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil && len(answer) == 0 {
		return postFailure(target, err)
	}
	return p.report(target, resp, id, answer)
}

// targetOf puts the ID into the URL.
func targetOf(template, id string) (*url.URL, error) {
	before, _, found := strings.Cut(template, "{id}")
	if !found {
		return nil, fmt.Errorf("--url %q has no {id}: write it where the destination ID belongs", template)
	}
	escaped := url.PathEscape(id)
	switch {
	case strings.ContainsRune(before, '?'):
		escaped = url.QueryEscape(id)
	case strings.ContainsRune(id, '/') || id == "." || id == "..":
		// Escaped or not, Caddy takes them for structure: {path.1} of /pay/a%2Fb is "a",
		// and the message would reach somebody else.
		return nil, fmt.Errorf("the ID %q cannot stand in the path of a URL: have relay_publish take the ID "+
			"from the query, with \"id {query.id}\", and use a --url that ends in ?id={id}", id)
	}
	target, err := url.Parse(strings.ReplaceAll(template, "{id}", escaped))
	if err != nil {
		return nil, fmt.Errorf("--url: %w", err)
	}
	if target.Scheme != "http" && target.Scheme != "https" || target.Host == "" {
		return nil, fmt.Errorf("--url %q is not an address of the web: write it like http://127.0.0.1:8080/pay/{id}", template)
	}
	return target, nil
}

// postFailure says what became of a request that got no answer.
func postFailure(target *url.URL, err error) error {
	address := target.Host
	if isRefused(err) {
		return errors.New(connectFailure(address, err) + startHint(address))
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("%s; nothing was published", connectFailure(address, err))
	}
	if wrapped := (*url.Error)(nil); errors.As(err, &wrapped) {
		err = wrapped.Err // it shows the URL, and with it what the user may have put into it
	}
	return fmt.Errorf("no answer from %s: %s; the message may have been published: if you try again it may arrive twice",
		address, networkReason(err))
}

// report prints the answer of a relay that took the message, and returns the reason of one that did not.
func (p *publisher) report(target *url.URL, resp *http.Response, id string, answer []byte) error {
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return refusedPost(target, resp, answer)
	}
	if len(answer) > 0 {
		if !bytes.HasSuffix(answer, []byte("\n")) {
			answer = append(answer, '\n')
		}
		if _, err := p.out.Write(answer); err != nil {
			return fmt.Errorf("the message was published, but printing the answer failed: %w", err)
		}
	}
	var fields struct {
		MID string `json:"mid"`
		ID  string `json:"id"`
	}
	switch {
	case json.Unmarshal(answer, &fields) == nil && fields.MID != "":
		if fields.ID != id {
			return fmt.Errorf("the message went to the destination %q, not to %q: relay_publish takes the ID from elsewhere; "+
				"check its \"id\" and --url", fields.ID, id)
		}
	default: // A Caddy site answers 200 to a path that nothing handles.
		tell(p.status, "note: %s is not the relay's own answer: either relay_publish has a \"respond\" there, "+
			"or nothing handles %s", resp.Status, target.Path)
	}
	return nil
}

// refusedPost makes an error of an answer that is no success.
func refusedPost(target *url.URL, resp *http.Response, answer []byte) error {
	var fields struct {
		Error   string `json:"error"`
		Message string `json:"message"`
	}
	reason := string(answer)
	if json.Unmarshal(answer, &fields) == nil && fields.Error != "" {
		reason = fields.Error + ": " + fields.Message
	}
	if reason = oneLine(reason); reason != "" {
		reason = ": " + reason
	}
	advice := ""
	switch location := resp.Header.Get("Location"); {
	case location != "":
		advice = "; it points to " + oneLine(location) + ", so publish there with --url"
	case resp.StatusCode == http.StatusUnauthorized:
		advice = "; name the file that holds the token with --token-file, or set " + tokenVariable
	case resp.StatusCode == http.StatusNotFound && fields.Error == "":
		advice = "; check --url"
	}
	return fmt.Errorf("%s answered %s%s%s", target.Host, oneLine(resp.Status), reason, advice)
}
