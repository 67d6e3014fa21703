package telemetry

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

const (
	statLine     = "4887 (a (b) c) S 4883 4887 4887 0 -1 4194560 3087 551314 0 254 11 7 625 173 20 0 3 0 105716 5124096 971 18446744073709551615 1 2\n"
	meminfo      = "MemTotal:       1000 kB\nMemFree:        100 kB\nMemAvailable:   700 kB\nCached:  50 kB\nSwapTotal: 200 kB\nSwapFree:  150 kB\n"
	procStatText = "cpu  100 20 30 4000 50 6 7 8 9 10\ncpu0 1 2 3 4\n"
)

func TestParseStat(t *testing.T) {
	got, err := parseStat([]byte(statLine))
	if err != nil {
		t.Fatal(err)
	}
	want := procStat{ppid: 4883, cpuTicks: 18, deadCPU: 798, threads: 3, start: 105716, rssPages: 971}
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	z, err := parseStat([]byte(strings.Replace(statLine, ") S", ") Z", 1)))
	if err != nil || !z.zombie {
		t.Errorf("zombie: %+v, %v", z, err)
	}
	for _, bad := range []string{"", "1 a S 1", "1 (a)", "1 (a) S 1 2 3", strings.Replace(statLine, "971", "x", 1), strings.Replace(statLine, "105716", "-5", 1)} {
		if _, err := parseStat([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	b, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	if s, err := parseStat(b); err != nil || s.ppid != os.Getppid() || s.rssPages == 0 {
		t.Errorf("self: %+v, %v", s, err)
	}
}

func TestParseCPUTimes(t *testing.T) {
	got, err := parseCPUTimes([]byte(procStatText), nil)
	if want := (cpuTimes{work: 150, irq: 13, idle: 4050, steal: 8}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "cpu", "cpu 1 2 3", "cpu0 1 2 3 4", "cpu 1 2 3 x"} {
		if _, err := parseCPUTimes([]byte(bad), nil); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	var some unix.CPUSet
	some.Set(1)
	some.Set(10)
	const text = "cpu 99 99 99 99\ncpu0 9 9 9 9\ncpu1 1 2 3 4 5 6 7 8 9 9\ncpu2 9 9 9 9\ncpu10 10 20 30 40 50 60 70 80\nintr 5\n"
	if got, err := parseCPUTimes([]byte(text), &some); err != nil || got != (cpuTimes{work: 66, irq: 143, idle: 99, steal: 88}) {
		t.Errorf("of some CPUs: %+v, %v", got, err)
	}
	some.Zero()
	some.Set(3)
	for _, bad := range []string{text, "cpu3 1 2 3", "cpu3 1 2 3 x", "cpux 1 2 3 4"} {
		if got, err := parseCPUTimes([]byte(bad), &some); err == nil {
			t.Errorf("%q was taken: %+v", bad, got)
		}
	}
}

// What runs on CPUs that this process may not use is not in its way.
func TestTheHostIsTheCPUsWeMayUse(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var was, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		t.Fatal(err)
	}
	if was.Count() < 2 {
		t.Skip("this process has one CPU")
	}
	for cpu := 0; one.Count() == 0; cpu++ {
		if was.IsSet(cpu) {
			one.Set(cpu)
		}
	}
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	defer unix.SchedSetaffinity(0, &was)
	pinned := Host(nil).(*hostProbe)
	if pinned.cpus == nil || *pinned.cpus != one {
		t.Fatalf("bound to one CPU, it looks at %v", pinned.cpus)
	}
	everything := sample(t, &hostProbe{tree: pinned.tree})["work_seconds"]
	if mine := sample(t, pinned)["work_seconds"]; mine <= 0 || mine >= everything {
		t.Errorf("one CPU has done %v s of work, all %v s before", mine, everything)
	}
	// A server that was there before us is not bound by our mask.
	other := startRole(t, "hold")
	if err := unix.SchedSetaffinity(other.cmd.Process.Pid, &was); err != nil {
		t.Fatal(err)
	}
	beside := Host(func() []int { return []int{other.cmd.Process.Pid} }).(*hostProbe)
	sample(t, beside)
	if beside.cpus != nil {
		t.Error("an attached server may use other CPUs, which are not looked at")
	}
}

func TestParseMeminfo(t *testing.T) {
	got, err := parseMeminfo([]byte(meminfo))
	want := Memory{TotalBytes: 1000 << 10, AvailableBytes: 700 << 10, LimitBytes: -1, SwapTotalBytes: 200 << 10, SwapUsedBytes: 50 << 10}
	if err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	old, err := parseMeminfo([]byte(strings.Replace(meminfo, "MemAvailable", "Other", 1)))
	if err != nil || old.AvailableBytes != 150<<10 {
		t.Errorf("old kernel: %+v, %v", old, err)
	}
}

func TestParseMHz(t *testing.T) {
	if v, ok := parseMHz([]byte("cpu MHz\t\t: 2000.000\nflags : x\ncpu MHz : 3000.0\ncpu MHz : oops\n")); !ok || v != 2500 {
		t.Errorf("%v, %v", v, ok)
	}
	if _, ok := parseMHz([]byte("Features : fp\n")); ok {
		t.Error("a frequency out of nothing")
	}
}

func TestCountList(t *testing.T) {
	for s, want := range map[string]int{"0": 1, "0-3": 4, "0-3,8,10-11\n": 7, "": -1, "x": -1, "3-1": -1, "0-99999999999": -1} {
		if got := countList(s); got != want {
			t.Errorf("%q: %d, want %d", s, got, want)
		}
	}
}

// groups makes the files of control groups in a directory.
func groups(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestALimitOfAnyAncestorHolds(t *testing.T) {
	v2 := groups(t, map[string]string{
		"a/memory.max": "900\n", "a/memory.current": "500\n", "a/memory.stat": "anon 1\ninactive_file 100\n",
		"a/b/memory.max": "max\n", "a/b/memory.current": "1\n",
		"a/b/cpu.max": "250000 100000\n", "a/cpu.max": "150000 100000\n", "cpu.max": "max 100000\n",
	})
	g := parseCgroup([]byte("31 23 0:28 / "+v2+" rw - cgroup2 cgroup2 rw\n"), []byte("0::/a/b\n"))
	var file procFile
	if q := g.quota(&file); q != 1.5 {
		t.Errorf("quota %v, want 1.5", q)
	}
	var limits []int64
	for _, d := range g.memory {
		if limit, left, ok := d.memoryLeft(&file); ok {
			limits = append(limits, limit, left)
		}
	}
	if d := cmp.Diff([]int64{900, 500}, limits); d != "" {
		t.Errorf("limits (-want +got):\n%s", d)
	}

	v1 := groups(t, map[string]string{
		"memory/x/memory.limit_in_bytes": "1000\n", "memory/x/memory.usage_in_bytes": "1200\n",
		"memory/memory.limit_in_bytes": "9223372036854771712\n", "memory/memory.usage_in_bytes": "5\n",
		"cpu,cpuacct/x/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n",
		"cpu,cpuacct/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
	})
	g = parseCgroup([]byte(
		"1 1 0:1 / "+v1+"/memory rw - cgroup cgroup rw,memory\n2 1 0:2 / "+v1+"/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"),
		[]byte("4:memory:/x\n3:cpu,cpuacct:/x\n"))
	if q := g.quota(&file); q != 0.5 {
		t.Errorf("version 1: quota %v, want 0.5", q)
	}
	if limit, left, ok := g.memory[0].memoryLeft(&file); !ok || limit != 1000 || left != 0 {
		t.Errorf("version 1: limit %d, left %d, %v", limit, left, ok)
	}
}

func TestTheOwnGroupIsFoundInsideAContainer(t *testing.T) {
	for _, tt := range []struct{ name, mountinfo, own, want string }{
		{"own namespace", "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw", "0::/", "/sys/fs/cgroup"},
		{"mounted below", "1 1 0:1 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw", "0::/docker/abc/x", "/sys/fs/cgroup/x"},
		{"outside of the mount", "1 1 0:1 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw", "0::/other", "/sys/fs/cgroup"},
		{"above the namespace", "1 1 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup rw", "0::/../x", "/sys/fs/cgroup"},
		{"a space", `1 1 0:1 / /a\040b rw - cgroup2 cgroup rw`, "0::/", "/a b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := parseCgroup([]byte(tt.mountinfo+"\n"), []byte(tt.own+"\n"))
			if len(g.memory) == 0 || g.memory[0].path != tt.want {
				t.Errorf("%+v, want %s first", g.memory, tt.want)
			}
		})
	}
}

func FuzzStat(f *testing.F) {
	f.Add([]byte(statLine))
	f.Add([]byte("1 () Z "))
	f.Add([]byte(")) R 1 1 1 1 1 1 1 1 1 1 99999999999999999999 1 1 1 1 1 1 1 1 1 1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && (s.ppid < 0 || s.threads < 0 || s.rssPages < 0) {
			t.Errorf("%+v from %q", s, b)
		}
	})
}

func FuzzProcFiles(f *testing.F) {
	f.Add([]byte(meminfo))
	f.Add([]byte(procStatText))
	f.Add([]byte("cpu MHz : 1e3\nPss: 12 kB\n"))
	f.Add([]byte("max 100000"))
	f.Add([]byte("0-3,5"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, err := parseMeminfo(b); err == nil && (m.AvailableBytes < 0 || m.AvailableBytes > m.TotalBytes || m.SwapUsedBytes < 0) {
			t.Errorf("memory %+v", m)
		}
		if c, err := parseCPUTimes(b, nil); err == nil && c.work > 1<<60 {
			t.Errorf("times %+v", c)
		}
		if v, ok := parseMHz(b); ok && !(v > 0) {
			t.Errorf("MHz %v", v)
		}
		if v, ok := parseKB(b, "Pss"); ok && v < 0 {
			t.Errorf("Pss %v", v)
		}
		if v, ok := parseCPUMax(b); ok && !(v > 0) {
			t.Errorf("quota %v", v)
		}
		if v, ok := parseFlat(b, "inactive_file"); ok && v < 0 {
			t.Errorf("flat %v", v)
		}
		if n := countList(string(b)); n < -1 {
			t.Errorf("count %d", n)
		}
	})
}

func FuzzCgroup(f *testing.F) {
	f.Add([]byte("36 35 98:0 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n"), []byte("0::/a/b\n"))
	f.Add([]byte("1 1 0:1 /x /cg\\040 rw - cgroup cgroup rw,memory,cpu\n"), []byte("4:memory,cpu:/x/y\n0::\n"))
	f.Fuzz(func(t *testing.T, mounts, own []byte) {
		g := parseCgroup(mounts, own)
		for _, d := range append(slices.Clone(g.memory), g.cpu...) {
			if bytes.Contains([]byte(d.path), []byte("/../")) {
				t.Errorf("path %q", d.path)
			}
		}
	})
}
