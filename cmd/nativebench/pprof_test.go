package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Every process of a run leaves a profile that go tool pprof can read.
func TestPprofFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "profiles")
	out := filepath.Join(t.TempDir(), "run")
	if code, _, stderr := invoke(t, small("fake", out, "--mode", "stream", "--pprof", dir)...); code != exitOK || !strings.Contains(stderr, "(--pprof)") {
		t.Fatalf("status %d: %s", code, stderr)
	}
	for _, name := range []string{"compare", "gpt2.chat.stream.c1.fake.r0.a1"} {
		for kind, want := range map[string]string{"cpu": "Type: cpu", "heap": "Type: inuse_space"} {
			path := filepath.Join(dir, name+"."+kind+".pprof")
			text, err := exec.Command("go", "tool", "pprof", "-top", path).CombinedOutput()
			if err != nil || !strings.Contains(string(text), want) {
				t.Errorf("%s: %v: %s", path, err, text)
			}
		}
	}
}

// At an address, the process of the cell that runs answers.
func TestPprofAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	gate := filepath.Join(t.TempDir(), "gate")
	cmd := program(t, []string{fakeGate + "=" + gate}, small("fake", filepath.Join(t.TempDir(), "run"), "--mode", "stream", "--pprof", address)...)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var body []byte
	for deadline := time.Now().Add(time.Minute); len(body) == 0 && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if resp, err := http.Get("http://" + address + "/debug/pprof/cmdline"); err == nil {
			body, _ = io.ReadAll(resp.Body)
			resp.Body.Close()
		}
	}
	if !strings.HasSuffix(string(body), "\x00cell") {
		t.Errorf("at the address answers %q, not the process of a cell", body)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, said.String())
	}
}

func TestPprofRefusals(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for where, want := range map[string]string{
		file:                         "give a directory that can be written, or an address such as",
		l.Addr().String():            "nothing can listen there",
		"http://127.0.0.1:6060":      "a URL stands where a path should",
		filepath.Join(file, "below"): "not a directory",
	} {
		out := filepath.Join(t.TempDir(), "run")
		code, _, stderr := invoke(t, small("fake", out, "--pprof", where)...)
		if code != exitUsage || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: status %d, want one line with %q: %s", where, code, want, stderr)
		}
	}
	for where, want := range map[string]bool{":6060": true, "localhost:6060": true, "[::1]:6060": true, "dir": false, "a/b:1": false, "/tmp/x": false, "": false} {
		if got := isAddress(where); got != want {
			t.Errorf("isAddress(%q) is %v", where, got)
		}
	}
	if text := fmt.Sprint(pprofNote(":1"), pprofNote("dir"), pprofNote("")); strings.Count(text, "--pprof") != 2 {
		t.Errorf("notes: %s", text)
	}
}
