package redisbroker

import (
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"strings"
)

//go:embed scripts/*.lua
var scriptFiles embed.FS

// script is one that the server runs in one step.
type script struct {
	name, text, sha string
}

// The scripts, each with the files that it builds on.
var (
	scriptAppend   = load("push", "append")
	scriptAttach   = load("page", "attach")
	scriptHold     = load("hold")
	scriptLeave    = load("leave")
	scriptPresence = load("presence")
	scriptRead     = load("page", "read")
	scriptSettle   = load("settle")
	scriptScan     = load("scan")
	scriptOwner    = load("owner")
	scriptContent  = load("content")
	scriptLookup   = load("deadletter", "lookup")
	scriptDead     = load("deadletter", "dead")
	scriptGet      = load("deadletter", "get")
	scriptResend   = load("deadletter", "push", "resend")
	scriptDrop     = load("deadletter", "drop")
	scriptUsage    = load("usage")
	scriptRef      = load("ref")
	scriptLease    = load("lease")
)

func load(files ...string) *script {
	var text strings.Builder
	for _, file := range append([]string{"common"}, files...) {
		lua, err := scriptFiles.ReadFile("scripts/" + file + ".lua")
		if err != nil { // a file that is missing is missing in the binary: every test sees it
			panic(err)
		}
		text.Write(lua)
		text.WriteByte('\n')
	}
	return newScript(files[len(files)-1], text.String())
}

func newScript(name, text string) *script {
	sum := sha1.Sum([]byte(text)) // Redis's name for it
	return &script{name: name, text: text, sha: hex.EncodeToString(sum[:])}
}

// The scripts with which messages move in; see import.go.
var (
	scriptImport     = load("push", "import")
	scriptImportRead = load("importread")
	scriptBooks      = load("books")
)
