package brokertest

import "testing"

func TestFormatOfMemory(t *testing.T) {
	m := NewMemory(MemoryOptions{})
	m.SetPolicies(FormatPolicies())
	FillFormat(t, m)
	m.Crash()
	again := m.Another("")
	defer again.Close()
	again.SetPolicies(FormatPolicies())
	CheckFormat(t, again)
}
