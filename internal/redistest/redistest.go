// Package redistest runs real redis-servers for tests: each on a free loopback port, with a directory
// of its own, ended with the test.
package redistest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caddyrelay/relay/internal/freeport"
)

// patience bounds every wait for the server. It is long because a loaded machine is slow, and costs
// nothing when all is well.
const patience = 20 * time.Second

// Server is one redis-server.
type Server struct {
	t    testing.TB
	addr string
	dir  string
	args []string

	mu  sync.Mutex
	cmd *exec.Cmd // nil while it does not run
	end chan struct{}
	log bytes.Buffer
}

// Reserve returns a server that does not run yet; [Server.Restart] starts it. Further arguments are
// redis-server's, such as "--requirepass", "secret"; {port} in them stands for the port. Without
// any, nothing is persisted. With "--bind" and an address the server is there instead of on loopback; it
// takes "--protected-mode", "no" then, too.
func Reserve(t testing.TB, args ...string) *Server {
	t.Helper()
	// Not t.TempDir: it holds the test's name, and the path of a socket must be short.
	dir, err := os.MkdirTemp("", "redis")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, addr: addrFor(t, args), dir: dir, args: args}
	t.Cleanup(func() {
		s.Kill()
		_ = os.RemoveAll(dir)
	})
	return s
}

// Start returns a server that answers.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	s := Reserve(t, args...)
	// Another program may have taken the port since it was found free.
	for try := 0; ; try++ {
		err := s.start()
		if err == nil {
			return s
		}
		if try == 3 {
			t.Fatal(err)
		}
		s.addr = addrFor(t, args)
	}
}

// addrFor returns an address for a server with these arguments.
func addrFor(t testing.TB, args []string) string {
	_, port, _ := net.SplitHostPort(freeport.Addr(t))
	return net.JoinHostPort(hostOf(args), port)
}

// hostOf returns the address that the arguments bind the server to.
func hostOf(args []string) string {
	for i := range len(args) - 1 {
		if args[i] == "--bind" {
			return args[i+1]
		}
	}
	return "127.0.0.1"
}

// Addr returns host:port.
func (s *Server) Addr() string { return s.addr }

// Host returns the address without the port.
func (s *Server) Host() string { return hostOf(s.args) }

// Port returns the port.
func (s *Server) Port() string {
	_, port, _ := net.SplitHostPort(s.addr)
	return port
}

// Dir returns the server's directory, which outlives restarts.
func (s *Server) Dir() string { return s.dir }

// Socket returns the path of the server's unix socket.
func (s *Server) Socket() string { return filepath.Join(s.dir, "s") }

// Restart starts the server again, on the same port and with the same files.
func (s *Server) Restart() {
	s.t.Helper()
	// A client that went on trying to connect can hold the port for a moment.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(patience); ; <-tick.C {
		err := s.start()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || !strings.Contains(err.Error(), "Address already in use") {
			s.t.Fatal(err)
		}
	}
}

func (s *Server) start() error {
	binary := os.Getenv("REDIS_SERVER")
	if binary == "" {
		var err error
		if binary, err = exec.LookPath("redis-server"); err != nil {
			s.t.Fatal("redis-server not found: run \"make deps\", or set REDIS_SERVER to its path")
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd != nil {
		return errors.New("redis-server runs already")
	}
	// What a server that was killed left is not the sign of one that runs.
	if err := os.Remove(s.Socket()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	args := []string{"--bind", s.Host(), "--port", s.Port(), "--dir", s.dir, "--unixsocket", s.Socket(),
		"--save", "", "--appendonly", "no", "--daemonize", "no"}
	for _, arg := range s.args {
		args = append(args, strings.ReplaceAll(arg, "{port}", s.Port()))
	}
	cmd := exec.Command(binary, args...)
	s.log.Reset()
	cmd.Stdout, cmd.Stderr = &s.log, &s.log
	if err := cmd.Start(); err != nil {
		return err
	}
	end := make(chan struct{})
	go func() { _ = cmd.Wait(); close(end) }()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !s.answers() {
		select {
		case <-end:
			return fmt.Errorf("redis-server ended at once:\n%s", s.log.String())
		case <-deadline:
			_ = cmd.Process.Kill()
			<-end
			return fmt.Errorf("redis-server does not answer:\n%s", s.log.String())
		case <-tick.C:
		}
	}
	s.cmd, s.end = cmd, end
	return nil
}

// answers reports whether the server takes commands; one that wants a password does. It asks by the
// socket in the server's own directory: on the port, another server could answer. Redis opens
// the socket after the port, so the port is open then.
func (s *Server) answers() bool {
	conn, err := net.DialTimeout("unix", s.Socket(), time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Second))
	if _, err := conn.Write([]byte("PING\r\n")); err != nil {
		return false
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return err == nil && (strings.HasPrefix(line, "+PONG") || strings.HasPrefix(line, "-NOAUTH"))
}

// Kill ends the server with SIGKILL, if it runs.
func (s *Server) Kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Kill()
	<-s.end
	s.cmd = nil
}

// Stop ends the server with SIGTERM, if it runs, and with SIGKILL if that is not enough.
func (s *Server) Stop() {
	s.mu.Lock()
	cmd, end := s.cmd, s.end
	s.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-end:
	case <-time.After(patience):
		s.t.Error("redis-server did not end when asked to")
	}
	s.Kill()
}

// Pause stops the process without ending its connections; Resume lets it go on.
func (s *Server) Pause() { s.t.Helper(); s.control("STOP") }

// Resume undoes Pause.
func (s *Server) Resume() { s.t.Helper(); s.control("CONT") }

// control runs kill, since package syscall does not have these signals on Windows, where the tests
// that use this package must at least compile.
func (s *Server) control(signal string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cmd == nil {
		s.t.Fatal("redis-server does not run")
	}
	out, err := exec.Command("kill", "-"+signal, strconv.Itoa(s.cmd.Process.Pid)).CombinedOutput()
	if err != nil {
		s.t.Fatalf("kill -%s: %v\n%s", signal, err, out)
	}
}

// CLI runs redis-cli, a client that is not ours, and returns what it printed.
func (s *Server) CLI(args ...string) string {
	s.t.Helper()
	out, err := exec.Command("redis-cli", append([]string{"-h", s.Host(), "-p", s.Port()}, args...)...).CombinedOutput()
	if err != nil {
		s.t.Fatalf("redis-cli %s: %v\n%s (if it is missing, run \"make deps\")", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}
