package results

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// wholeRun writes a run of one done and one failed cell and returns its
// directory, closed.
func wholeRun(t *testing.T) string {
	t.Helper()
	m := sampleManifest()
	w := create(t, m)
	a, b := m.Cells[0].ID, m.Cells[1].ID
	must(t, w.Event(CellEvent{Cell: a, Attempt: 1, State: CellStarted, T: 1}))
	for i := -1; i < 2; i++ {
		must(t, w.Request(sampleRecord(a, 1, i)))
		must(t, w.Sample(&Sample{T: int64(i), Cell: a, Subject: "host", Values: map[string]float64{"x": float64(i)}}))
	}
	must(t, w.Event(CellEvent{Cell: a, Attempt: 1, State: CellDone, T: 2}))
	must(t, w.Event(CellEvent{Cell: b, Attempt: 1, State: CellStarted, T: 3}))
	must(t, w.Request(failedRecord(b, 1, 0)))
	must(t, w.Event(CellEvent{Cell: b, Attempt: 1, State: CellFailed, T: 4, Class: "crash", Reason: "killed by signal 9", Stderr: []string{"abort"}}))
	must(t, w.Close())
	return w.Dir()
}

func edit(t *testing.T, dir, name string, change func([]byte) []byte) {
	t.Helper()
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	must(t, err)
	must(t, os.WriteFile(path, change(b), 0o644))
}

func TestDamageIsToldAndTheRestIsKept(t *testing.T) {
	for _, tt := range []struct {
		name    string
		file    string
		change  func([]byte) []byte
		damage  []string // parts of the one line of damage; none: no damage
		records int
	}{
		{"whole", requestsFile, func(b []byte) []byte { return b }, nil, 4},
		{"last line cut", requestsFile, func(b []byte) []byte { return b[:len(b)-30] }, []string{"requests.jsonl", "(4)", "cut off"}, 3},
		{"only the newline cut", requestsFile, func(b []byte) []byte { return b[:len(b)-1] }, nil, 4},
		{"zeros at the end", requestsFile, func(b []byte) []byte { return append(b, make([]byte, 4096)...) }, []string{"(5)", "cut off after 4096 bytes"}, 4},
		{"garbage in the middle", requestsFile, func(b []byte) []byte {
			lines := bytes.SplitAfter(b, []byte("\n"))
			lines[1] = []byte("\x00\xff{{{\n")
			return bytes.Join(lines, nil)
		}, []string{"requests.jsonl:2:", "not a request", "left out"}, 3},
		{"a line of another kind", requestsFile, func(b []byte) []byte { return append([]byte("{\"hello\":1}\n"), b...) }, []string{"requests.jsonl:1:", "no cell is named"}, 4},
		{"empty lines", requestsFile, func(b []byte) []byte { return append([]byte("\n \n"), b...) }, nil, 4},
		{"a request twice", requestsFile, func(b []byte) []byte { return append(b, b...) }, []string{"3 requests are there twice"}, 5}, // the warm-up may be
		{"a cell that nobody planned", requestsFile, func(b []byte) []byte { return append(b, []byte(`{"cell":"ghost","attempt":1}`+"\n")...) }, []string{"ghost", "1 lines are not used"}, 5},
		{"event of an unknown state", cellsFile, func(b []byte) []byte {
			return append([]byte(`{"cell":"x","attempt":1,"state":"dancing"}`+"\n"), b...)
		}, []string{"cells.jsonl:1:", "dancing"}, 4},
		{"attempt 0", cellsFile, func(b []byte) []byte { return append([]byte(`{"cell":"x","state":"done"}`+"\n"), b...) }, []string{"cells.jsonl:1:", "attempt 0"}, 4},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := wholeRun(t)
			edit(t, dir, tt.file, tt.change)
			run := read(t, dir)
			if len(run.Records) != tt.records {
				t.Errorf("%d records, want %d", len(run.Records), tt.records)
			}
			if tt.damage == nil {
				if len(run.Damage) > 0 {
					t.Errorf("damage %q", run.Damage)
				}
				return
			}
			if len(run.Damage) != 1 {
				t.Fatalf("damage %q, want one line", run.Damage)
			}
			for _, part := range tt.damage {
				if !strings.Contains(run.Damage[0], part) {
					t.Errorf("damage %q does not say %q", run.Damage[0], part)
				}
			}
		})
	}
}

func TestManyBadLinesAreCountedNotListed(t *testing.T) {
	dir := wholeRun(t)
	edit(t, dir, requestsFile, func(b []byte) []byte { return append(bytes.Repeat([]byte("?\n"), 1000), b...) })
	run := read(t, dir)
	if len(run.Records) != 4 || len(run.Damage) != maxDamage+1 || !strings.Contains(run.Damage[maxDamage], "980 further lines") {
		t.Errorf("%d records, damage %q", len(run.Records), run.Damage)
	}
}

func TestALineTooLongIsLeftOut(t *testing.T) {
	dir := wholeRun(t)
	edit(t, dir, requestsFile, func(b []byte) []byte {
		long := append(bytes.Repeat([]byte("x"), MaxLine+1), '\n')
		return append(long, b...)
	})
	run := read(t, dir)
	if len(run.Records) != 4 || len(run.Damage) != 1 || !strings.Contains(run.Damage[0], "requests.jsonl:1: a line of") {
		t.Errorf("%d records, damage %q", len(run.Records), run.Damage)
	}
	w := create(t, sampleManifest())
	r := sampleRecord("c", 1, 0)
	r.Text = strings.Repeat("x", MaxLine)
	wantError(t, w.Request(r), "request 0 of cell c", "more than")
	must(t, w.Request(sampleRecord("c", 1, 1))) // it harmed nothing
}

func TestMissingFilesAreTold(t *testing.T) {
	dir := wholeRun(t)
	for _, name := range []string{cellsFile, requestsFile, telemetryFile} {
		must(t, os.Remove(filepath.Join(dir, name)))
	}
	run := read(t, dir)
	if got, want := strings.Join(run.Damage, "; "), "cells.jsonl is missing; requests.jsonl is missing; telemetry.jsonl is missing"; got != want {
		t.Errorf("damage %q, want %q", got, want)
	}
	for _, c := range run.Cells() {
		if c.State != CellNotRun {
			t.Errorf("cell %s: %s", c.ID, c.State)
		}
	}
}

func TestWhatIsNoRunIsRefused(t *testing.T) {
	change := func(old, new string) func([]byte) []byte {
		return func(b []byte) []byte { return bytes.Replace(b, []byte(old), []byte(new), 1) }
	}
	for _, tt := range []struct {
		name   string
		change func([]byte) []byte
		want   string
	}{
		{"newer schema", change(`"schema": 1`, `"schema": 7`), `schema 7, written by nativebench "v1.0.0"; this nativebench reads schemas up to 1`},
		{"newer schema of another shape", func([]byte) []byte {
			return []byte(`{"schema":2,"cells":"in a database","nativebench":{"version":"v9"}}`)
		}, `schema 2, written by nativebench "v9"`},
		{"schema 0", change(`"schema": 1`, `"schema": 0`), "schema 0"},
		{"no schema", change(`"schema"`, `"scheme"`), `no "schema"`},
		{"not JSON", func([]byte) []byte { return []byte("MZ\x00") }, "not a manifest"},
		{"empty", func([]byte) []byte { return nil }, "not a manifest"},
		{"cut", func(b []byte) []byte { return b[:len(b)/2] }, "not a manifest"},
		{"cells twice", change("/r1", "/r0"), "twice"},
		{"wrong type", change(`"cells": [`, `"cells": 3, "x": [`), "not a manifest of schema 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := wholeRun(t)
			edit(t, dir, manifestFile, tt.change)
			_, err := Read(dir)
			wantError(t, err, dir, "manifest.json", tt.want)
			_, _, err = Resume(dir)
			wantError(t, err, tt.want)
		})
	}
	dir := t.TempDir()
	_, err := Read(filepath.Join(dir, "none"))
	wantError(t, err, "no such directory")
	_, err = Read(dir)
	wantError(t, err, "not a run directory")
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	_, err = Read(file)
	wantError(t, err, "not a directory")
	run := wholeRun(t)
	must(t, os.Remove(filepath.Join(run, requestsFile)))
	must(t, os.Mkdir(filepath.Join(run, requestsFile), 0o755))
	_, err = Read(run)
	wantError(t, err, "requests.jsonl is not a regular file")
}

// Whatever a crash of the machine leaves of the files, reading goes on and a
// resumed run is whole again.
func TestAnyCutIsRepaired(t *testing.T) {
	dir := wholeRun(t)
	whole := map[string][]byte{}
	for _, name := range []string{cellsFile, requestsFile, telemetryFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		whole[name] = b
	}
	rapid.Check(t, func(rt *rapid.T) {
		lines := map[string]int{}
		for name, b := range whole {
			cut := rapid.IntRange(0, len(b)).Draw(rt, name)
			kept := b[:cut]
			lines[name] = bytes.Count(kept, []byte("\n"))
			if cut > 0 && cut < len(b) && b[cut] == '\n' {
				lines[name]++ // whole but for its newline
			}
			if err := os.WriteFile(filepath.Join(dir, name), kept, 0o644); err != nil {
				rt.Fatal(err)
			}
		}
		before, err := Read(dir)
		if err != nil {
			rt.Fatal(err)
		}
		w, run, err := Resume(dir)
		if err != nil {
			rt.Fatal(err)
		}
		defer w.Close()
		if len(run.Records) != lines[requestsFile] || len(run.Events) != lines[cellsFile] || len(before.Records) != len(run.Records) {
			rt.Fatalf("%d records (%d before the repair), %d events, want %v", len(run.Records), len(before.Records), len(run.Events), lines)
		}
		id := run.Manifest.Cells[3].ID
		if err := w.Request(sampleRecord(id, 9, 0)); err != nil {
			rt.Fatal(err)
		}
		if err := w.Close(); err != nil {
			rt.Fatal(err)
		}
		after, err := Read(dir)
		if err != nil {
			rt.Fatal(err)
		}
		if len(after.Damage) > 0 || len(after.Records) != lines[requestsFile]+1 {
			rt.Fatalf("after the repair: %d records, damage %q", len(after.Records), after.Damage)
		}
	})
}

func TestManyWritersAtOnceMakeWholeLines(t *testing.T) {
	m := sampleManifest()
	w := create(t, m)
	const workers, each = 8, 40
	var wg sync.WaitGroup
	for k := range workers {
		wg.Go(func() {
			for i := range each {
				if err := w.Request(sampleRecord(m.Cells[0].ID, 1, k*each+i)); err != nil {
					t.Error(err)
				}
				if err := w.Sample(&Sample{T: int64(i), Subject: "host", Values: map[string]float64{"i": float64(i)}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Go(func() {
		for i := 1; i <= 20; i++ {
			if err := w.Event(CellEvent{Cell: m.Cells[0].ID, Attempt: i, State: CellStarted}); err != nil {
				t.Error(err)
			}
			if err := w.SetManifest(m); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() { // a reader of a run under way never fails
		for range 20 {
			if _, err := Read(w.Dir()); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	must(t, w.Close())
	run := read(t, w.Dir())
	if len(run.Records) != workers*each || len(run.Events) != 20 || len(run.Damage) > 0 {
		t.Errorf("%d records, %d events, damage %q", len(run.Records), len(run.Events), run.Damage)
	}
}

// What directories say in words only that are older than the field is found; a
// newer one is taken at its word, whatever the wording.
func TestDoubtsOfOldDirectories(t *testing.T) {
	for line, want := range map[string][]Doubt{
		`"warnings":["throttled GPU: gpu0's clocks were held down","busy machine: other programs used 1.9 of its 2 cores meanwhile","shared GPU: 9 MiB of gpu0"]`:               {DoubtBusy},
		`"warnings":["shared GPU: other processes (2 at once) held up to 9 MiB of gpu0 meanwhile","42 prompt tokens came from the server's prefix cache, which should be off"]`: {DoubtBusy, DoubtCacheHits},
		`"warnings":["a token was late"]`:                              nil,
		`"warnings":["said in other words"],"doubts":["prefix_cache"]`: {DoubtCacheHits},
		`"state":"done"`: nil,
	} {
		e, err := decodeEvent([]byte(`{"cell":"x","attempt":1,"state":"done",` + line + `}`))
		if err != nil || !slices.Equal(e.Doubts, want) {
			t.Errorf("%s: %q, %v; want %q", line, e.Doubts, err, want)
		}
	}
}
