package redistest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Sentinels is a primary with replicas, watched by three Sentinels under the name [Sentinels.Name].
type Sentinels struct {
	Name    string
	Addrs   []string  // of the Sentinels
	Servers []*Server // the first is the primary to begin with

	t testing.TB
}

// StartSentinels starts a primary, so many replicas, and three Sentinels that agree within a second or so that a
// primary is gone. args are those of the servers.
func StartSentinels(t testing.TB, replicas int, args ...string) *Sentinels {
	t.Helper()
	s := &Sentinels{Name: "mymaster", t: t}
	args = append(args, "--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
	primary := Start(t, args...)
	s.Servers = append(s.Servers, primary)
	for range replicas {
		s.Servers = append(s.Servers, Start(t, append(args, "--replicaof", primary.Host()+" "+primary.Port())...))
	}
	s.wait("the replicas", func() bool {
		return strings.Contains(primary.CLI("INFO", "replication"), fmt.Sprintf("connected_slaves:%d", replicas)) &&
			strings.Count(primary.CLI("INFO", "replication"), "state=online") == replicas
	})
	for range 3 {
		s.Addrs = append(s.Addrs, s.startSentinel(primary))
	}
	s.wait("the Sentinels to know each other", func() bool {
		for _, addr := range s.Addrs {
			text := s.CLI(addr, "SENTINEL", "MASTER", s.Name)
			if !strings.Contains(text, "num-other-sentinels\n2") || !strings.Contains(text, "num-slaves\n"+strconv.Itoa(replicas)) {
				return false
			}
		}
		return true
	})
	return s
}

func (s *Sentinels) startSentinel(primary *Server) string {
	s.t.Helper()
	binary := os.Getenv("REDIS_SERVER")
	if binary == "" {
		binary = "redis-server"
	}
	dir, err := os.MkdirTemp("", "sentinel")
	if err != nil {
		s.t.Fatal(err)
	}
	addr := addrFor(s.t, primary.args)
	host, own, _ := net.SplitHostPort(addr)
	file := filepath.Join(dir, "sentinel.conf")
	config := fmt.Sprintf("port %s\nbind %s\ndir %s\nsentinel monitor %s %s %s 2\n"+
		"sentinel down-after-milliseconds %s 500\nsentinel failover-timeout %s 2000\n", own, host, dir, s.Name, host, primary.Port(), s.Name, s.Name)
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(binary, file, "--sentinel")
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		_ = os.RemoveAll(dir)
	})
	return addr
}

// CLI asks one of the Sentinels. It returns what redis-cli prints, which is no error if the Sentinel is not there yet.
func (s *Sentinels) CLI(addr string, args ...string) string {
	host, port, _ := net.SplitHostPort(addr)
	out, _ := exec.Command("redis-cli", append([]string{"-h", host, "-p", port}, args...)...).CombinedOutput()
	return string(out)
}

// Primary returns the server that the Sentinels call the primary.
func (s *Sentinels) Primary() *Server {
	s.t.Helper()
	var found *Server
	s.wait("a primary", func() bool {
		_, port, _ := strings.Cut(strings.TrimSpace(s.CLI(s.Addrs[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", s.Name)), "\n")
		for _, server := range s.Servers {
			if server.Port() == port {
				found = server
			}
		}
		return found != nil
	})
	return found
}

// Failover kills the primary, waits until the Sentinels have another one, and starts the old one again, which becomes
// a replica.
func (s *Sentinels) Failover() {
	s.t.Helper()
	before := s.Primary()
	before.Kill()
	s.wait("another primary", func() bool { return s.Primary() != before })
	before.Restart()
	before.CLI("REPLICAOF", before.Host(), s.Primary().Port()) // the Sentinels would say so, within half a minute
	s.wait("the old primary to be a replica", func() bool {
		return strings.Contains(before.CLI("ROLE"), "slave") && strings.Contains(before.CLI("INFO", "replication"), "master_link_status:up")
	})
}

// Settle waits until all Sentinels have seen how things are after a failover: only then do they promote the right one
// at the next.
func (s *Sentinels) Settle() {
	s.t.Helper()
	s.wait("the Sentinels to agree", func() bool {
		primary := s.Primary() // a busy machine can have them promote another one
		for _, addr := range s.Addrs {
			master, replicas := s.CLI(addr, "SENTINEL", "MASTER", s.Name), s.CLI(addr, "SENTINEL", "REPLICAS", s.Name)
			if !strings.Contains(master, "\nport\n"+primary.Port()+"\n") || !strings.Contains(master, "\nflags\nmaster\n") ||
				strings.Contains(replicas, "s_down") || strings.Count(replicas, "master-link-status\nok") != len(s.Servers)-1 {
				return false
			}
		}
		return true
	})
}

func (s *Sentinels) wait(what string, ok func() bool) {
	s.t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(3 * patience); !ok(); <-tick.C {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain for %s", what)
		}
	}
}
