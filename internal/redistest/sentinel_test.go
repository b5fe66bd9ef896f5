package redistest

import "testing"

func TestSentinels(t *testing.T) {
	s := StartSentinels(t, 1)
	before := s.Primary()
	before.CLI("SET", "k", "v")
	before.CLI("WAIT", "1", "5000")
	s.Failover()
	if after := s.Primary(); after == before || after.CLI("GET", "k") != "v" {
		t.Errorf("the primary is %s, before it was %s", after.Addr(), before.Addr())
	}
}
