package caddyrelay

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caddyrelay/relay/internal/wire"
)

// listening is one session of a [backEnd], seen from the client.
//
// One goroutine reads, prints and answers. So a message is acknowledged only after it was
// printed, and a terminal that stands still makes the relay wait, not this process grow.
type listening struct {
	*backEnd
	ctx      context.Context // for Read, which the scanner calls
	conn     net.Conn
	in       *bufio.Scanner
	limit    int           // of a frame
	silence  time.Duration // how long the relay may say nothing
	welcomed time.Time     // zero before the welcome
}

const (
	// maxControl bounds frames that are no messages.
	maxControl = 64 << 10
	// maxAnnounced bounds what a welcome can make it take for one message.
	maxAnnounced = 1 << 30
	// silenceGrace is what a ping may take on its way beyond the heartbeat.
	silenceGrace = 15 * time.Second
	// Heartbeats that the relay allows. A welcome that names another is not believed.
	minHeartbeat, maxHeartbeat = 5, 240
)

// cutOff is what a connection had after its last whole frame.
type cutOff struct{ rest []byte }

func (*cutOff) Error() string { return "the relay closed it in the middle of a frame" }

func newListening(ctx context.Context, b *backEnd, conn net.Conn) *listening {
	s := &listening{backEnd: b, ctx: ctx, conn: conn, limit: maxControl, silence: welcomeTimeout}
	s.in = bufio.NewScanner(s)
	s.in.Buffer(nil, math.MaxInt) // split sets the limit
	s.in.Split(s.split)
	return s
}

// Read reads from the connection, for the scanner. Each read gives the relay the whole time anew, so
// a large message on a slow line is not taken for silence.
func (s *listening) Read(p []byte) (int, error) {
	if err := s.conn.SetReadDeadline(time.Now().Add(s.silence)); err != nil {
		return 0, err
	}
	// Only now: the deadline that run sets when ctx ends may have been replaced just above.
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.conn.Read(p)
}

// split finds frames, for the scanner.
func (s *listening) split(data []byte, atEOF bool) (int, []byte, error) {
	frame, n, err := s.framing.Next(data, s.limit)
	if n == 0 && err == nil && atEOF && len(data) > 0 {
		err = &cutOff{bytes.Clone(data)}
	}
	return n, frame, err
}

// run speaks with the relay until the session ends.
func (s *listening) run() error {
	stop := context.AfterFunc(s.ctx, func() { _ = s.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := s.say(request{Op: wire.OpHello, V: 1, ID: s.id, Token: s.token}); err != nil {
		return s.connectionLost(err)
	}
	for s.in.Scan() {
		if len(s.in.Bytes()) == 0 {
			continue
		}
		done, err := s.take(s.in.Bytes())
		if done {
			s.leave()
		}
		if done || err != nil {
			return err
		}
	}
	if s.ctx.Err() != nil {
		s.leave()
		return nil
	}
	return s.ended(s.in.Err())
}

// request is what it says; see [wire.Request].
type request struct {
	Op    wire.Op `json:"op"`
	V     int     `json:"v,omitempty"`
	ID    string  `json:"id,omitempty"`
	Token string  `json:"token,omitempty"`
	MID   string  `json:"mid,omitempty"`
}

// say writes one frame.
func (s *listening) say(r request) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	frame, err := s.framing.Append(nil, text)
	if err != nil {
		return err
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err = s.conn.Write(frame)
	return err
}

// take does what one frame asks for, and reports whether the back end is done.
func (s *listening) take(frame []byte) (done bool, err error) {
	// What each op has, in one: "code" is a number in an error and a word in a goodbye.
	var m struct {
		Op        wire.Op         `json:"op"`
		Heartbeat int             `json:"heartbeat"`
		Max       int             `json:"max"`
		Code      json.RawMessage `json:"code"`
		Reason    string          `json:"reason"`
		Temporary bool            `json:"temporary"`
		Reconnect bool            `json:"reconnect"`
		AfterMS   int64           `json:"after_ms"`
		MID       string          `json:"mid"`
		Enc       string          `json:"enc"`
		Body      json.RawMessage `json:"body"`
	}
	if err := json.Unmarshal(frame, &m); err != nil || m.Op == "" {
		return false, s.notUnderstood(frame)
	}
	switch m.Op {
	case wire.OpWelcome:
		s.welcome(m.Heartbeat, m.Max)
	case wire.OpPing:
		if err := s.say(request{Op: wire.OpPong}); err != nil {
			return false, s.connectionLost(err)
		}
	case wire.OpMessage:
		return s.message(frame, m.MID, m.Enc, m.Body)
	case wire.OpError:
		if !s.welcomed.IsZero() { // such as an acknowledgement that came too late; the session goes on
			tell(s.status, "the relay says: %s %s", oneLine(string(m.Code)), oneLine(m.Reason))
			return false, nil
		}
		return false, s.refused(string(m.Code), m.Reason, m.Temporary, "")
	case wire.OpGoodbye:
		return false, s.goodbye(oneLine(strings.Trim(string(m.Code), `"`)), m.Reconnect, m.AfterMS)
	}
	return false, nil // an op of a newer relay
}

func (s *listening) welcome(heartbeat, frame int) {
	s.welcomed, s.hinted = time.Now(), true
	s.limit = max(maxControl, min(frame, maxAnnounced))
	s.silence = time.Duration(max(minHeartbeat, min(heartbeat, maxHeartbeat)))*time.Second + silenceGrace
	tell(s.status, "listening as %s on %s", s.id, s.address)
}

// message prints a message and acknowledges it, in this order: what was acknowledged is not sent again.
func (s *listening) message(frame []byte, mid, enc string, body json.RawMessage) (done bool, err error) {
	text, err := s.printable(frame, enc, body)
	if err != nil {
		return false, s.notUnderstood(frame)
	}
	if !bytes.HasSuffix(text, []byte("\n")) {
		text = append(slices.Clip(text), '\n') // the bytes behind it are the next frame's
	}
	if _, err := s.out.Write(text); err != nil {
		return false, fmt.Errorf("printing a message: %w", err)
	}
	s.printed++
	done = s.printed == s.count
	if mid == "" {
		return done, nil
	}
	if err := s.say(request{Op: wire.OpAck, MID: mid}); err != nil && !done {
		return false, s.connectionLost(err)
	}
	return done, nil
}

// printable returns what is to be printed of a message.
func (s *listening) printable(frame []byte, enc string, body json.RawMessage) ([]byte, error) {
	if s.whole {
		line := frame
		if bytes.ContainsAny(frame, "\r\n") { // other framings than lines allow it
			var compact bytes.Buffer
			if err := json.Compact(&compact, frame); err != nil {
				return nil, err
			}
			line = compact.Bytes()
		}
		return line, nil
	}
	switch enc {
	case "text":
		var text string
		err := json.Unmarshal(body, &text)
		return []byte(text), err
	case "base64":
		var text []byte
		err := json.Unmarshal(body, &text)
		return text, err
	}
	return body, nil
}

// goodbye returns what follows from the relay's goodbye.
func (s *listening) goodbye(code string, reconnect bool, afterMS int64) error {
	if !reconnect {
		return fmt.Errorf("the relay said goodbye for good: %s; its log says more", code)
	}
	after := time.Duration(max(0, min(afterMS, maxAfter.Milliseconds()))) * time.Millisecond
	return &lost{why: "the relay said goodbye: " + code, after: after}
}

// refused returns what follows from the relay's error.
func (s *listening) refused(code, reason string, temporary bool, advice string) error {
	code, reason = oneLine(code), oneLine(reason)
	if temporary {
		return &lost{why: fmt.Sprintf("the relay refused: %s %s", code, reason)}
	}
	if code == "401" && advice == "" {
		advice = "; name the file that holds the listener's token with --token-file, or set " + tokenVariable
	}
	return fmt.Errorf("the relay refused: %s %s%s", code, reason, advice)
}

// notUnderstood returns what follows from a frame that is no JSON. It may be the error of a relay that
// did not know yet, or may not speak, the protocol of this client:
//
//	error 503 too many sockets
func (s *listening) notUnderstood(frame []byte) error {
	if rest, ok := strings.CutPrefix(string(frame), "error "); ok && s.welcomed.IsZero() {
		word, reason, _ := strings.Cut(rest, " ")
		if code, err := strconv.Atoi(word); err == nil {
			return s.refused(word, reason, code >= 500 || code == 408 || code == 429,
				"; listen speaks JSON: the listener must have \"protocol auto\" or \"protocol json\"")
		}
	}
	if len(frame) > 60 {
		frame = frame[:60]
	}
	return fmt.Errorf("%s does not speak the relay's protocol in framing %q: it sent %q; check --address and --framing",
		s.address, s.framing, frame)
}

// ended returns what follows from the end of the stream, or from a failed read.
func (s *listening) ended(err error) error {
	var rest *cutOff
	switch {
	case errors.As(err, &rest) && s.welcomed.IsZero():
		return s.notUnderstood(rest.rest)
	case errors.Is(err, wire.ErrFrameTooLarge):
		return fmt.Errorf("%s sent a frame that is larger than %d bytes: check --address and --framing", s.address, s.limit)
	}
	return s.connectionLost(err)
}

// connectionLost returns the end of a session whose connection failed; without an error, the relay
// closed it.
func (s *listening) connectionLost(err error) error {
	var netErr net.Error
	why := "the relay closed it"
	switch {
	case errors.As(err, &netErr) && netErr.Timeout():
		why = fmt.Sprintf("nothing came for %s", s.silence)
	case err != nil:
		why = networkReason(err)
	case s.welcomed.IsZero():
		why = "the relay closed it before its welcome"
	}
	return &lost{why: "connection lost: " + why}
}

// leave says goodbye and lets the relay close first: closing while bytes from it are unread would
// reset the connection, and take the last acknowledgement with it.
func (s *listening) leave() {
	if s.say(request{Op: wire.OpGoodbye}) != nil {
		return
	}
	c, ok := s.conn.(interface{ CloseWrite() error })
	if !ok || c.CloseWrite() != nil || s.conn.SetReadDeadline(time.Now().Add(goodbyeTimeout)) != nil {
		return
	}
	_, _ = io.Copy(io.Discard, s.conn)
}
