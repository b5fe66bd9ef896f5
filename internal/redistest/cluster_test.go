package redistest

import "testing"

func TestCluster(t *testing.T) {
	c := StartCluster(t)
	killed := c.Failover()
	if killed.CLI("ROLE")[:5] != "slave" {
		t.Errorf("who was killed is %s", killed.CLI("ROLE"))
	}
}
