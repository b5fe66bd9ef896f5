//go:build linux

package integration

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// straced attaches strace to the node's process, and returns what detaches it. Killing a program does not
// test whether it called fsync, since what was written stays in the kernel; looking at its system calls does.
func straced(t *testing.T, n *node, args ...string) (detach func()) {
	t.Helper()
	path, err := exec.LookPath("strace")
	if err != nil {
		t.Fatal("strace is missing: install it with \"make deps\" or \"apt-get install strace\"")
	}
	cmd := exec.Command(path, append(args, "-f", "-p", strconv.Itoa(n.cmd.Process.Pid))...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	attached := make(chan bool, 1)
	go func() {
		in := bufio.NewScanner(stderr)
		for in.Scan() {
			switch line := in.Text(); {
			case strings.Contains(line, "attached"):
				select {
				case attached <- true:
				default:
				}
			case strings.Contains(line, "Operation not permitted"):
				t.Errorf("strace may not attach: %s: run as root, or set kernel.yama.ptrace_scope to 0", line)
			}
		}
		select {
		case attached <- false:
		default:
		}
	}()
	if !<-attached {
		t.Fatal("strace ended at once")
	}
	detached := false
	detach = func() {
		if !detached {
			detached = true
			_ = cmd.Process.Signal(syscall.SIGINT)
			_ = cmd.Wait()
		}
	}
	t.Cleanup(detach)
	return detach
}

// systemCall is one call in a log of strace. Lines are in the order in which calls begin and end.
type systemCall struct {
	name, text string
	began, end int // lines; end is 0 if it is not in the log
}

var (
	straceLine    = regexp.MustCompile(`^(\d+) +(\w+)\((.*)$`)
	straceResumed = regexp.MustCompile(`^(\d+) +<\.\.\. (\w+) resumed>(.*)$`)
)

func parseStrace(t *testing.T, file string) (calls []*systemCall) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	open := make(map[string]*systemCall) // by thread
	number := 0
	for line := range strings.Lines(string(data)) {
		number++
		line = strings.TrimSuffix(line, "\n")
		if m := straceLine.FindStringSubmatch(line); m != nil {
			c := &systemCall{name: m[2], text: m[3], began: number}
			if strings.Contains(m[3], "<unfinished ...>") {
				open[m[1]] = c
			} else {
				c.end = number
			}
			calls = append(calls, c)
		} else if m := straceResumed.FindStringSubmatch(line); m != nil && open[m[1]] != nil {
			open[m[1]].end = number
			open[m[1]].text += m[3]
			delete(open, m[1])
		}
	}
	return calls
}

// I1: every 202 that names fsync follows an fdatasync of the store which began after the message was written there
// and ended well.
func TestI1_FsyncBeforeTheAnswer(t *testing.T) {
	n := newNode(t)
	n.start(atLeastOnce("broker embedded", "delivery at_least_once"))
	n.post("/pay/01", "text/plain", "the file is there before strace comes")
	log := filepath.Join(t.TempDir(), "strace")
	detach := straced(t, n, "-s", "65536", "-o", log, "-e", "trace=pwrite64,fdatasync,fsync,msync,write,writev,sendto")
	var mids []string
	for i := range 20 {
		a := n.post("/pay/"+fmt.Sprintf("%02d", i%3), "text/plain", fmt.Sprintf("payment %d", i))
		if a.status != http.StatusAccepted || a.fields["durability"] != "fsync" {
			t.Fatalf("answer: %d %s", a.status, a.text)
		}
		mids = append(mids, a.fields["mid"].(string))
	}
	detach()
	calls := parseStrace(t, log)
	for _, mid := range mids {
		stored, synced, answered := 0, 0, 0
		for _, c := range calls {
			switch {
			case c.name == "pwrite64" && stored == 0 && strings.Contains(c.text, mid):
				stored = c.end
			case c.name == "fdatasync" && stored > 0 && synced == 0 && c.began > stored && strings.Contains(c.text, "= 0"):
				synced = c.end
			case c.name == "write" && answered == 0 && strings.Contains(c.text, "202 Accepted") && strings.Contains(c.text, mid):
				answered = c.began
			}
		}
		if stored == 0 || synced == 0 || answered == 0 || answered < synced {
			t.Errorf("message %s: written at line %d, fdatasync ended at line %d, 202 began at line %d of the log", mid, stored, synced, answered)
		}
	}
	t.Logf("%d answers, each after its fdatasync, in %d system calls", len(mids), len(calls))
}

// I1: when the disk fails, no post is accepted, and none is until the store was opened again: after a failed fsync
// nobody knows what is on the disk.
func TestI1_DiskFails(t *testing.T) {
	n := newNode(t)
	config := atLeastOnce("broker embedded", "delivery at_least_once")
	n.start(config)
	if a := n.post("/pay/01", "text/plain", "before"); a.status != http.StatusAccepted {
		t.Fatalf("answer: %d %s", a.status, a.text)
	}
	detach := straced(t, n, "-o", os.DevNull, "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=1")
	if a := n.post("/pay/01", "text/plain", "doubtful"); a.status != http.StatusServiceUnavailable || a.fields["stored_unconfirmed"] != true {
		t.Errorf("answer while the disk fails: %d %s", a.status, a.text)
	}
	detach()
	for range 3 {
		if a := n.post("/pay/01", "text/plain", "refused"); a.status != http.StatusServiceUnavailable || a.fields["stored_unconfirmed"] != nil {
			t.Errorf("answer after the disk failed: %d %s", a.status, a.text)
		}
	}
	n.stop()
	n.start(config)
	if a := n.post("/pay/01", "text/plain", "after"); a.status != http.StatusAccepted {
		t.Fatalf("answer: %d %s", a.status, a.text)
	}
	s := connectJSON(t, n.tcp, "01")
	s.awaitLine("before")
}

// I9: a full disk refuses posts, with what to do; what was accepted is delivered, and when there is room posts are accepted
// again, without a restart.
func TestI9_DiskFull(t *testing.T) {
	n := newNode(t)
	n.start(atLeastOnce("broker embedded", "delivery at_least_once"))
	if a := n.post("/pay/01", "text/plain", "before"); a.status != http.StatusAccepted {
		t.Fatalf("answer: %d %s", a.status, a.text)
	}
	detach := straced(t, n, "-o", os.DevNull, "-e", "trace=pwrite64", "-e", "inject=pwrite64:error=ENOSPC")
	for range 3 {
		a := n.post("/pay/01", "text/plain", "refused")
		if a.status != http.StatusServiceUnavailable || a.fields["error"] != "broker_unavailable" || a.fields["stored_unconfirmed"] != nil {
			t.Errorf("answer on a full disk: %d %s", a.status, a.text)
		}
	}
	detach()
	if a := n.post("/pay/01", "text/plain", "after"); a.status != http.StatusAccepted {
		t.Fatalf("answer when there is room: %d %s", a.status, a.text)
	}
	s := connectJSON(t, n.tcp, "01")
	s.awaitLine("before")
	s.awaitLine("after")
	full := len(n.log.lines("the disk is full; publishers are answered 503 until there is room"))
	if again := len(n.log.lines("the disk has room again")); full != 1 || again != 1 {
		t.Errorf("logged %d times that the disk is full, and %d times that it has room again; want once each", full, again)
	}
}
