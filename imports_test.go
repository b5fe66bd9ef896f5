package relay_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/caddyrelay/relay"

// What the rooms may import besides the standard library. A prefix stands for everything below it.
const (
	caddy     = "github.com/caddyserver/caddy/v2"
	caddyL4   = "github.com/mholt/caddy-l4"
	zap       = "go.uber.org/zap"
	xsys      = "golang.org/x/sys"
	cobra     = "github.com/spf13/cobra"
	goRedis   = "github.com/redis/go-redis/v9"
	prom      = "github.com/prometheus/client_golang"
	humanize  = "github.com/dustin/go-humanize"
	brokerPkg = module + "/broker"
)

// room is what one package may import, and why no more.
type room struct {
	allowed []string
	reason  string
}

// rooms is the dependency table of docs/architecture.md. Imports point one way: down this list.
var rooms = map[string]room{
	"":                   {[]string{module + "/caddyrelay", module + "/l4relay"}, "the root only registers the modules"},
	"cmd/caddy":          {[]string{caddy, caddyL4, module}, "the binary only puts modules together"},
	"l4relay":            {[]string{module + "/caddyrelay", caddy, caddyL4, xsys}, "caddy-l4's face knows sockets only through caddyrelay"},
	"caddyrelay":         {[]string{module + "/broker", module + "/internal", caddy, zap, prom, humanize, cobra}, "Caddy's face must not need caddy-l4, nor a broker's driver"},
	"broker/boltbroker":  {[]string{brokerPkg}, "a broker knows the contract and its own driver: never the hub, Caddy, or another broker"},
	"broker/redisbroker": {[]string{brokerPkg, goRedis}, "a broker knows the contract and its own driver: never the hub, Caddy, or another broker"},
	"broker/brokertest":  {[]string{brokerPkg}, "the suite knows the contract only, so that every broker can run it"},
	"broker":             {nil, "the vocabulary depends on nothing"},
	"internal/hub":       {[]string{brokerPkg, module + "/internal/wire"}, "the hub knows no Caddy, no HTTP and no driver"},
	"internal/wire":      {nil, "pure functions over bytes depend on nothing"},
	"internal/redistest": {nil, "tests of every package may use it"},
	"integration":        {nil, "it has tests only"},
}

// exact names imports that are meant without what is below them.
var exact = []string{brokerPkg, module}

func TestImports(t *testing.T) {
	found := make(map[string]bool)
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && file != "." || d.Name() == "node_modules" || file == "tools" || file == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		dir := path.Dir(filepath.ToSlash(file))
		if dir == "." {
			dir = ""
		}
		found[dir] = true
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range parsed.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			if err := check(dir, name); err != nil {
				t.Errorf("%s: %v", file, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir := range rooms {
		if !found[dir] {
			t.Errorf("the table has %q, which is not there any more", dir)
		}
	}
}

// check says why the package in dir may not import name.
func check(dir, name string) error {
	r, known := rooms[dir]
	if !known {
		return fmt.Errorf("the package %q is not in the table: decide what it may import, here and in docs/architecture.md", dir)
	}
	if first, _, _ := strings.Cut(name, "/"); !strings.Contains(first, ".") {
		return nil // the standard library
	}
	for _, a := range r.allowed {
		if name == a || strings.HasPrefix(name, a+"/") && (!slices.Contains(exact, a) || dir == "caddyrelay") {
			return nil
		}
	}
	return fmt.Errorf("imports %s: %s", name, r.reason)
}

// The table must be able to find what it is for.
func TestImportsFindsViolations(t *testing.T) {
	for _, c := range []struct {
		dir, name string
		ok        bool
	}{
		{"internal/hub", caddy, false},
		{"internal/hub", "net/http", true},
		{"internal/wire", brokerPkg, false},
		{"broker", goRedis, false},
		{"broker/redisbroker", goRedis, true},
		{"broker/redisbroker", module + "/internal/hub", false},
		{"broker/redisbroker", module + "/broker/boltbroker", false},
		{"caddyrelay", module + "/broker/boltbroker", true},
		{"caddyrelay", goRedis, false},
		{"caddyrelay", caddyL4 + "/layer4", false},
		{"l4relay", module + "/internal/hub", false},
		{"somewhere/new", "fmt", false},
	} {
		if err := check(c.dir, c.name); (err == nil) != c.ok {
			t.Errorf("%s imports %s: %v", c.dir, c.name, err)
		}
	}
}
