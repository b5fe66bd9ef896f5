package relay_test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
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
	bbolt     = "go.etcd.io/bbolt"
	rapid     = "pgregory.net/rapid"
	brokerPkg = module + "/broker"
)

// room is what one package may import, and why no more.
type room struct {
	allowed []string
	reason  string
}

// rooms is the dependency table of docs/architecture.md. Imports point one way: down this list.
var rooms = map[string]room{
	"":                    {[]string{module + "/caddyrelay", module + "/l4relay"}, "the root only registers the modules"},
	"cmd/caddy":           {[]string{caddy, caddyL4, module}, "the binary only puts modules together"},
	"l4relay":             {[]string{module + "/caddyrelay", caddy, caddyL4, xsys}, "caddy-l4's face knows sockets only through caddyrelay"},
	"caddyrelay":          {[]string{module + "/broker", module + "/internal", caddy, zap, prom, humanize, cobra}, "Caddy's face must not need caddy-l4, nor a broker's driver"},
	"broker/boltbroker":   {[]string{brokerPkg, bbolt}, "a broker knows the contract and its own driver: never the hub, Caddy, or another broker"},
	"broker/redisbroker":  {[]string{brokerPkg, goRedis}, "a broker knows the contract and its own driver: never the hub, Caddy, or another broker"},
	"broker/brokertest":   {[]string{brokerPkg, rapid}, "the suite knows the contract only, so that every broker can run it"},
	"broker":              {nil, "the vocabulary depends on nothing"},
	"internal/hub":        {[]string{brokerPkg, module + "/internal/wire"}, "the hub knows no Caddy, no HTTP and no driver"},
	"internal/wire":       {nil, "pure functions over bytes depend on nothing"},
	"internal/redistest":  {[]string{module + "/internal/freeport"}, "tests of every package may use it"},
	"internal/relaytest":  {nil, "tests of every package may use it"},
	"internal/model":      {nil, "a model stands by itself"},
	"internal/freeport":   {nil, "tests of every package may use it"},
	"integration":         {nil, "it has tests only"},
	"integration/cluster": {nil, "it has tests only"},
}

// exact names imports that are meant without what is below them.
var exact = []string{brokerPkg, module}

func TestImports(t *testing.T) {
	wrong, err := violations(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range wrong {
		t.Error(w)
	}
}

// violations returns what the packages of a module do against the table.
func violations(files fs.FS) (wrong []string, err error) {
	found := make(map[string]bool)
	err = fs.WalkDir(files, ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && file != "." || d.Name() == "node_modules" || file == "tools" || file == "bin") {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		dir := strings.TrimPrefix(path.Dir(file), ".")
		found[dir] = true
		text, err := fs.ReadFile(files, file)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, text, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, imp := range parsed.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				return err
			}
			if err := check(dir, name); err != nil {
				wrong = append(wrong, file+": "+err.Error())
			}
		}
		return nil
	})
	for dir := range rooms {
		if !found[dir] {
			wrong = append(wrong, fmt.Sprintf("the table has %q, which is not there any more", dir))
		}
	}
	return wrong, err
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

// So must the walk over the files: here in a module whose every room is in order but two.
func TestImportsReadsFiles(t *testing.T) {
	files := fstest.MapFS{
		"caddyrelay/a_test.go":       {Data: []byte("package caddyrelay\nimport _ " + strconv.Quote(goRedis))},
		"node_modules/x/x.go":        {Data: []byte("package x\nimport _ \"fmt\"")},
		"tools/lint/main.go":         {Data: []byte("package main\nimport _ \"fmt\"")},
		"internal/hub/sub/hidden.go": {Data: []byte("package sub\nimport _ \"fmt\"")},
		"internal/wire/planted.go":   {Data: []byte("package wire\nimport _ " + strconv.Quote(caddy))},
	}
	for dir := range rooms {
		files[path.Join(dir, "room.go")] = &fstest.MapFile{Data: []byte("package room\nimport _ \"fmt\"")}
	}
	delete(files, "l4relay/room.go")
	wrong, err := violations(files)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`internal/hub/sub/hidden.go: the package "internal/hub/sub" is not in the table`,
		"internal/wire/planted.go: imports " + caddy,
		`the table has "l4relay"`,
	}
	if !slices.EqualFunc(wrong, want, strings.HasPrefix) {
		t.Errorf("found %q, want %q", wrong, want)
	}
}
