package launch

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process is one row of /proc/*/stat (proc_pid_stat(5)).
type process struct {
	pid, parent, group int
	state              byte
	start              uint64 // clock ticks after boot: with pid, who it is
}

// tree returns root, its descendants and the members of its process group,
// without zombies; nil when there is none. Order: by pid.
func tree(root int) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var all []process
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, ok := readProcess(pid); ok {
				all = append(all, p)
			}
		}
	}
	in := map[int]bool{}
	for _, p := range all {
		if p.pid == root || p.group == root {
			in[p.pid] = true
		}
	}
	// Parents may come after their children: repeat until nothing is added.
	for grown := true; grown; {
		grown = false
		for _, p := range all {
			if !in[p.pid] && in[p.parent] {
				in[p.pid], grown = true, true
			}
		}
	}
	all = slices.DeleteFunc(all, func(p process) bool { return !in[p.pid] || p.state == 'Z' || p.state == 'X' })
	slices.SortFunc(all, func(a, b process) int { return a.pid - b.pid })
	return all
}

// readProcess reads one row; false if there is no such process.
func readProcess(pid int) (process, bool) {
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return process{}, false
	}
	// The name stands in parentheses and may hold spaces and parentheses.
	_, rest, ok := cutLast(string(data), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return process{}, false
	}
	p := process{pid: pid, state: f[0][0]}
	p.parent, _ = strconv.Atoi(f[1])
	p.group, _ = strconv.Atoi(f[2])
	p.start, _ = strconv.ParseUint(f[19], 10, 64)
	return p, true
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// awaitExit waits until a child of this process has ended, leaves it to be
// reaped, and says how it ended in the words of os.ProcessState.
func awaitExit(pid int) string {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return "its end was missed: " + err.Error()
		}
	}
	// What x/sys leaves unnamed of siginfo_t (sigaction(2)), on 64-bit Linux.
	status := (*struct {
		signo, errno, code, _ int32
		pid, uid, status      int32
	})(unsafe.Pointer(&info)).status
	const exited, dumped = 1, 3 // CLD_EXITED, CLD_DUMPED; the other is CLD_KILLED
	switch info.Code {
	case exited:
		return "exit status " + strconv.Itoa(int(status))
	case dumped:
		return "signal: " + syscall.Signal(status).String() + " (core dumped)"
	}
	return "signal: " + syscall.Signal(status).String()
}

// merge returns the processes of both, each once.
func merge(a, b []process) []process {
	for _, p := range b {
		if !slices.ContainsFunc(a, func(q process) bool { return q.pid == p.pid && q.start == p.start }) {
			a = append(a, p)
		}
	}
	return a
}

// alive returns those that still run; a pid that was given to another process
// does not count.
func alive(procs []process) []process {
	var out []process
	for _, p := range procs {
		if now, ok := readProcess(p.pid); ok && now.start == p.start && now.state != 'Z' && now.state != 'X' {
			out = append(out, now)
		}
	}
	return out
}

// kill kills the group and every process.
func kill(group int, procs []process) {
	_ = syscall.Kill(-group, syscall.SIGKILL)
	for _, p := range procs {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
}

// tail returns the last n lines of a file that are not empty, each cut to a
// length fit for a message; nil if it cannot be read.
func tail(path string, n int) []string {
	const most = 64 << 10
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil
	}
	from := max(0, info.Size()-most)
	buf := make([]byte, info.Size()-from)
	got, _ := f.ReadAt(buf, from) // what is there is what there is
	var lines []string
	for line := range bytes.Lines(buf[:got]) {
		text := strings.TrimRight(strings.ToValidUTF8(string(line), "\ufffd"), " \t\r\n")
		if text == "" {
			continue
		}
		if len(text) > 300 {
			text = strings.ToValidUTF8(text[:300], "") + "…"
		}
		lines = append(lines, text)
	}
	return lines[max(0, len(lines)-n):]
}
