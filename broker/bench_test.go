package broker

import (
	"bytes"
	"testing"
)

// What a payment notification looks like.
var sample = Message{
	MID: "ABCDEFGHIJKLMNOPQRSTUVWXYZ", Channel: "pay_mq_channel", ID: "01", Ref: "order-1", Source: "route", Time: accepted,
	ContentType: "application/json", Body: append(append([]byte(`{"amount":1.00,"note":"`), bytes.Repeat([]byte("x"), 250)...), `"}`...),
}

func BenchmarkPayload(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		p, err := FromMessage(&sample)
		if err != nil {
			b.Fatal(err)
		}
		p.Payload()
	}
}

func BenchmarkMessage(b *testing.B) {
	p, err := FromMessage(&sample)
	if err != nil {
		b.Fatal(err)
	}
	payload := p.Payload()
	b.SetBytes(int64(len(payload)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := FromPayload(payload).Message(); err != nil {
			b.Fatal(err)
		}
	}
}
