package results

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCreateRefuses(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	must(t, os.WriteFile(file, nil, 0o644))
	full := filepath.Join(base, "full")
	must(t, os.MkdirAll(full, 0o755))
	must(t, os.WriteFile(filepath.Join(full, "thesis.txt"), nil, 0o644))
	closed := filepath.Join(base, "closed")
	must(t, os.Mkdir(closed, 0o555))
	twice := sampleManifest()
	twice.Cells[1].ID = twice.Cells[0].ID
	newer := sampleManifest()
	newer.Schema = Schema + 1
	for _, tt := range []struct {
		name     string
		dir      string
		manifest *Manifest
		want     []string
	}{
		{"no path", "", sampleManifest(), []string{"no path", "--out"}},
		{"a directory with something in it", full, sampleManifest(), []string{full, "not empty", "thesis.txt", "--out"}},
		{"a file", file, sampleManifest(), []string{file + " is a file", "--out"}},
		{"under a file", filepath.Join(file, "a", "b"), sampleManifest(), []string{file + " is a file", "--out"}},
		{"a run", wholeRun(t), sampleManifest(), []string{"holds a run already", "--out", "--resume"}},
		{"no manifest", filepath.Join(base, "x"), nil, []string{"no manifest"}},
		{"cells twice", filepath.Join(base, "x"), twice, []string{"twice"}},
		{"another schema", filepath.Join(base, "x"), newer, []string{"schema 2"}},
		{"where nobody may write", filepath.Join(closed, "x"), sampleManifest(), []string{"permission denied", "--out"}},
		{"read-only directory", closed, sampleManifest(), []string{"permission denied", "--out"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Contains(tt.want[0], "permission") && os.Geteuid() == 0 {
				t.Skip("root may write everywhere")
			}
			w, err := Create(tt.dir, tt.manifest)
			if err == nil {
				w.Close()
			}
			wantError(t, err, tt.want...)
		})
	}
	if _, err := os.Stat(filepath.Join(full, lockFile)); err == nil {
		t.Error("a lock file was left in a directory of the user's")
	}
	if _, err := os.Stat(filepath.Join(base, "x")); err == nil {
		t.Error("a directory was made for a manifest that cannot be written")
	}
}

func TestCreateMakesParentsAndTakesAnEmptyDirectory(t *testing.T) {
	base := t.TempDir()
	for _, dir := range []string{filepath.Join(base, "a", "b", "c"), filepath.Join(base, "a[b]*")} {
		w, err := Create(dir, sampleManifest())
		must(t, err)
		must(t, w.Close())
		read(t, dir)
	}
	empty := t.TempDir()
	// What a creation leaves that was killed before its manifest.
	must(t, os.WriteFile(filepath.Join(empty, lockFile), []byte("99\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(empty, tempPrefix+"1"), []byte("{"), 0o644))
	w, err := Create(empty, sampleManifest())
	must(t, err)
	must(t, w.Close())
	if _, err := os.Stat(filepath.Join(empty, tempPrefix+"1")); err == nil {
		t.Error("the unfinished manifest is still there")
	}
}

func TestTwoRunsCannotWriteOneDirectory(t *testing.T) {
	dir := wholeRun(t)
	w, _, err := Resume(dir)
	must(t, err)
	defer w.Close()
	_, _, err = Resume(dir)
	wantError(t, err, dir, "another nativebench (process", "--out")
	read(t, dir) // reading is free
	must(t, w.Close())
	w, _, err = Resume(dir)
	must(t, err)
	must(t, w.Close())
}

func TestResumeRunsWhatIsNotDone(t *testing.T) {
	dir := wholeRun(t)
	w, run, err := Resume(dir)
	must(t, err)
	defer w.Close()
	cells := run.Manifest.Cells
	if d := cmp.Diff([]string{cells[1].ID, cells[2].ID, cells[3].ID}, run.Remaining()); d != "" {
		t.Errorf("remaining (-want +got):\n%s", d)
	}
	failed := cells[1].ID
	if n := run.NextAttempt(failed); n != 2 {
		t.Errorf("next attempt %d, want 2", n)
	}
	if n := run.NextAttempt(cells[2].ID); n != 1 {
		t.Errorf("first attempt %d, want 1", n)
	}
	wantError(t, w.Event(CellEvent{Cell: failed, Attempt: 1, State: CellStarted}), "attempt 1 cannot start after attempt 1")
	wantError(t, w.Event(CellEvent{Cell: failed, Attempt: 2, State: CellDone}), "was not started")
	wantError(t, w.Event(CellEvent{Cell: failed, Attempt: 2, State: "dancing"}), "unknown state")
	must(t, w.Event(CellEvent{Cell: failed, Attempt: 2, State: CellStarted}))
	must(t, w.Request(sampleRecord(failed, 2, 0)))
	must(t, w.Request(sampleRecord(failed, 2, 1)))

	// Now it is cut off.
	c := read(t, dir).Cells()[1]
	if c.State != CellCutOff || c.Attempt != 2 || c.Attempts != 2 || !strings.Contains(c.Why(), "cut off") {
		t.Errorf("cut off: %s, attempt %d of %d, %q", c.State, c.Attempt, c.Attempts, c.Why())
	}
	must(t, w.Event(CellEvent{Cell: failed, Attempt: 2, State: CellDone}))
	c = read(t, dir).Cells()[1]
	if c.State != CellDone || len(c.Records) != 2 || !slices.ContainsFunc(c.Records, func(r *Record) bool { return r.OK() }) {
		t.Errorf("done: %s with %d records", c.State, len(c.Records))
	}
	for _, r := range c.Records {
		if r.Attempt != 2 {
			t.Errorf("a record of attempt %d counts", r.Attempt)
		}
	}
}

func TestARecordOfALostAttemptIsNotMixedWithTheNext(t *testing.T) {
	dir := wholeRun(t)
	w, run, err := Resume(dir)
	must(t, err)
	id := run.Manifest.Cells[2].ID
	must(t, w.Event(CellEvent{Cell: id, Attempt: 1, State: CellStarted}))
	must(t, w.Request(sampleRecord(id, 1, 0)))
	must(t, w.Close())
	edit(t, dir, cellsFile, func(b []byte) []byte { // the machine died: the event is lost
		return b[:strings.LastIndex(strings.TrimSuffix(string(b), "\n"), "\n")+1]
	})
	w, run, err = Resume(dir)
	must(t, err)
	defer w.Close()
	if n := run.NextAttempt(id); n != 2 {
		t.Errorf("next attempt %d, want 2", n)
	}
	if c := run.Cells()[2]; c.State != CellNotRun || len(c.Records) != 0 {
		t.Errorf("%s with %d records", c.State, len(c.Records))
	}
}

func TestADoneCellSaysWhatIsMissing(t *testing.T) {
	dir := wholeRun(t)
	edit(t, dir, requestsFile, func(b []byte) []byte {
		lines := strings.SplitAfter(string(b), "\n")
		return []byte(strings.Join(slices.Delete(lines, 2, 3), ""))
	})
	if c := read(t, dir).Cells()[0]; c.Missing != 1 {
		t.Errorf("%d missing, want 1", c.Missing)
	}
}

func TestAClosedWriterWritesNothing(t *testing.T) {
	w := create(t, sampleManifest())
	must(t, w.Close())
	must(t, w.Close())
	if err := w.Request(sampleRecord("c", 1, 0)); !errors.Is(err, errClosed) {
		t.Errorf("request after Close: %v", err)
	}
	if err := w.SetManifest(sampleManifest()); !errors.Is(err, errClosed) {
		t.Errorf("manifest after Close: %v", err)
	}
}

func TestAWriteWithoutItsCellIsRefused(t *testing.T) {
	w := create(t, sampleManifest())
	wantError(t, w.Request(&Record{Attempt: 1}), "no cell is named")
	wantError(t, w.Request(&Record{Cell: "c"}), "attempt 0")
	wantError(t, w.Sample(&Sample{}), "no subject")
	wantError(t, w.Event(CellEvent{Cell: "c", Attempt: 0, State: CellStarted}), "attempt 0")
	must(t, w.Close())
	if run := read(t, w.Dir()); len(run.Records)+len(run.Events) > 0 {
		t.Error("something was written")
	}
}
