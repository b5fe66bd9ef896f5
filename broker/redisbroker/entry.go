package redisbroker

import (
	"bytes"
	"fmt"

	"github.com/caddyrelay/relay/broker"
)

// An entry of a mailbox is a line, and the message as [broker.AppendStored] writes it:
//
//	<sequence> <MID> <expires ms or 0> <retain ms> <size of the body>\n
//
// What was tried with it is in the mailbox's hash, so that noting it does not rewrite the body:
//
//	<attempts> <failures> <deaths> <not before ms>
func parseEntry(entry, counts string) (broker.Entry, error) {
	line, stored, ok := bytes.Cut([]byte(entry), []byte("\n"))
	var e broker.Entry
	var mid string
	var expires, retain, size int64
	if _, err := fmt.Sscanf(string(line), "%d %s %d %d %d", &e.Seq, &mid, &expires, &retain, &size); err != nil || !ok {
		return e, fmt.Errorf("%w: an entry in redis begins with %q", broker.ErrFormat, line)
	}
	m, err := broker.ParseStored(stored)
	if err != nil {
		return e, fmt.Errorf("message %s: %w", mid, err)
	}
	e.Message, e.Expires, e.Retain = m, fromMillis(expires), fromMillis(retain)
	e.Counts, err = parseCounts(counts)
	return e, err
}

func parseCounts(text string) (c broker.Counts, err error) {
	if text == "" {
		return c, nil
	}
	var notBefore int64
	if _, err := fmt.Sscanf(text, "%d %d %d %d", &c.Attempts, &c.Failures, &c.Deaths, &notBefore); err != nil {
		return c, fmt.Errorf("%w: counts in redis are %q", broker.ErrFormat, text)
	}
	c.NotBefore = fromMillis(notBefore)
	return c, nil
}

// entries reads the rest of an answer as a page.
func (r *reply) entries() ([]broker.Entry, error) {
	var page []broker.Entry
	for r.more() {
		entry := r.text()
		e, err := parseEntry(entry, r.text())
		if err != nil {
			return nil, err
		}
		page = append(page, e)
	}
	return page, r.err
}
