package broker

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

func storedSample() *Message {
	return &Message{
		MID: "M", Channel: "pay_mq_channel", ID: "01", Time: time.UnixMilli(1_700_000_000_123), ContentType: "application/json",
		Ref: "order 1", Key: "k", Source: "route", Headers: map[string]string{"X-Sign": `a"b`}, Body: []byte("{\"amount\":1.0}\n\x00\xff"),
	}
}

// The bytes are format: stores in the field have them.
func TestStoredFormat(t *testing.T) {
	members := `{"mid":"M","channel":"pay_mq_channel","id":"01","ts":1700000000123,"type":"application/json","ref":"order 1",` +
		`"key":"k","source":"route","headers":{"X-Sign":"a\"b"}}`
	want := append(binary.AppendUvarint([]byte{1, 0}, uint64(len(members))), members...)
	want = append(want, "{\"amount\":1.0}\n\x00\xff"...)
	if got := AppendStored(nil, storedSample()); !bytes.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := AppendStored([]byte("before"), storedSample()); !bytes.Equal(got, append([]byte("before"), want...)) {
		t.Errorf("appended to something: %q", got)
	}
	m, err := ParseStored([]byte("\x01\x00\x29" + `{"mid":"M","channel":"c","id":"1","ts":5}` + "x"))
	if err != nil || m.MID != "M" || m.Headers != nil || !m.Time.Equal(time.UnixMilli(5)) || string(m.Body) != "x" {
		t.Errorf("the smallest: %+v, %v", m, err)
	}
}

func TestStoredRoundTrip(t *testing.T) {
	for _, edit := range []func(*Message){
		func(*Message) {},
		func(m *Message) { m.Body = nil },
		func(m *Message) { m.Headers, m.Ref, m.Key, m.Source, m.ContentType = nil, "", "", "", "" },
		func(m *Message) { m.Time = m.Time.Add(999 * time.Microsecond).Truncate(time.Millisecond) },
		func(m *Message) { m.Body = bytes.Repeat([]byte{0, 1, 0xff}, 100_000) },
		func(m *Message) { m.Ref, m.ID = "<&>\u2028\x00", "é" },
	} {
		want := storedSample()
		edit(want)
		got, err := ParseStored(AppendStored(nil, want))
		if err != nil || !sameStored(got, want) {
			t.Errorf("got %+v, %v; want %+v", got, err, want)
		}
	}
}

func sameStored(a, b *Message) bool {
	return a.MID == b.MID && a.Channel == b.Channel && a.ID == b.ID && a.Ref == b.Ref && a.Key == b.Key && a.Source == b.Source &&
		a.ContentType == b.ContentType && bytes.Equal(a.Body, b.Body) && a.Time.Equal(b.Time) && maps.Equal(a.Headers, b.Headers)
}

// A body that is appended to must not write over what follows it in the buffer.
func TestStoredBodyHasNoRoom(t *testing.T) {
	data := append(AppendStored(nil, storedSample()), "beyond"...)
	m, err := ParseStored(data[:len(data)-len("beyond")])
	if err != nil {
		t.Fatal(err)
	}
	_ = append(m.Body, "XXXXXX"...)
	if !bytes.HasSuffix(data, []byte("beyond")) {
		t.Errorf("appending to the body wrote over %q", data[len(data)-6:])
	}
}

func TestParseStoredRefuses(t *testing.T) {
	good := AppendStored(nil, storedSample())
	for what, data := range map[string][]byte{
		"nothing": nil, "a byte": {1}, "two bytes": {1, 0}, "cut in the members": good[:40], "a newer version": append([]byte{2}, good[1:]...),
		"version 0": append([]byte{0}, good[1:]...), "a flag": append([]byte{1, 1}, good[2:]...), "members longer than all": {1, 0, 100, '{', '}'},
		"a length without an end": {1, 0, 0x80, 0x80}, "a length of more than 64 bits": append([]byte{1, 0}, bytes.Repeat([]byte{0xff}, 11)...),
		"members that are no JSON": {1, 0, 1, '{', 'x'}, "members of another type": append([]byte{1, 0, 10}, `{"mid": 1}`...),
	} {
		m, err := ParseStored(data)
		if !errors.Is(err, ErrFormat) || m != nil {
			t.Errorf("%s: %+v, %v; want ErrFormat", what, m, err)
		}
	}
	if _, err := ParseStored(append([]byte{2}, good[1:]...)); !strings.Contains(err.Error(), "version 2") || !strings.Contains(err.Error(), "version 1") {
		t.Errorf("the error does not name both versions: %v", err)
	}
}

// I11: no bytes make ParseStored panic, and what it accepts can be written and read again.
func FuzzParseStored(f *testing.F) {
	f.Add(AppendStored(nil, storedSample()))
	f.Add(AppendStored(nil, &Message{}))
	f.Add([]byte("\x01\x00\x02{}body"))
	f.Add([]byte("\x01\x00\x04nullbody"))
	f.Add([]byte("\x01\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01{}"))
	f.Add([]byte{2, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		m, err := ParseStored(data)
		if !bytes.Equal(before, data) {
			t.Fatal("the data changed")
		}
		if err != nil {
			if !errors.Is(err, ErrFormat) {
				t.Fatalf("%q: %v", data, err)
			}
			return
		}
		again, err := ParseStored(AppendStored(nil, m))
		if err != nil || !sameStored(again, m) {
			t.Fatalf("%q: %+v, and read again %+v, %v", data, m, again, err)
		}
		if !utf8.ValidString(m.MID + m.Ref + m.Key) {
			t.Fatalf("%q: members that are not UTF-8", data)
		}
	})
}
