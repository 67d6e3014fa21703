package main

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/timeline/timelinetest"
)

// isTraceOf holds a packed trace against the run directory: it has each request,
// all tokens, and counters, those of more too; and Perfetto's trace processor, if it is there,
// takes it without an error and sees the same.
func isTraceOf(t *testing.T, file string, run *results.Run, more ...string) {
	t.Helper()
	text := gunzip(t, file)
	var trace struct {
		TraceEvents []struct {
			Ph, Name, Cat string
			Args          map[string]any
		}
	}
	if err := json.Unmarshal(text, &trace); err != nil {
		t.Fatal(err)
	}
	wanted, tokens := map[string]bool{}, 0
	for _, r := range run.Records {
		wanted[fmt.Sprintf("%s#%d at %d: %d", r.Cell, r.Index, r.Start, r.OutputTokens)] = true
		if n := len(r.Marks); n > 0 {
			tokens += int(r.Marks[n-1].N)
		}
	}
	requests, slices, got := 0, 0, 0.0
	counters := map[string]bool{}
	for _, e := range trace.TraceEvents {
		switch {
		case e.Cat == "request":
			requests++
			if key := fmt.Sprintf("%s at %s: %v", e.Args["request"], e.Args["start_ns"], e.Args["output_tokens"]); !wanted[key] {
				t.Errorf("the run has no request %s", key)
			}
		case e.Cat == "token" || e.Cat == "event":
			got += e.Args["n"].(float64)
		case e.Ph == "C":
			counters[e.Name] = true
		}
		if e.Ph == "B" || e.Ph == "i" {
			slices++
		}
	}
	if requests != len(run.Records) || requests == 0 || int(got) != tokens || tokens == 0 {
		t.Errorf("%d requests of %d, %g tokens of %d", requests, len(run.Records), got, tokens)
	}
	for _, name := range append(more, "requests in flight", "context of requests in flight", "resident memory (RSS)", "memory available") {
		if !counters[name] {
			t.Errorf("no counter %q among %v", name, counters)
		}
	}
	if os.Getenv("NATIVEBENCH_TRACE_PROCESSOR") == "" {
		return // TestTraceCommand tells
	}
	answers := timelinetest.Sound(t, file,
		"select count(*) from slice",
		"select count(*), count(distinct extract_arg(arg_set_id, 'args.request')) from slice where category = 'request'",
		"select sum(extract_arg(arg_set_id, 'args.n')) from slice where category in ('token', 'event')",
		"select count(distinct name) from counter_track",
		"select count(*) from slice where category = 'phase' and name = 'decode'",
	)
	if got, want := fmt.Sprint(answers[:4]), fmt.Sprintf("[[[%d]] [[%d %d]] [[%d]] [[%d]]]", slices, requests, requests, tokens, len(counters)); got != want {
		t.Errorf("the trace processor sees %s, want %s", got, want)
	}
}

func TestTraceCommand(t *testing.T) {
	dir := t.TempDir()
	out, plain, packed := filepath.Join(dir, "run"), filepath.Join(dir, "out.json"), filepath.Join(dir, "out.json.gz")
	code, stdout, stderr := invoke(t, small("fake,twin", out, "--mode", "stream", "--concurrency", "1,3", "--trace", packed)...)
	if code != exitOK || !strings.Contains(stderr, "trace: "+packed+" (24 requests, 0 of them failed; ") || stdout == "" {
		t.Fatalf("status %d: %s", code, stderr)
	}
	run := readRun(t, out)
	isTraceOf(t, packed, run)
	if code, stdout, stderr := invoke(t, "trace", out, "-o", plain); code != exitOK || stdout != "" || !strings.HasPrefix(stderr, "trace: "+plain) {
		t.Fatalf("status %d: %s%s", code, stdout, stderr)
	}
	text, err := os.ReadFile(plain)
	if err != nil {
		t.Fatal(err)
	}
	if unpacked := gunzip(t, packed); string(unpacked) != string(text) {
		t.Errorf("compressed and plain differ: %d and %d bytes", len(unpacked), len(text))
	}
	timelinetest.Sound(t, plain)
}

func TestTraceRefuses(t *testing.T) {
	dir := writeRun(t)
	there := filepath.Join(t.TempDir(), "there.json")
	if err := os.WriteFile(there, []byte("as it was"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"trace"}, exitUsage, "trace: no run directory was given; try: nativebench trace"},
		{[]string{"trace", dir}, exitUsage, "no file was given; add -o out.json"},
		{[]string{"trace", dir, dir, "-o", there}, exitUsage, "2 run directories were given; a trace is of one"},
		{[]string{"trace", filepath.Join(dir, "nowhere"), "-o", there}, exitError, "there is no such directory"},
		{[]string{"trace", dir, "-o", dir}, exitUsage, "it is a directory; name a file"},
		{[]string{"trace", dir, "-o", "/dev/stdout"}, exitUsage, "is no plain file"},
		{[]string{"trace", dir, "-o", filepath.Join(dir, "requests.jsonl")}, exitUsage, "it is a part of a run and would be lost"},
		{[]string{"trace", dir, "-o", filepath.Join(dir, "no", "out.json")}, exitUsage, "there is no directory"},
		{[]string{"trace", dir, "-o", filepath.Join(there, "out.json")}, exitUsage, "is a file, not a directory"},
		{[]string{"trace", dir, "-o", "/proc/out.json"}, exitUsage, "cannot write into /proc"},
		{small("fake", filepath.Join(dir, "new"), "--trace", ""), exitUsage, "--trace needs the name of a file"},
		{small("fake", filepath.Join(dir, "new"), "--trace", filepath.Join(dir, "no", "out.json")), exitUsage, "--trace " + filepath.Join(dir, "no", "out.json") + ": there is no directory"},
	} {
		code, out, errs := invoke(t, c.args...)
		if code != c.code || !strings.Contains(errs, c.want) || out != "" || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit %d, %q, %q", c.args, code, out, errs)
		}
	}
	if b, err := os.ReadFile(there); err != nil || string(b) != "as it was" {
		t.Errorf("%v: %s", err, b)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("a run was made")
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(there), ".trace-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("%v: %q is left", err, left)
	}
}

func gunzip(t *testing.T, file string) []byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
