//go:build unix

package cluster

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/freeport"
)

// namespaces is two bridges in the namespace of the test, with Redis, publishers and clients. Each node has a namespace with
// a cable to either: one for those who talk to it, one for Redis. Names have the process ID of the test, so that a later one
// can remove what it left when it was killed.
type namespaces struct {
	name        string // of everything: rc<pid>x<number>
	front, back netip.Prefix
}

// nodeSite is one node's namespace.
type nodeSite struct {
	of   *namespaces
	i    int
	name string
}

var networks atomic.Int64

var ours = regexp.MustCompile(`\brc([0-9]+)x[0-9a-z]+`)

// newNamespaces makes the bridges, and tries whether a node could talk over them.
func newNamespaces(t *testing.T) (_ *namespaces, err error) {
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, errors.New("there is no program ip (iproute2)")
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("it takes root")
	}
	if err := removeLeftovers(); err != nil {
		return nil, err
	}
	number := networks.Add(1)
	n := &namespaces{name: fmt.Sprintf("rc%dx%d", os.Getpid(), number)}
	if n.front, n.back, err = freeNetworks(int(number)); err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		for _, bridge := range []string{n.bridge("f"), n.bridge("b")} {
			_, _ = run("ip", "link", "del", bridge)
		}
	})
	for i, net := range []netip.Prefix{n.front, n.back} {
		bridge := n.bridge("fb"[i : i+1])
		if err := all([][]string{
			{"link", "add", bridge, "address", mac(i, 0), "type", "bridge"},
			{"addr", "add", host(net, 1) + "/24", "dev", bridge},
			{"link", "set", bridge, "up"},
		}); err != nil {
			return nil, err
		}
	}
	return n, n.try(t)
}

// try makes a namespace, and looks whether its system answers on both cables.
func (n *namespaces) try(t *testing.T) error {
	s, err := n.newSite(t, 99)
	if err != nil {
		return err
	}
	for _, net := range []netip.Prefix{n.front, n.back} {
		conn, err := dial(host(net, 99) + ":9")
		if err == nil {
			_ = conn.Close()
		} else if !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("the system in a namespace does not answer: %w", err)
		}
	}
	return s.remove()
}

func (n *namespaces) bridge(side string) string { return n.name + side }

func (n *namespaces) redisHost() string { return host(n.back, 1) }

func (n *namespaces) String() string { return "each node in a network namespace" }

// host returns an address in a network.
func host(net netip.Prefix, i int) string {
	b := net.Addr().As4()
	b[3] = byte(i)
	return netip.AddrFrom4(b).String()
}

// mac returns a hardware address of our own: known beforehand, so that nobody need ask for it over a cable that is cut.
func mac(side, i int) string { return fmt.Sprintf("02:52:43:00:%02x:%02x", side, i) }

func (n *namespaces) site(t *testing.T, i int) site {
	t.Helper()
	s, err := n.newSite(t, i+2)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (n *namespaces) newSite(t *testing.T, i int) (*nodeSite, error) {
	s := &nodeSite{of: n, i: i, name: fmt.Sprintf("%sn%d", n.name, i)}
	if err := all([][]string{{"netns", "add", s.name}}); err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = s.remove() })
	if err := all([][]string{{"-n", s.name, "link", "set", "lo", "up"}}); err != nil {
		return nil, err
	}
	for side, net := range []netip.Prefix{n.front, n.back} {
		letter := "fb"[side : side+1]
		cable, bridge := s.cable(letter), n.bridge(letter)
		if err := all([][]string{
			{"link", "add", cable, "type", "veth", "peer", "name", "side" + letter, "address", mac(side, i), "netns", s.name},
			{"link", "set", cable, "master", bridge},
			{"link", "set", cable, "up"},
			{"-n", s.name, "addr", "add", host(net, i) + "/24", "dev", "side" + letter},
			{"-n", s.name, "link", "set", "side" + letter, "up"},
			{"-n", s.name, "neigh", "replace", host(net, 1), "lladdr", mac(side, 0), "dev", "side" + letter, "nud", "permanent"},
			{"neigh", "replace", host(net, i), "lladdr", mac(side, i), "dev", bridge, "nud", "permanent"},
		}); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *nodeSite) cable(side string) string {
	return fmt.Sprintf("%s%s%d", s.of.name, side, s.i)
}

func (s *nodeSite) remove() error {
	_, err := run("ip", "netns", "del", s.name)
	return err
}

func (s *nodeSite) address(t *testing.T) string {
	_, port, _ := net.SplitHostPort(freeport.Addr(t))
	return net.JoinHostPort(host(s.of.front, s.i), port)
}

func (s *nodeSite) redis(_ *testing.T, addr string) string { return addr }

// command has ip enter the namespace and become the program: the process ID stays.
func (s *nodeSite) command(cmd *exec.Cmd) {
	cmd.Args = append([]string{"ip", "netns", "exec", s.name, cmd.Path}, cmd.Args[1:]...)
	cmd.Path, cmd.Err = exec.Command("ip").Path, nil
}

// cut takes the cable out of the bridge. At both ends it looks as if it were in: nobody is told that nobody answers, as
// with a firewall that drops.
func (s *nodeSite) cut() error {
	return all([][]string{{"link", "set", s.cable("b"), "nomaster"}})
}

func (s *nodeSite) heal() error {
	return all([][]string{{"link", "set", s.cable("b"), "master", s.of.bridge("b")}})
}

// all runs ip several times.
func all(calls [][]string) error {
	for _, args := range calls {
		if _, err := run("ip", args...); err != nil {
			return err
		}
	}
	return nil
}

// dial tries a connection without much patience.
func dial(addr string) (net.Conn, error) { return net.DialTimeout("tcp", addr, 2*time.Second) }

// freeNetworks returns two networks in 10.0.0.0/8 that nothing on this machine has an address in, or a way to. They follow
// from the process ID and the number, so that two tests at once have different ones.
func freeNetworks(number int) (front, back netip.Prefix, err error) {
	taken, err := net.InterfaceAddrs()
	if err != nil {
		return front, back, err
	}
	routes, err := run("ip", "-4", "route", "show", "table", "all")
	if err != nil {
		return front, back, err
	}
	for try := range 4096 {
		n := (os.Getpid()*16 + number*2 + try*2) % (1 << 15)
		pair := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(128 + n>>8), byte(n), 0}), 23)
		if overlaps(pair, taken) || strings.Contains(routes, fmt.Sprintf("10.%d.%d.", 128+n>>8, byte(n))) {
			continue
		}
		b := pair.Addr().As4()
		b[2]++
		return netip.PrefixFrom(pair.Addr(), 24), netip.PrefixFrom(netip.AddrFrom4(b), 24), nil
	}
	return front, back, errors.New("every network that was tried is in use")
}

func overlaps(p netip.Prefix, taken []net.Addr) bool {
	for _, a := range taken {
		if other, err := netip.ParsePrefix(a.String()); err == nil && p.Overlaps(other) {
			return true
		}
	}
	return false
}

// removeLeftovers removes what tests left that were killed: their processes in namespaces, then those and the bridges.
func removeLeftovers() error {
	spaces, err := run("ip", "netns", "list")
	if err != nil {
		return err
	}
	for _, m := range ours.FindAllStringSubmatch(spaces, -1) {
		if alive(m[1]) {
			continue
		}
		pids, err := run("ip", "netns", "pids", m[0])
		if err != nil {
			continue // another test was faster
		}
		for pid := range strings.FieldsSeq(pids) {
			if n, err := strconv.Atoi(pid); err == nil {
				_ = syscall.Kill(n, syscall.SIGKILL)
			}
		}
		_, _ = run("ip", "netns", "del", m[0])
	}
	links, err := run("ip", "-o", "link", "show")
	if err != nil {
		return err
	}
	for _, m := range ours.FindAllStringSubmatch(links, -1) {
		if !alive(m[1]) {
			_, _ = run("ip", "link", "del", m[0])
		}
	}
	return nil
}

// alive reports whether there is a process with this ID.
func alive(pid string) bool {
	n, err := strconv.Atoi(pid)
	return err != nil || !errors.Is(syscall.Kill(n, 0), syscall.ESRCH)
}
