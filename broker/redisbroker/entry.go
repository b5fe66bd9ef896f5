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

// entryText returns an entry that nothing was tried with yet.
func entryText(e broker.Entry, stored []byte) []byte {
	line := fmt.Sprintf("%d %s %d %d %d\n", e.Seq, e.Message.MID, millis(e.Expires), millis(e.Retain), len(e.Message.Body))
	return append([]byte(line), stored...)
}

// page reads the rest of an answer as a page behind the sequence after; last is that of the mailbox's last entry, finished
// or not. If what the page ends with is not that one, there may be more: whoever reads on finds out.
func (r *reply) page(after, last uint64) (broker.Page, error) {
	page := broker.Page{Through: max(after, last)}
	for r.more() {
		entry := r.text()
		e, err := parseEntry(entry, r.text())
		if err != nil {
			return broker.Page{}, err
		}
		page.Entries = append(page.Entries, e)
	}
	if n := len(page.Entries); n > 0 {
		page.Through = page.Entries[n-1].Seq
	}
	page.More = page.Through < last
	return page, r.err
}
