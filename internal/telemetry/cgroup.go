package telemetry

import (
	"bytes"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// cgroup is where the limits of this process's control groups are written: its
// own group first, then the ancestors that can be seen. Both versions may be
// mounted at once (cgroups(7)).
type cgroup struct {
	memory []cgroupDir
	cpu    []cgroupDir
	names  []string // paths of the groups, which tell a container's kind
}

type cgroupDir struct {
	path string
	v2   bool
}

func findCgroup(file *procFile) cgroup {
	mounts, err := file.read("/proc/self/mountinfo")
	if err != nil {
		return cgroup{}
	}
	mounts = bytes.Clone(mounts)
	own, err := file.read("/proc/self/cgroup")
	if err != nil {
		return cgroup{}
	}
	return parseCgroup(mounts, own)
}

// parseCgroup joins /proc/self/mountinfo with /proc/self/cgroup.
func parseCgroup(mountinfo, own []byte) cgroup {
	var g cgroup
	paths := map[string]string{} // controller, "" for version 2 → path of the own group
	for line := range bytes.Lines(own) {
		parts := strings.SplitN(strings.TrimSpace(string(line)), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for _, controller := range strings.Split(parts[1], ",") {
			paths[controller] = parts[2]
		}
		if !slices.Contains(g.names, parts[2]) {
			g.names = append(g.names, parts[2])
		}
	}
	for line := range bytes.Lines(mountinfo) {
		left, right, ok := strings.Cut(string(line), " - ")
		mount, kind := strings.Fields(left), strings.Fields(right)
		if !ok || len(mount) < 5 || len(kind) < 3 {
			continue
		}
		root, point := unescapeMount(mount[3]), unescapeMount(mount[4])
		switch kind[0] {
		case "cgroup2":
			dirs := ancestors(root, point, paths[""], true)
			g.memory, g.cpu = append(g.memory, dirs...), append(g.cpu, dirs...)
		case "cgroup":
			for _, controller := range strings.Split(kind[2], ",") {
				switch controller {
				case "memory":
					g.memory = append(g.memory, ancestors(root, point, paths["memory"], false)...)
				case "cpu":
					g.cpu = append(g.cpu, ancestors(root, point, paths["cpu"], false)...)
				}
			}
		}
	}
	return g
}

// ancestors lists the directories from the own group up to the mount point.
func ancestors(root, point, own string, v2 bool) []cgroupDir {
	below := ""
	// A group outside of what is mounted, or above our namespace (/../x): the
	// mount point is the nearest that can be seen.
	if rel, err := filepath.Rel(root, own); err == nil && own != "" && !strings.HasPrefix(own, "/..") && !strings.HasPrefix(rel, "..") {
		below = rel
	}
	dirs := []cgroupDir{}
	for p := filepath.Join(point, below); ; p = filepath.Dir(p) {
		dirs = append(dirs, cgroupDir{path: p, v2: v2})
		if p == filepath.Clean(point) || p == "/" || p == "." || len(dirs) > 64 {
			return dirs
		}
	}
}

// unescapeMount undoes the octal escapes of mountinfo (\040 for a space).
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// quota returns how many cores' worth of time the groups allow; -1: no limit.
func (g cgroup) quota(file *procFile) float64 {
	least := -1.0
	for _, d := range g.cpu {
		q, ok := d.quota(file)
		if ok && (least < 0 || q < least) {
			least = q
		}
	}
	return least
}

func (d cgroupDir) quota(file *procFile) (float64, bool) {
	if d.v2 {
		b, err := file.read(d.path + "/cpu.max")
		if err != nil {
			return 0, false
		}
		return parseCPUMax(b)
	}
	quota, ok := readNumber(file, d.path+"/cpu.cfs_quota_us") // -1: none
	if !ok || quota == 0 {
		return 0, false
	}
	period, ok := readNumber(file, d.path+"/cpu.cfs_period_us")
	if !ok || period == 0 {
		return 0, false
	}
	return float64(quota) / float64(period), true
}

// parseCPUMax reads "150000 100000" (1.5 cores) or "max 100000" (no limit).
func parseCPUMax(b []byte) (float64, bool) {
	f := fields{rest: b}
	first, _ := f.next()
	second, _ := f.next()
	quota, err1 := strconv.ParseUint(string(first), 10, 53)
	period, err2 := strconv.ParseUint(string(second), 10, 53)
	if err1 != nil || err2 != nil || quota == 0 || period == 0 {
		return 0, false
	}
	return float64(quota) / float64(period), true
}
