package wire

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func BenchmarkAppend(b *testing.B) {
	payload := bytes.Repeat([]byte("x"), 1000)
	for _, f := range framings {
		b.Run(f.String(), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(payload)))
			var dst []byte
			for b.Loop() {
				dst, _ = f.Append(dst[:0], payload)
			}
		})
	}
}

func BenchmarkNext(b *testing.B) {
	for _, f := range framings {
		b.Run(f.String(), func(b *testing.B) {
			frame, _ := f.Append(nil, bytes.Repeat([]byte("x"), 1000))
			b.ReportAllocs()
			b.SetBytes(int64(len(frame)))
			for b.Loop() {
				if _, n, err := f.Next(frame, 1000); n == 0 || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}

// benchmarkMessages are the three ways of a body, and the one that needs rewriting.
func benchmarkMessages() map[string]*Message {
	m := Message{
		MID: "ABCDEFGHIJKLMNOPQRSTUVWXYZ", Channel: "pay_mq_channel", Attempt: 1, TS: 1764547200123, Ref: "order-1",
		Source: "alipay", Headers: map[string]string{"X-Request-Id": "1", "User-Agent": "curl"},
	}
	result := map[string]*Message{}
	for _, c := range []struct{ name, contentType, body string }{
		{"json", "application/json", `{"items":[` + strings.Repeat(`{"id":"123456","price":1.5},`, 35) + `0]}`},
		{"lines", "application/json", "{\n\"items\":[" + strings.Repeat(`{"id":"123456", "price":1.5},`, 35) + "0]\n}"},
		{"text", "application/x-www-form-urlencoded", strings.Repeat("out_trade_no=1&", 67)},
		{"base64", "", strings.Repeat("\xff\x00", 500)},
	} {
		one := m
		one.ContentType, one.Body = c.contentType, []byte(c.body)
		result[c.name] = &one
	}
	return result
}

func BenchmarkAppendMessage(b *testing.B) {
	for name, m := range benchmarkMessages() {
		b.Run(fmt.Sprintf("%s/%d", name, len(m.Body)), func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(m.Body)))
			var dst []byte
			for b.Loop() {
				dst = AppendMessage(dst[:0], m, true)
			}
		})
	}
}

func BenchmarkParseRequest(b *testing.B) {
	ack := []byte(`{"op":"ack","mid":"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}`)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ParseRequest(ack); err != nil {
			b.Fatal(err)
		}
	}
}

// What is done for each frame and each message needs no memory but the caller's. JSON bodies are left to
// the benchmark: encoding/json takes its scanner from a pool, which under the race
// detector drops at random.
func TestNoAllocations(t *testing.T) {
	var dst []byte
	check := func(name string, f func()) {
		t.Helper()
		f() // makes dst large enough
		if n := testing.AllocsPerRun(100, f); n > 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	payload := bytes.Repeat([]byte("x"), 1000)
	for _, f := range framings {
		check("Append "+f.String(), func() { dst, _ = f.Append(dst[:0], payload) })
		frame := bytes.Clone(dst)
		check("Next "+f.String(), func() { _, _, _ = f.Next(frame, 1000) })
	}
	text := &Message{MID: "m", Headers: map[string]string{"b": "1", "a": "2"}, Body: payload}
	check("AppendMessage text", func() { dst = AppendMessage(dst[:0], text, true) })
	binary := &Message{MID: "m", Body: []byte{0xff}}
	check("AppendMessage base64", func() { dst = AppendMessage(dst[:0], binary, true) })
	check("AppendWelcome", func() { dst = AppendWelcome(dst[:0], Welcome{Session: "s", Fence: "f"}) })
	check("AppendError", func() { dst = AppendError(dst[:0], Error{Reason: "r"}) })
}
