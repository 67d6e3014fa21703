package results

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/bench"
)

// roleVar makes the test binary play a writer process instead of testing.
const (
	roleVar = "NATIVEBENCH_TEST_ROLE"
	dirVar  = "NATIVEBENCH_TEST_DIR"
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "write":
		writeForEver(os.Getenv(dirVar))
	case "fill":
		fillLimited(os.Getenv(dirVar))
	default:
		fmt.Fprintln(os.Stderr, "unknown role", role)
		os.Exit(2)
	}
}

// numberedRecord is record i of an attempt: its content follows from i, so that
// the reader can tell whether it is intact.
func numberedRecord(cell string, attempt, i int) *Record {
	tr := bench.NewTrace(64)
	tr.Start = int64(i) * 1e6
	for n := range i%50 + 1 {
		tr.Mark(tr.Start+int64(n*1000+i), n+1)
	}
	tr.End = tr.LastToken()
	words := i%50 + 1
	if i%16 == 3 {
		words = 10_000 // many pages: a kill may end the write between two
	}
	tr.Text = append(tr.Text, strings.Repeat(fmt.Sprintf("단어 %d ", i), words)...)
	tr.OutputTokens = i%50 + 1
	r := &Record{Cell: cell, Attempt: attempt, Index: i, Prompt: fmt.Sprint(i), Seed: uint64(i)}
	r.Fill(tr, nil)
	return r
}

// writeForEver resumes a run and writes as fast as it can until it is killed.
// After each write has returned it acknowledges the record's number on
// descriptor 3.
func writeForEver(dir string) {
	w, run, err := Resume(dir)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	cell := run.Manifest.Cells[0].ID
	attempt := run.NextAttempt(cell)
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ack := os.NewFile(3, "ack")
	go func() { // the manifest and the telemetry are written at the same time
		for i := 0; ; i++ {
			check(w.Sample(&Sample{T: int64(i), Subject: "host", Values: map[string]float64{"i": float64(i)}}))
			if i%100 == 0 { // it flushes to the disk, which takes its time
				m := run.Manifest
				m.RunID = strings.Repeat("x", i%1000)
				check(w.SetManifest(&m))
			}
		}
	}()
	for i := 0; ; i++ {
		if i%64 == 0 {
			state := CellStarted
			if i > 0 {
				state = CellInterrupted
			}
			check(w.Event(CellEvent{Cell: cell, Attempt: attempt, State: state, T: int64(i)}))
		}
		check(w.Request(numberedRecord(cell, attempt, i)))
		check(binary.Write(ack, binary.LittleEndian, uint64(i)))
	}
}

// TestKilledAtAnyMoment kills writers at 100 moments. Each of the directories
// sees several kills, so that a writer also resumes what the kill before left.
func TestKilledAtAnyMoment(t *testing.T) {
	const runs, kills = 20, 5
	rnd := rand.New(rand.NewPCG(1, 2))
	total, torn := 0, 0
	for range runs {
		m := sampleManifest()
		w := create(t, m)
		dir, cell := w.Dir(), m.Cells[0].ID
		must(t, w.Close())
		acknowledged := map[int]int{} // attempt → records
		for attempt := 1; attempt <= kills; attempt++ {
			// From 5 µs to 20 ms, short ones as likely as long ones.
			delay := time.Duration(float64(5*time.Microsecond) * math.Pow(4000, rnd.Float64()))
			n := writeAndKill(t, dir, delay)
			if n == 0 {
				t.Fatal("the writer was killed before its first record")
			}
			acknowledged[attempt] = n
			total += n
			run := read(t, dir)
			perFile := map[string]bool{}
			for _, d := range run.Damage {
				name, _, _ := strings.Cut(d, ":")
				if perFile[name] || !strings.Contains(d, "cut off") {
					t.Fatalf("killed after %v: damage %q", delay, run.Damage)
				}
				perFile[name] = true
				torn++
			}
			if c := run.Cells()[0]; c.Attempt != attempt || c.State == CellDone {
				t.Fatalf("killed after %v: the cell is %s in attempt %d", delay, c.State, c.Attempt)
			}
			checkAcknowledged(t, run, cell, acknowledged)
		}
		w, run, err := Resume(dir)
		must(t, err)
		must(t, w.Event(CellEvent{Cell: cell, Attempt: run.NextAttempt(cell), State: CellStarted}))
		must(t, w.Close())
		run = read(t, dir)
		if len(run.Damage) > 0 {
			t.Errorf("damage after the last resume: %q", run.Damage)
		}
		for _, err := range run.Telemetry() {
			if err != nil {
				t.Errorf("telemetry after the last resume: %v", err)
			}
		}
		checkAcknowledged(t, run, cell, acknowledged)
	}
	t.Logf("%d kills; all %d acknowledged records intact; %d torn lines found and repaired", runs*kills, total, torn)
}

func writeAndKill(t *testing.T, dir string, delay time.Duration) (acknowledged int) {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	r, wr, err := os.Pipe()
	must(t, err)
	defer r.Close()
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleVar+"=write", dirVar+"="+dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	cmd.ExtraFiles = []*os.File{wr}
	must(t, cmd.Start())
	wr.Close()
	in := bufio.NewReader(r)
	var i uint64
	if err := binary.Read(in, binary.LittleEndian, &i); err == nil {
		acknowledged++
		time.Sleep(delay)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed
	if stderr.Len() > 0 {
		t.Fatalf("the writer said: %s", stderr.String())
	}
	for {
		err := binary.Read(in, binary.LittleEndian, &i)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return acknowledged
		}
		must(t, err)
		if int(i) != acknowledged {
			t.Fatalf("acknowledged %d after %d", i, acknowledged)
		}
		acknowledged++
	}
}

func checkAcknowledged(t *testing.T, run *Run, cell string, acknowledged map[int]int) {
	t.Helper()
	have := map[[2]int]*Record{}
	for i := range run.Records {
		r := &run.Records[i]
		have[[2]int{r.Attempt, r.Index}] = r
	}
	for attempt, n := range acknowledged {
		for i := range n {
			got := have[[2]int{attempt, i}]
			if got == nil {
				t.Fatalf("attempt %d: acknowledged record %d of %d is gone", attempt, i, n)
			}
			if want := numberedRecord(cell, attempt, i); !cmp.Equal(want, got, cmpopts.EquateEmpty()) {
				t.Fatalf("attempt %d: record %d is not what was written:\n%s", attempt, i, cmp.Diff(want, got))
			}
		}
	}
}

// fillLimited writes under a file size limit, which ends a write in the middle
// of a line as a full disk does.
func fillLimited(dir string) {
	signal.Ignore(syscall.SIGXFSZ)
	const limit = 1_000_000
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
		fmt.Println("setrlimit:", err)
		os.Exit(1)
	}
	w, run, err := Resume(dir)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	written, err := fill(w, run.Manifest.Cells[0].ID)
	fmt.Printf("%d\n%v\n", written, err)
	fmt.Println(w.Sample(&Sample{Subject: "host"}))
}

// fill writes records until one fails.
func fill(w *Writer, cell string) (written int, err error) {
	for ; written < 100_000; written++ {
		if err := w.Request(numberedRecord(cell, 1, written)); err != nil {
			return written, err
		}
	}
	return written, nil
}

func checkFilled(t *testing.T, dir string, written int, text, second string) {
	t.Helper()
	wantError(t, errors.New(text), filepath.Join(dir, requestsFile), fmt.Sprintf("%d requests", written), "is intact", "--resume "+dir)
	if second != text {
		t.Errorf("a later write fails otherwise:\n%s\n%s", text, second)
	}
	run := read(t, dir)
	if len(run.Damage) > 0 {
		t.Errorf("damage: %q", run.Damage)
	}
	if len(run.Records) != written {
		t.Errorf("%d records, %d were acknowledged", len(run.Records), written)
	}
	checkAcknowledged(t, run, run.Manifest.Cells[0].ID, map[int]int{1: written})
}

func TestALimitInMidLineLeavesWholeLines(t *testing.T) {
	m := sampleManifest()
	w := create(t, m)
	dir := w.Dir()
	must(t, w.Close())
	exe, err := os.Executable()
	must(t, err)
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), roleVar+"=fill", dirVar+"="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != 3 {
		t.Fatalf("the writer said %q", out)
	}
	var written int
	if _, err := fmt.Sscan(lines[0], &written); err != nil || written == 0 {
		t.Fatalf("the writer said %q", out)
	}
	checkFilled(t, dir, written, lines[1], lines[2])
}

func TestAFullDiskIsOneClearError(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("a small file system cannot be mounted here (%v); TestALimitInMidLineLeavesWholeLines covers the rest", err)
	}
	defer unix.Unmount(mount, unix.MNT_DETACH)
	dir := filepath.Join(mount, "run")
	w, err := Create(dir, sampleManifest())
	must(t, err)
	written, err := fill(w, sampleManifest().Cells[0].ID)
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("after %d records: %v, want ENOSPC", written, err)
	}
	second := w.Event(CellEvent{Cell: "x", Attempt: 1, State: CellStarted})
	wantError(t, err, "no space left on device", "free space")
	checkFilled(t, dir, written, err.Error(), second.Error())
	if err := w.Close(); err == nil {
		t.Error("Close hides that the run is not whole")
	}
	// With space again it goes on.
	must(t, unix.Mount("tmpfs", mount, "tmpfs", unix.MS_REMOUNT, "size=4m"))
	w, run, err := Resume(dir)
	must(t, err)
	if len(run.Records) != written {
		t.Errorf("%d records after space was made, want %d", len(run.Records), written)
	}
	must(t, w.Request(numberedRecord("x", 2, 0)))
	must(t, w.Close())
}
