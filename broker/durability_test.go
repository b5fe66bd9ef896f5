package broker

import "testing"

func TestI1_DurabilityMeets(t *testing.T) {
	for _, c := range []struct {
		proven, demanded Durability
		want             bool
	}{
		{"fsync", "", true}, {"", "", true}, {"nonsense", "", true},
		{"fsync", "fsync", true}, {"fsync", "aof_always", true}, {"fsync", "aof_everysec", true}, {"fsync", "memory", true},
		{"aof_always", "fsync", true}, {"aof_everysec", "aof_always", false}, {"aof_everysec", "memory", true}, {"memory", "aof_everysec", false},
		{"memory", "memory", true}, {"", "memory", false}, {"nonsense", "memory", false}, {"memory", "nonsense", false},
		{"aof_everysec+replicas:1/1", "replicas:1", true}, {"aof_everysec+replicas:1/2", "replicas:2", false},
		{"aof_everysec+replicas:2/2", "replicas:1", true}, {"aof_everysec+replicas:2/2", "aof_everysec+replicas:2", true},
		{"aof_everysec+replicas:2/2", "aof_always+replicas:2", false}, {"aof_always+replicas:0/2", "replicas:1", false},
		{"aof_always+replicas:0/2", "aof_always", true}, {"fsync", "replicas:1", false}, {"replicas:1/1", "replicas:1", true},
		{"replicas:10/10", "replicas:9", true}, {"replicas:x/1", "replicas:1", false}, {"replicas:-1/1", "memory", false},
	} {
		if got := c.proven.Meets(c.demanded); got != c.want {
			t.Errorf("%q meets %q: %v, want %v", c.proven, c.demanded, got, c.want)
		}
	}
}

func TestDurabilityCheck(t *testing.T) {
	for _, d := range []Durability{"", Memory, AOFEverysec, AOFAlways, Fsync, "replicas:1", "replicas:12", "aof_always+replicas:2"} {
		if err := d.Check(); err != nil {
			t.Errorf("%q: %v", d, err)
		}
	}
	for _, d := range []Durability{
		"disk", "FSYNC", " fsync", "fsync+", "+", "replicas", "replicas:", "replicas:0", "replicas:-1", "replicas:x", "replicas:1.5",
		"aof_always+replicas:0", "fsync,replicas:1", "replicas:99999999999999999999",
	} {
		if d.Check() == nil {
			t.Errorf("%q passes as a level that can be demanded", d)
		}
	}
}

func TestReplicas(t *testing.T) {
	if got := Replicas(1, 2); got != "replicas:1/2" || !(AOFAlways + "+" + got).Meets("aof_always+replicas:1") {
		t.Errorf("Replicas(1, 2) is %q", got)
	}
}
