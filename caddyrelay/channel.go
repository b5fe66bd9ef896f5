package caddyrelay

import (
	"fmt"
	"regexp"
)

// The delivery policies.
const (
	atMostOnce  = "at_most_once"
	atLeastOnce = "at_least_once"
)

// Channel is a named class of messages with one delivery policy.
type Channel struct {
	// What is promised about delivery.
	//
	// at_most_once is plain publish and subscribe: whoever listens at the moment gets
	// the message, and nothing is stored. Several sockets may share an ID, and the ID
	// "*" reaches every socket of the channel.
	//
	// at_least_once, which will be the default, is not in this release yet; so for
	// now this must be written out.
	Delivery string `json:"delivery,omitempty"`

	// The name of the Redis publish/subscribe channel. Default: the channel's own name,
	// without any prefix, so that programs that know nothing of the relay share it. The
	// embedded broker takes it as the name for listeners on the bus.
	RedisChannel string `json:"redis_channel,omitempty"`
}

var channelName = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,64}$`)

// check says what is wrong with the channel's configuration, and what to write.
func (c *Channel) check(name string) error {
	if !channelName.MatchString(name) {
		return fmt.Errorf("channel %q: a name has 1 to 64 letters, digits, or any of _ . : -", name)
	}
	switch c.Delivery {
	case atMostOnce:
		return nil
	case atLeastOnce:
		return fmt.Errorf("channel %s: delivery at_least_once is not available yet: it comes with the next release; "+
			"write \"delivery at_most_once\" if messages may be lost while nobody listens", name)
	case "":
		return fmt.Errorf("channel %s: delivery is missing: write \"delivery at_most_once\" "+
			"(at_least_once will be the default and is not available yet)", name)
	}
	return fmt.Errorf("channel %s: unknown delivery %q: write \"delivery at_most_once\"", name, c.Delivery)
}

// topic is the name of the channel at the broker.
func (c *Channel) topic(name string) string {
	if c.RedisChannel != "" {
		return c.RedisChannel
	}
	return name
}
