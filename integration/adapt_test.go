//go:build unix

package integration

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

const separator = "----------\n"

// TestAdaptGolden holds the JSON that Caddyfiles come to, and the errors that users read, against the
// files in testdata: a Caddyfile, a line of dashes, and what is expected of it. Files whose name
// begins with "error" expect an error, from the Caddyfile or from provisioning.
//
// After a change that is meant: go test ./integration -run Golden -update
func TestAdaptGolden(t *testing.T) {
	t.Setenv("RELAY_TEST_SECRET", "s3cret")
	files, err := filepath.Glob("testdata/*.caddyfiletest")
	if err != nil || len(files) < 10 {
		t.Fatalf("found %d golden files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			caddyfile, want, _ := strings.Cut(string(content), separator)
			got := outcome(caddyfile)
			if isError := !strings.HasPrefix(got, "{"); isError != strings.HasPrefix(filepath.Base(file), "error") {
				t.Fatalf("the outcome does not fit the file's name:\n%s", got)
			}
			if *update {
				if err := os.WriteFile(file, []byte(caddyfile+separator+got), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// outcome returns the indented JSON of a Caddyfile that can be loaded, or the error.
func outcome(caddyfile string) string {
	config, err := adapt(caddyfile)
	if err == nil {
		err = validate(config)
	}
	if err != nil {
		return err.Error() + "\n"
	}
	var out bytes.Buffer
	if err := json.Indent(&out, config, "", "\t"); err != nil {
		return err.Error() + "\n"
	}
	return out.String() + "\n"
}

// validate does what "caddy validate" does.
func validate(config []byte) error {
	var c *caddy.Config
	if err := caddy.StrictUnmarshalJSON(config, &c); err != nil {
		return err
	}
	return caddy.Validate(c)
}
