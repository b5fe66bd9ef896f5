package hub

import (
	"errors"
	"fmt"
	"time"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/wire"
)

// register reads the first frame and registers the session, or says why not.
func (s *Session) register() *Refusal {
	frame, refusal := s.readHello()
	if refusal != nil {
		return refusal
	}
	if s.protocol == Auto {
		s.protocol = Plain
		if wire.LooksLikeJSON(frame) {
			s.protocol = JSON
		}
	}
	hello, refusal := s.parseHello(frame)
	if refusal != nil {
		return refusal
	}
	// Credentials come before anything else is said about the ID: to a stranger, an
	// ID that is not allowed and one that is must look the same.
	if s.e.Authorize != nil {
		if err := s.e.Authorize(hello.ID, hello.Token); err != nil {
			return &Refusal{Reason: Unauthorized, Code: 401, Text: "wrong or missing token", Err: err}
		}
	}
	if err := broker.CheckID(hello.ID); err != nil {
		return &Refusal{Reason: BadID, Code: 400, Text: err.Error()}
	}
	if refusal := s.admit(); refusal != nil {
		return refusal
	}
	s.id = hello.ID
	if how, ok := s.settings(); ok {
		if how.Mode == broker.Takeover {
			if refusal := s.coolDown(); refusal != nil {
				return refusal
			}
		}
		s.delivery = newDelivery(s, how)
		if refusal := s.delivery.attach(s.window(hello)); refusal != nil {
			return refusal
		}
	}
	s.enter(hello)
	// A reload may have swept the sessions between the first question and enter.
	if refusal := s.admit(); refusal != nil {
		s.goodbye(refusal.Reason, wire.Goodbye{Code: refusal.Reason.String(), Reconnect: true})
	}
	return nil
}

func (s *Session) readHello() ([]byte, *Refusal) {
	deadline := s.started.Add(s.e.HelloTimeout)
	frame, err := s.readFrame(min(maxHello, s.e.MaxFrame), func(bool) (time.Time, bool) {
		return deadline, true
	})
	// Another protocol's first bytes are the better explanation of whatever went wrong.
	if other := wire.Greeting(s.in); other != "" {
		return nil, &Refusal{Reason: BadHello, Code: 400, Err: err,
			Text: fmt.Sprintf("this port does not speak %s; it expects an ID in %s framing", other, s.e.Framing)}
	}
	switch {
	case err == nil:
		return frame, nil
	case errors.Is(err, wire.ErrFrameTooLarge):
		return nil, &Refusal{Reason: FrameTooLarge, Code: 413, Err: err,
			Text: fmt.Sprintf("the first frame is larger than %d bytes; it holds an ID and a token, in %s framing",
				min(maxHello, s.e.MaxFrame), s.e.Framing)}
	case errors.Is(err, errTimeout):
		return nil, &Refusal{Reason: HelloTimeout, Code: 408, Temporary: true, Err: err,
			Text: fmt.Sprintf("no complete first frame within %s; send the ID first, in %s framing",
				s.e.HelloTimeout, s.e.Framing)}
	}
	s.abort(ClientClosed, err)
	return nil, &Refusal{Reason: ClientClosed, Err: err}
}

// parseHello understands the first frame in the session's protocol.
func (s *Session) parseHello(frame []byte) (wire.Request, *Refusal) {
	bad := func(format string, args ...any) (wire.Request, *Refusal) {
		return wire.Request{}, &Refusal{Reason: BadHello, Code: 400, Text: fmt.Sprintf(format, args...)}
	}
	if len(frame) == 0 {
		return bad("the first frame is empty; it must hold the ID")
	}
	if s.protocol == Plain {
		id, token := wire.ParsePlainHello(frame)
		return wire.Request{ID: id, Token: token}, nil
	}
	hello, err := wire.ParseRequest(frame)
	switch {
	case err != nil:
		return bad("the first frame is not a hello: %v", err)
	case hello.Op != wire.OpHello:
		return bad(`the first frame must be {"op":"hello",…}, not %q`, hello.Op)
	case hello.V != 1:
		return bad(`protocol version %d is not known here; send "v":1`, hello.V)
	}
	return hello, nil
}

func (s *Session) admit() *Refusal {
	if s.hub.draining.Load() {
		return &Refusal{Reason: Shutdown, Code: 503, Temporary: true, Text: "this node is shutting down; connect to another"}
	}
	if s.e.Admit == nil {
		return nil
	}
	return s.e.Admit(s.conn.LocalAddr())
}

// window is how many messages may be in flight on the socket.
func (s *Session) window(hello wire.Request) int {
	if s.acksByFrames() {
		return 1 // an answer names no message
	}
	return min(positive(hello.Window, s.e.Window), maxWindow)
}

// enter makes the session known. A JSON peer's welcome is in the queue before it can be found,
// so it comes before any message, and written after, so whoever has read it misses nothing.
func (s *Session) enter(hello wire.Request) {
	s.heartbeat = s.e.Heartbeat
	if hello.Heartbeat > 0 {
		s.heartbeat = clampHeartbeat(time.Duration(min(hello.Heartbeat, int(maxHeartbeat/time.Second))) * time.Second)
	}
	s.granted, s.name = s.window(hello), broker.NewMID()
	s.mu.Lock()
	if s.protocol == JSON {
		frame := s.welcomeLocked()
		s.queue = append(s.queue, outgoing{frame: frame})
		s.queued += len(frame)
		s.waiting++
	}
	s.mu.Unlock()

	c := s.hub.channel(s.e.Channel)
	s.mu.Lock()
	s.channel = c
	s.mu.Unlock()
	s.hub.registered.Add(1)
	c.add(s)
	if s.e.OnEnter != nil {
		s.e.OnEnter(s)
	}

	s.mu.Lock()
	s.startWriterLocked()
	if s.delivery != nil {
		s.delivery.wakeLocked()
	}
	s.mu.Unlock()
}

// welcomeLocked returns the welcome of the session as it is now.
func (s *Session) welcomeLocked() []byte {
	return s.frame(wire.AppendWelcome(nil, wire.Welcome{
		Session:   s.name,
		Fence:     s.fence(),
		Window:    s.granted,
		Heartbeat: int(s.heartbeat / time.Second),
		Max:       s.e.MaxMessage,
		Standby:   s.delivery != nil && s.delivery.standing,
	}))
}

// fence is what a client is told of its mailbox's fence.
func (s *Session) fence() string {
	if s.delivery == nil {
		return ""
	}
	return s.delivery.fence
}
