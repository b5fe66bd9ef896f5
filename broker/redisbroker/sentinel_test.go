package redisbroker

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/caddyrelay/relay/broker"
	"github.com/caddyrelay/relay/internal/redistest"
)

// I1, I2, I4: after a failover appends go to the new primary, what was confirmed by all replicas is there, and owners
// are told to attach again if it had not heard of them.
func TestI2_SentinelFailover(t *testing.T) {
	s := redistest.StartSentinels(t, 2, "--appendonly", "yes")
	b := openStore(t, Options{Sentinels: s.Addrs, MasterName: s.Name, Settings: Settings{Replicas: 2}}, broker.Policy{})
	_, sub := subscribe(t, b, "topic")
	until(t, "the subscription to be proven", func() bool { return sub.Err() == nil })
	accepted := 0
	store := func() error {
		key := fmt.Sprint(accepted)
		_, err := b.Append(timeout(t), message("01", key, key), broker.AppendOptions{Key: key})
		if err == nil {
			accepted++
		}
		return err
	}
	for range 20 {
		until(t, "a message to be accepted", func() bool { return store() == nil })
	}
	s.Failover()
	until(t, "a message to be accepted", func() bool { return store() == nil })
	_, page, err := attached(b.Attach(timeout(t), "c", "01", new(owner), broker.AttachOptions{Window: 100}))
	if err != nil || len(page) != accepted {
		t.Fatalf("%d of %d messages are there: %v", len(page), accepted, err)
	}
	for i, e := range page {
		if string(e.Message.Body) != fmt.Sprint(i) {
			t.Errorf("message %d is %s", i, e.Message.Body)
		}
	}
	until(t, "the subscription to be proven", func() bool { return sub.Err() == nil })
}

func TestSentinelErrors(t *testing.T) {
	s := redistest.StartSentinels(t, 0, "--appendonly", "yes")
	b := openStore(t, Options{Sentinels: s.Addrs, MasterName: "nobody"}, broker.Policy{})
	if _, err := b.Append(timeout(t), message("01", "", "x"), broker.AppendOptions{}); !errors.Is(err, broker.ErrRefused) || !strings.Contains(err.Error(), "correct master_name") {
		t.Errorf("an unknown name: %v", err)
	}
	away := openStore(t, Options{Sentinels: []string{"127.0.0.1:1", s.Addrs[1]}, MasterName: s.Name}, broker.Policy{})
	until(t, "the second Sentinel to be asked", func() bool {
		_, err := away.Append(timeout(t), message("01", "", "x"), broker.AppendOptions{})
		return err == nil
	})
}
