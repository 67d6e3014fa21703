package telemetry

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// TreeOptions adjusts Tree. The zero value is good.
type TreeOptions struct {
	Subject string // "": BackendSubject
	// PSSEvery takes the proportional set size at every so many samples (and at
	// the first); negative: never. It is the one costly value: the kernel walks
	// all page tables of the process, about 10 ms per GiB in 4-KiB pages
	// (BenchmarkPSS), and holds the lock that the process needs to map memory
	// meanwhile. So 0 takes it at every 10th sample, and more seldom if that
	// were more than a fiftieth of the time.
	PSSEvery int
}

// Tree watches the processes that pids returns and all their descendants.
// Values: rss_bytes, pss_bytes (at some samples, see TreeOptions; absent when
// the kernel does not let us see it), cpu_seconds (a counter: what the tree has used
// since the first sample, ended and waited-for children included, to 10 ms per
// process), threads, processes (zombies not counted).
//
// A process that ends while it is looked at is no error. One that joins the
// tree is seen a second later, on a machine of thousands a few seconds. A process seen once stays in the tree
// when its parent dies.
func Tree(pids func() []int, opt TreeOptions) Probe {
	if opt.Subject == "" {
		opt.Subject = BackendSubject
	}
	return &treeProbe{opt: opt, tree: tree{roots: pids}}
}

type treeProbe struct {
	opt  TreeOptions
	tree tree
	n    int // samples taken

	pssNext time.Time // not before, unless it was asked for
	pssNow  bool      // at the next sample
}

// All makes the next sample have the PSS.
func (p *treeProbe) All() { p.pssNow = true }

func (p *treeProbe) Subject() string { return p.opt.Subject }

func (p *treeProbe) Sample(into map[string]float64) error {
	err := p.tree.update()
	t := &p.tree
	if !t.seen {
		return err // nothing to watch yet
	}
	into["processes"] = float64(t.alive)
	into["threads"] = float64(t.threads)
	into["rss_bytes"] = float64(t.rssPages) * float64(os.Getpagesize())
	into["cpu_seconds"] = float64(t.cpuTicks) / userHZ
	if p.pssDue() {
		began := time.Now()
		pss, pssErr := p.tree.pss()
		now := time.Now()
		p.pssNow, p.pssNext = false, now.Add(pssShare*now.Sub(began))
		if pssErr == nil && pss > 0 { // 0: all ended while we read
			into["pss_bytes"] = float64(pss)
		}
		err = errors.Join(err, pssErr)
	}
	p.n++
	return err
}

const (
	pssEvery = 10 // samples, when nothing else was asked for
	pssShare = 50 // and it takes at most the 50th part of the time
)

func (p *treeProbe) pssDue() bool {
	switch every := p.opt.PSSEvery; {
	case every < 0:
		return false
	case p.pssNow:
		return true
	case every > 0:
		return p.n%every == 0
	}
	return p.n%pssEvery == 0 && !time.Now().Before(p.pssNext)
}

// rescanEvery is how often all of /proc is listed to find new descendants.
// Between two listings only the known processes are read: a machine may run
// thousands. (gopsutil's Children starts pgrep for each question.) Where there
// are so many that a listing would take more than the 100th part of the time,
// it is done more seldom.
const (
	rescanEvery = time.Second
	rescanShare = 100
)

// tree follows processes and their descendants.
type tree struct {
	roots func() []int

	file      procFile
	members   []member
	lastRoots []int
	listed    time.Time // when all of /proc was last listed
	listedAt  uint64    // the same in ticks after boot; 0: never
	listing   time.Duration
	seen      bool // there was ever a member

	// As of the last update:
	alive    int
	threads  int64
	rssPages int64
	cpuTicks uint64 // used since the first update; never falls
	lastSum  uint64
}

type member struct {
	pid   int
	path  string // /proc/PID/stat
	start uint64
	stat  procStat
}

// update reads all members again.
func (t *tree) update() error {
	var roots []int
	if t.roots != nil {
		roots = t.roots()
	}
	var err error
	if now := time.Now(); !slices.Equal(roots, t.lastRoots) || now.Sub(t.listed) >= max(rescanEvery, rescanShare*t.listing) {
		t.lastRoots = append(t.lastRoots[:0], roots...)
		ticks := bootTicks()
		err = t.list(roots)
		t.listed, t.listedAt, t.listing = now, ticks, time.Since(now)
	}
	t.alive, t.threads, t.rssPages = 0, 0, 0
	var sum uint64
	kept := t.members[:0]
	for _, m := range t.members {
		s, readErr := t.stat(m.path)
		if readErr != nil || s.start != m.start { // ended, or the PID is another's now
			if readErr != nil && !gone(readErr) {
				err = errors.Join(err, fmt.Errorf("process %d: %w", m.pid, readErr))
			}
			continue
		}
		m.stat = s
		kept = append(kept, m)
		sum += s.cpuTicks + s.deadCPU
		if s.zombie {
			continue
		}
		t.alive++
		t.threads += s.threads
		t.rssPages += s.rssPages
	}
	t.members = kept
	// Time moves from a child to its parent when the parent waits for it. When
	// nobody in the tree waits the sum falls; what was counted stays counted.
	if sum > t.lastSum {
		t.cpuTicks += sum - t.lastSum
	}
	t.lastSum = sum
	return err
}

// list finds members anew: the roots, what was known, and all descendants.
func (t *tree) list(roots []int) error {
	all, err := t.readAll()
	if err != nil {
		return err
	}
	in := make(map[int]bool, len(roots)+len(t.members))
	for _, pid := range roots {
		in[pid] = true
	}
	for _, m := range t.members {
		if s, ok := all[m.pid]; ok && s.start == m.start {
			in[m.pid] = true
		}
	}
	// Follow each process up until an ancestor decides.
	verdict := make(map[int]bool, len(all))
	var trail []int
	for pid := range all {
		trail = trail[:0]
		found := false
		for p := pid; p > 0; {
			if v, ok := verdict[p]; ok {
				found = v
				break
			}
			if in[p] {
				found = true
				break
			}
			s, ok := all[p]
			if !ok || len(trail) > len(all) { // a race of the listing made a circle
				break
			}
			trail = append(trail, p)
			p = s.ppid
		}
		for _, p := range trail {
			verdict[p] = found
		}
	}
	known := make(map[int]uint64, len(t.members))
	for _, m := range t.members {
		known[m.pid] = m.start
	}
	for pid, s := range all {
		if !in[pid] && !verdict[pid] {
			continue
		}
		if start, ok := known[pid]; ok && start == s.start {
			continue
		}
		t.members = append(t.members, member{pid: pid, path: statPath(pid), start: s.start, stat: s})
		t.seen = true
		if t.listedAt == 0 || s.start < t.listedAt {
			// It ran before we watched it: that time is not ours to count.
			t.lastSum += s.cpuTicks + s.deadCPU
		}
	}
	return nil
}

func (t *tree) readAll() (map[int]procStat, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := make(map[int]procStat, len(names))
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if s, err := t.stat(statPath(pid)); err == nil { // one that cannot be read is not ours or has ended
			all[pid] = s
		}
	}
	return all, nil
}

func (t *tree) stat(path string) (procStat, error) {
	b, err := t.file.read(path)
	if err != nil {
		return procStat{}, err
	}
	return parseStat(b)
}

// pss sums the proportional set size of all members, in bytes.
func (t *tree) pss() (int64, error) {
	var sum int64
	for _, m := range t.members {
		if m.stat.zombie {
			continue
		}
		b, err := t.file.read("/proc/" + strconv.Itoa(m.pid) + "/smaps_rollup")
		switch {
		case gone(err):
			continue
		case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
			return 0, fmt.Errorf("PSS of process %d is not known: reading it needs the right to trace it (same user, or CAP_SYS_PTRACE)", m.pid)
		case err != nil:
			return 0, fmt.Errorf("PSS of process %d is not known: %w", m.pid, err)
		}
		if pss, ok := parseKB(b, "Pss"); ok {
			sum += pss
		} // an empty file: it ended while we read
	}
	return sum, nil
}

func statPath(pid int) string { return "/proc/" + strconv.Itoa(pid) + "/stat" }

// bootTicks returns the time since boot in the unit of a process's start time.
func bootTicks() uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return 0 // every process then counts as one that ran before
	}
	return uint64(ts.Nano()) / (1e9 / userHZ)
}

// Within tells whether a process is one of the roots or descends from one, as
// far as its ancestors still live.
func Within(pid int, roots []int) bool {
	var file procFile
	for range maxAncestors {
		if slices.Contains(roots, pid) {
			return true
		}
		b, err := file.read(statPath(pid))
		if err != nil {
			return false
		}
		s, err := parseStat(b)
		if err != nil || s.ppid <= 0 {
			return false
		}
		pid = s.ppid
	}
	return false
}

// maxAncestors bounds the walk: PIDs are used again while it goes on.
const maxAncestors = 1000
