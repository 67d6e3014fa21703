package telemetry

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// roleVar makes the test binary play a process to be watched.
const roleVar = "NATIVEBENCH_TEST_ROLE"

const holdBytes = 64 << 20

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVar); role {
	case "":
		os.Exit(m.Run())
	case "hold":
		hold()
	case "parent": // of a process that holds
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), roleVar+"=hold")
		cmd.Stdin, cmd.Stdout = os.Stdin, os.Stdout
		if err := cmd.Run(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("reaped")
		_, _ = io.ReadAll(os.Stdin)
	default:
		fmt.Fprintln(os.Stderr, "unknown role", role)
		os.Exit(2)
	}
}

// hold touches 64 MiB, uses some CPU time, says its PID and waits for a line.
func hold() {
	b := make([]byte, holdBytes)
	for i := 0; i < len(b); i += 512 {
		b[i] = 1
	}
	sum := 0
	for began := threadTime(); threadTime()-began < 0.05; {
		for i := range b[:1<<16] {
			sum += int(b[i])
		}
	}
	fmt.Println(os.Getpid())
	bufio.NewReader(os.Stdin).ReadString('\n')
	os.Exit(int(b[sum%len(b)]) * 0)
}

func threadTime() float64 {
	s, _ := threadCPU()
	return s
}

// watched is a process started for a test.
type watched struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func startRole(t *testing.T, role string) *watched {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{cmd: exec.Command(exe)}
	w.cmd.Env = append(os.Environ(), roleVar+"="+role)
	w.cmd.Stderr = os.Stderr
	if w.in, err = w.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := w.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	w.out = bufio.NewReader(out)
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.in.Close()
		_ = w.cmd.Process.Kill()
		_ = w.cmd.Wait()
	})
	return w
}

func (w *watched) line(t *testing.T) string {
	t.Helper()
	s, err := w.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(s)
}

func sample(t *testing.T, p Probe) map[string]float64 {
	t.Helper()
	v := map[string]float64{}
	if err := p.Sample(v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestATreeIsSeenWithItsGrandchildren(t *testing.T) {
	var roots []int
	probe := Tree(func() []int { return roots }, TreeOptions{PSSEvery: 1})
	if v := sample(t, probe); len(v) != 0 {
		t.Errorf("a tree without a root has %v", v)
	}
	p := startRole(t, "parent")
	roots = []int{p.cmd.Process.Pid}
	sample(t, probe) // before the grandchild holds its memory
	grandchild, err := strconv.Atoi(p.line(t))
	if err != nil || grandchild == p.cmd.Process.Pid {
		t.Fatal(grandchild, err)
	}
	probe.(*treeProbe).tree.listed = time.Time{} // as if a second had passed
	v := sample(t, probe)
	if v["processes"] != 2 || v["threads"] < 2 {
		t.Errorf("%v processes with %v threads, want 2 processes", v["processes"], v["threads"])
	}
	for _, name := range []string{"rss_bytes", "pss_bytes"} {
		if v[name] < holdBytes || v[name] > 16*holdBytes {
			t.Errorf("%s is %.0f, want at least %d and not many times it", name, v[name], holdBytes)
		}
	}
	if v["pss_bytes"] > v["rss_bytes"] {
		t.Errorf("PSS %.0f above RSS %.0f", v["pss_bytes"], v["rss_bytes"])
	}
	if v["cpu_seconds"] < 0.04 {
		t.Errorf("%.3f s of CPU seen, the grandchild alone used 0.05", v["cpu_seconds"])
	}
	before := v["cpu_seconds"]

	// The grandchild ends and its parent takes its time over.
	fmt.Fprintln(p.in)
	if s := p.line(t); s != "reaped" {
		t.Fatal(s)
	}
	v = sample(t, probe)
	if v["processes"] != 1 || v["rss_bytes"] > holdBytes {
		t.Errorf("after its end: %v processes, %.0f bytes", v["processes"], v["rss_bytes"])
	}
	if v["cpu_seconds"] < before-1.0/userHZ || v["cpu_seconds"] > before+2 {
		t.Errorf("CPU seconds went from %.3f to %.3f at the end of a process", before, v["cpu_seconds"])
	}
	before = v["cpu_seconds"]

	// All end.
	p.in.Close()
	_ = p.cmd.Wait()
	v = sample(t, probe)
	if v["processes"] != 0 || v["rss_bytes"] != 0 || v["cpu_seconds"] < before {
		t.Errorf("after the end of all: %v (before %.3f s)", v, before)
	}
}

func TestCPUTimeFromBeforeTheWatchIsNotCounted(t *testing.T) {
	p := startRole(t, "hold")
	p.line(t) // it has used 0.05 s
	probe := Tree(func() []int { return []int{p.cmd.Process.Pid} }, TreeOptions{Subject: "x"})
	if probe.Subject() != "x" {
		t.Errorf("subject %q", probe.Subject())
	}
	if v := sample(t, probe); v["cpu_seconds"] != 0 {
		t.Errorf("%.3f s at the first sample", v["cpu_seconds"])
	}
}

func TestAProcessThatEndsMeanwhileIsNoError(t *testing.T) {
	p := startRole(t, "hold")
	p.line(t)
	pid := p.cmd.Process.Pid
	probe := Tree(func() []int { return []int{pid, 1 << 30} }, TreeOptions{PSSEvery: 1}) // the second never was
	if v := sample(t, probe); v["processes"] != 1 {
		t.Fatalf("%v", v)
	}
	fmt.Fprintln(p.in)
	_ = p.cmd.Wait()
	if v := sample(t, probe); v["processes"] != 0 {
		t.Errorf("%v", v)
	}
	// Its PID is another process's now: the start time tells.
	tr := &probe.(*treeProbe).tree
	self := os.Getpid()
	tr.members = append(tr.members, member{pid: self, path: statPath(self), start: 1})
	tr.listed = time.Now()
	if v := sample(t, probe); v["processes"] != 0 {
		t.Errorf("another process of the same PID was taken: %v", v)
	}
}

func TestPSSIsTakenAsOftenAsAsked(t *testing.T) {
	self := func() []int { return []int{os.Getpid()} }
	for _, tt := range []struct{ every, want int }{{0, 1}, {1, 6}, {3, 2}, {-1, 0}} {
		probe := Tree(self, TreeOptions{PSSEvery: tt.every})
		got := 0
		for range 6 {
			if _, ok := sample(t, probe)["pss_bytes"]; ok {
				got++
			}
		}
		if got != tt.want {
			t.Errorf("every %d: %d of 6 samples have it, want %d", tt.every, got, tt.want)
		}
	}
}

func TestTheHostIsSeenWithoutOurs(t *testing.T) {
	p := startRole(t, "hold") // a child of ours: its work is not load from elsewhere
	probe := Host(nil)
	first := sample(t, probe)
	p.line(t)
	began := threadTime()
	for threadTime()-began < 0.1 {
	}
	second := sample(t, probe)
	for _, name := range []string{"work_seconds", "other_seconds", "irq_seconds", "steal_seconds", "memory_available_bytes"} {
		if _, ok := second[name]; !ok {
			t.Errorf("no %s in %v", name, second)
		}
		if name != "memory_available_bytes" && second[name] < first[name] {
			t.Errorf("%s fell from %v to %v", name, first[name], second[name])
		}
	}
	if first["other_seconds"] != 0 {
		t.Errorf("other_seconds begins at %v", first["other_seconds"])
	}
	work := second["work_seconds"] - first["work_seconds"]
	other := second["other_seconds"] - first["other_seconds"]
	if work < 0.05 || other > work {
		t.Errorf("we worked 0.1 s: all work %.2f s, of others %.2f s", work, other)
	}
	if ours := probe.(*hostProbe).tree.cpuTicks; ours < 10-2 {
		t.Errorf("only %d ticks of our own 0.1 s were seen", ours)
	}
}

func TestSamplingAllocatesLittle(t *testing.T) {
	tree := Tree(func() []int { return []int{os.Getpid()} }, TreeOptions{PSSEvery: -1}).(*treeProbe)
	v := map[string]float64{}
	if err := tree.Sample(v); err != nil {
		t.Fatal(err)
	}
	n := testing.AllocsPerRun(50, func() {
		tree.tree.listed = time.Now().Add(time.Hour) // between two listings
		_ = tree.Sample(v)
	})
	if n > 4 {
		t.Errorf("%v allocations per sample of one process", n)
	}
}

// BenchmarkSample is one round of both probes over this process.
func BenchmarkSample(b *testing.B) {
	self := func() []int { return []int{os.Getpid()} }
	tree, host := Tree(self, TreeOptions{PSSEvery: -1}), Host(nil)
	v := map[string]float64{}
	for b.Loop() {
		clear(v)
		if err := tree.Sample(v); err != nil {
			b.Fatal(err)
		}
		if err := host.Sample(v); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkPSS is one reading of the PSS of a process that holds a GiB.
func BenchmarkPSS(b *testing.B) {
	held := make([]byte, 1<<30)
	for i := 0; i < len(held); i += os.Getpagesize() {
		held[i] = 1
	}
	probe := Tree(func() []int { return []int{os.Getpid()} }, TreeOptions{}).(*treeProbe)
	if err := probe.tree.update(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := probe.tree.pss(); err != nil {
			b.Fatal(err)
		}
	}
	runtime.KeepAlive(held)
}
