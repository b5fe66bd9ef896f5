package broker

import (
	"strings"
	"testing"
)

func TestCheckID(t *testing.T) {
	for _, id := range []string{
		"01", "a", "order:1/2#3", "é", "支付", "0", "**", "*1", "-1", `"`, `\`, "{}", strings.Repeat("x", MaxIDLength), "e\u0301",
	} {
		if err := CheckID(id); err != nil {
			t.Errorf("CheckID(%q): %v", id, err)
		}
	}
	for id, want := range map[string]string{
		"":                                 "empty",
		"*":                                "every socket",
		"a b":                              "' ' at byte 1",
		"a,b":                              "',' at byte 1",
		"é\n":                              `'\n' at byte 2`,
		"\t":                               `'\t' at byte 0`,
		"a\x00":                            `'\x00'`,
		"a\u00a0b":                         `'\u00a0'`,     // no-break space
		"a\u200b":                          `'\u200b'`,     // zero width space
		"\ufeffa":                          `'\ufeff'`,     // byte order mark
		"a\u202eb":                         `'\u202e'`,     // right-to-left override
		"a\u3000":                          `'\u3000'`,     // ideographic space
		"a\u2028b":                         `'\u2028'`,     // line separator
		"a\ufffd":                          `'�'`,          // what a decoder could not read
		"a\U000e0041":                      `'\U000e0041'`, // tag
		"\ue000":                           `'\ue000'`,     // private use
		"a\x7f":                            `'\x7f'`,
		"a\xff":                            "UTF-8",
		strings.Repeat("x", MaxIDLength+1): "129 bytes",
		strings.Repeat("é", 5000):          "10000 bytes",
	} {
		err := CheckID(id)
		if err == nil {
			t.Errorf("CheckID(%.20q): no error, want one with %s", id, want)
		} else if !strings.Contains(err.Error(), want) {
			t.Errorf("CheckID(%.20q): %v, want an error with %s", id, err, want)
		} else if len(err.Error()) > 200 {
			t.Errorf("CheckID(%.20q): the error has %d bytes", id, len(err.Error()))
		}
	}
}

func TestNewMID(t *testing.T) {
	seen := make(map[string]bool)
	for range 1000 {
		mid := NewMID()
		if len(mid) != 26 || seen[mid] {
			t.Fatalf("%q", mid)
		}
		if err := CheckID(mid); err != nil {
			t.Fatal(err)
		}
		seen[mid] = true
	}
}
