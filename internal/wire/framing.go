package wire

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
)

var (
	// ErrUnframable says that a payload cannot be a frame of a framing. It is
	// wrapped with why.
	ErrUnframable = errors.New("cannot be framed")

	// ErrFrameTooLarge says that a peer's frame is larger than allowed.
	ErrFrameTooLarge = errors.New("frame too large")
)

// Framing is how bytes become frames on a socket. The zero value is lines. Framings can
// be compared, and be keys of a map.
//
//	line      +---------------------+----+
//	          | payload, without LF | LF |   a CR before the LF is not part of the payload
//	          +---------------------+----+
//
//	length 2  +----+----+---------+
//	          | hi | lo | payload |          the length of the payload, header excluded,
//	          +----+----+---------+          big-endian
//
//	length 4  the same with four bytes of length
type Framing struct {
	kind kind
	size uint8 // of a length field, in bytes
}

type kind uint8

const (
	kindLine kind = iota
	kindLength
)

// allowedFramings is for error texts.
const allowedFramings = `use "line", "length 2" or "length 4"`

// ParseFraming returns the framing that a configuration spells as these words: "line", or
// "length" and "2" or "4". The error says what is allowed.
func ParseFraming(words ...string) (Framing, error) {
	switch spelled := strings.Join(words, " "); spelled {
	case "line":
		return Framing{}, nil
	case "length 2":
		return Framing{kind: kindLength, size: 2}, nil
	case "length 4":
		return Framing{kind: kindLength, size: 4}, nil
	case "":
		return Framing{}, fmt.Errorf("framing is missing: %s", allowedFramings)
	default:
		return Framing{}, fmt.Errorf("unknown framing %q: %s", spelled, allowedFramings)
	}
}

// String returns the framing as configurations spell it.
func (f Framing) String() string {
	if f.kind == kindLength {
		return fmt.Sprintf("length %d", f.size)
	}
	return "line"
}

// SingleLine reports whether a payload of the framing must not contain line feeds.
func (f Framing) SingleLine() bool { return f.kind == kindLine }

// MaxPayload returns the largest payload that the framing can hold, in bytes; for lines,
// which have no limit of their own, the largest int.
func (f Framing) MaxPayload() int {
	if f.kind == kindLength {
		return int(min(f.maxLength(), math.MaxInt))
	}
	return math.MaxInt
}

// maxLength returns the largest number that the length field can hold.
func (f Framing) maxLength() uint64 { return 1<<(8*f.size) - 1 }

// Append appends payload to dst as one frame. If that cannot be done it returns dst as it is
// and an error that wraps [ErrUnframable].
//
// A line may contain CR: it is framed as it stands. Readers differ in what they make of
// it (those of LuaSocket and OpenResty drop every CR), but so they do with the CR of
// any other line server.
func (f Framing) Append(dst, payload []byte) ([]byte, error) {
	if f.kind == kindLine {
		if i := bytes.IndexByte(payload, '\n'); i >= 0 {
			return dst, fmt.Errorf("%w: a line feed at byte %d, and lines end there; use a length framing", ErrUnframable, i)
		}
		return append(append(dst, payload...), '\n'), nil
	}
	n := uint64(len(payload))
	if n > f.maxLength() {
		return dst, fmt.Errorf("%w: %d bytes, and framing %q holds at most %d", ErrUnframable, n, f, f.maxLength())
	}
	for i := int(f.size) - 1; i >= 0; i-- {
		dst = append(dst, byte(n>>(8*i)))
	}
	return append(dst, payload...), nil
}

// Next returns the payload of the first frame in buf, which shares the memory of buf, and the
// number of bytes that the frame takes. If n is 0 and err nil, the frame is not
// complete.
//
// A payload of more than limit bytes is an error that wraps [ErrFrameTooLarge]. It is
// found as soon as it is certain: from the length field alone, or from limit+2 bytes
// without the end of a line. So a caller that asks before each read never needs room for
// more than that (I10).
func (f Framing) Next(buf []byte, limit int) (payload []byte, n int, err error) {
	limit = max(limit, 0)
	if f.kind == kindLine {
		return nextLine(buf, limit)
	}
	size := int(f.size)
	if len(buf) < size {
		return nil, 0, nil
	}
	// Neither int(length) nor size+length may be computed before length is known
	// to be small: a peer can announce what does not fit in an int.
	var length uint64
	for _, b := range buf[:size] {
		length = length<<8 | uint64(b)
	}
	if length > uint64(limit) {
		return nil, 0, fmt.Errorf("%w: %d bytes announced, %d allowed", ErrFrameTooLarge, length, limit)
	}
	if uint64(len(buf)-size) < length {
		return nil, 0, nil
	}
	end := size + int(length)
	return buf[size:end:end], end, nil
}

// nextLine is Next for lines.
func nextLine(buf []byte, limit int) ([]byte, int, error) {
	window := buf
	if len(buf)-2 > limit { // limit+2 may overflow
		window = buf[:limit+2]
	}
	lf := bytes.IndexByte(window, '\n')
	if lf < 0 {
		if len(buf)-2 >= limit {
			return nil, 0, fmt.Errorf("%w: a line of more than %d bytes", ErrFrameTooLarge, limit)
		}
		return nil, 0, nil
	}
	end := lf
	if end > 0 && buf[end-1] == '\r' {
		end--
	}
	if end > limit {
		return nil, 0, fmt.Errorf("%w: a line of %d bytes, %d allowed", ErrFrameTooLarge, end, limit)
	}
	return buf[:end:end], lf + 1, nil
}
