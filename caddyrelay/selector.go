package caddyrelay

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
)

// selector picks values out of a request: by text with placeholders, or by a JSON pointer (RFC 6901)
// into the body.
type selector struct {
	repl *caddy.Replacer
	body []byte
}

// get returns what an expression picks; the empty string if that isn't there.
func (s selector) get(expression string) (string, error) {
	if !strings.HasPrefix(expression, "/") {
		return s.repl.ReplaceAll(expression, ""), nil
	}
	value := json.RawMessage(s.body)
	for part := range strings.SplitSeq(expression[1:], "/") {
		part = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		value = bytes.TrimSpace(value)
		switch {
		case len(value) == 0:
			return "", nil
		case value[0] == '{':
			var members map[string]json.RawMessage
			if err := json.Unmarshal(value, &members); err != nil {
				return "", fmt.Errorf("%s: the body is not valid JSON", expression)
			}
			value = members[part]
		case value[0] == '[':
			var items []json.RawMessage
			if err := json.Unmarshal(value, &items); err != nil {
				return "", fmt.Errorf("%s: the body is not valid JSON", expression)
			}
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(items) {
				return "", nil
			}
			value = items[i]
		default:
			return "", nil
		}
	}
	return scalar(expression, bytes.TrimSpace(value))
}

// scalar returns a string's value, and what else is simple as it stands in the text: large numbers keep
// their digits.
func scalar(expression string, value []byte) (string, error) {
	switch {
	case len(value) == 0 || string(value) == "null":
		return "", nil
	case value[0] == '"':
		var text string
		if err := json.Unmarshal(value, &text); err != nil {
			return "", fmt.Errorf("%s: the body is not valid JSON", expression)
		}
		return text, nil
	case value[0] == '{' || value[0] == '[':
		return "", fmt.Errorf("%s is an object or array; a string or a number is expected", expression)
	}
	return string(value), nil
}

var errDeadline = errors.New("is neither a duration such as 90s, nor a number of seconds, nor a time " +
	"(RFC 3339, HTTP date, Unix seconds or milliseconds)")

// parseDeadline reads a message's deadline: how long from now, or when.
func parseDeadline(text string) (ttl time.Duration, at time.Time, err error) {
	text = strings.TrimSpace(text)
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		switch {
		case n <= 0 || n > 1e14:
			return 0, time.Time{}, fmt.Errorf("the deadline %d is out of range", n)
		case n >= 1e11: // since 1973, in milliseconds
			return 0, time.UnixMilli(n), nil
		case n >= 1e8: // three years in seconds, or a time since 1973
			return 0, time.Unix(n, 0), nil
		}
		return time.Duration(n) * time.Second, time.Time{}, nil
	}
	if d, err := caddy.ParseDuration(text); err == nil {
		if d <= 0 {
			return 0, time.Time{}, fmt.Errorf("the deadline %s is not in the future", d)
		}
		return d, time.Time{}, nil
	}
	if at, err := time.Parse(time.RFC3339, text); err == nil {
		return 0, at, nil
	}
	if at, err := http.ParseTime(text); err == nil {
		return 0, at, nil
	}
	return 0, time.Time{}, fmt.Errorf("the deadline %w", errDeadline)
}
