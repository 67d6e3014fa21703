package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/native"
)

// version is set by the linker: -X main.version=v1.2.3. Without it the module
// version of the build stands in.
var version = ""

// buildFacts says which nativebench this is.
func buildFacts() results.Tool {
	t := results.Tool{Version: version, GoVersion: runtime.Version()}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return t
	}
	if t.Version == "" {
		t.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			t.Commit = s.Value
		case "vcs.modified":
			t.Modified = s.Value == "true"
		case "CGO_ENABLED":
			t.CGO = s.Value == "1"
		}
	}
	return t
}

func versionLine() string {
	t := buildFacts()
	text := t.Version
	if text == "" {
		text = "(unversioned)"
	}
	if t.Commit != "" {
		text += fmt.Sprintf(" commit %.12s", t.Commit)
	}
	if t.Modified {
		text += " (modified)"
	}
	cgo := "off"
	if t.CGO {
		cgo = "on"
	}
	text += fmt.Sprintf(", %s %s/%s, cgo %s", t.GoVersion, runtime.GOOS, runtime.GOARCH, cgo)
	engine := fmt.Sprintf("sources %.12s", native.SourceHash)
	if b, err := native.Describe(""); err == nil {
		engine = fmt.Sprintf("%s, %s", b.Engine, engine)
	} else if t.CGO {
		engine += ", no usable library (nativebench doctor says why)"
	} else {
		engine += ", left out of this build"
	}
	return text + "\nengine: " + engine
}
