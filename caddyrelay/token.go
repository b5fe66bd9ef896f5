package caddyrelay

import (
	"crypto/sha256"
	"crypto/subtle"
)

// tokens is a set of accepted tokens. It keeps digests: comparing those takes the same time
// whatever was sent, its length included.
type tokens [][sha256.Size]byte

func newTokens(values []string) tokens {
	t := make(tokens, len(values))
	for i, v := range values {
		t[i] = sha256.Sum256([]byte(v))
	}
	return t
}

// accept reports whether token is in the set. Every member is compared, so that time
// does not tell which one matched.
func (t tokens) accept(token string) bool {
	sum := sha256.Sum256([]byte(token))
	found := 0
	for i := range t {
		found |= subtle.ConstantTimeCompare(sum[:], t[i][:])
	}
	return found == 1
}
