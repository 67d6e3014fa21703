package telemetry

import (
	"errors"
	"fmt"
	"math"
	"strconv"
)

// Memory is what this process can have, in bytes: that of the machine, within
// the limit of the control group it runs in (a container's limit).
type Memory struct {
	TotalBytes     int64 `json:"total_bytes"`
	AvailableBytes int64 `json:"available_bytes"` // without swapping; page cache that can be dropped counts as available
	LimitBytes     int64 `json:"limit_bytes"`     // of the control group; -1: none
	SwapTotalBytes int64 `json:"swap_total_bytes"`
	SwapUsedBytes  int64 `json:"swap_used_bytes"` // by anything on the machine
}

// ReadMemory reads the memory of this moment.
func ReadMemory() (Memory, error) {
	var r memoryReader
	return r.read()
}

// memoryReader reads memory again and again; the control group is found once.
type memoryReader struct {
	file  procFile
	group *cgroup
}

func (r *memoryReader) read() (Memory, error) {
	b, err := r.file.read("/proc/meminfo")
	if err != nil {
		return Memory{}, fmt.Errorf("the machine's memory: %w", err)
	}
	m, err := parseMeminfo(b)
	if err != nil {
		return Memory{}, err
	}
	if r.group == nil {
		g := findCgroup(&r.file)
		r.group = &g
	}
	// Every ancestor's limit holds as well; what is left is the least.
	for _, dir := range r.group.memory {
		limit, left, ok := dir.memoryLeft(&r.file)
		if !ok || limit >= m.TotalBytes && m.LimitBytes < 0 {
			continue // "no limit" is written as a huge one in version 1
		}
		if m.LimitBytes < 0 || limit < m.LimitBytes {
			m.LimitBytes = limit
		}
		m.TotalBytes = min(m.TotalBytes, limit)
		m.AvailableBytes = min(m.AvailableBytes, left)
	}
	return m, nil
}

func parseMeminfo(b []byte) (Memory, error) {
	total, ok := parseKB(b, "MemTotal")
	if !ok {
		return Memory{}, errors.New("/proc/meminfo has no MemTotal")
	}
	m := Memory{TotalBytes: total, LimitBytes: -1}
	if m.AvailableBytes, ok = parseKB(b, "MemAvailable"); !ok {
		// Kernels before 3.14: what is free or can be dropped.
		free, _ := parseKB(b, "MemFree")
		cached, _ := parseKB(b, "Cached")
		m.AvailableBytes = free + cached
	}
	m.AvailableBytes = min(m.AvailableBytes, total)
	m.SwapTotalBytes, _ = parseKB(b, "SwapTotal")
	free, _ := parseKB(b, "SwapFree")
	m.SwapUsedBytes = max(0, m.SwapTotalBytes-free)
	return m, nil
}

// memoryLeft returns a control group's limit and what is left of it. Files
// that it holds in the page cache and has not used lately are dropped before
// the limit bites.
func (d cgroupDir) memoryLeft(file *procFile) (limit, left int64, ok bool) {
	limitName, usageName, cacheName := "memory.max", "memory.current", "inactive_file"
	if !d.v2 {
		limitName, usageName, cacheName = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
	}
	limit, ok = readNumber(file, d.path+"/"+limitName)
	if !ok {
		return 0, 0, false // "max", or no such file at the root
	}
	used, ok := readNumber(file, d.path+"/"+usageName)
	if !ok {
		return 0, 0, false
	}
	cache := int64(0)
	if b, err := file.read(d.path + "/memory.stat"); err == nil {
		cache, _ = parseFlat(b, cacheName)
	}
	return limit, min(limit, max(0, limit-used+min(cache, used))), true
}

// readNumber reads a file that holds one number that is not negative.
func readNumber(file *procFile, path string) (int64, bool) {
	b, err := file.read(path)
	if err != nil {
		return 0, false
	}
	f := fields{rest: b}
	word, _ := f.next()
	v, err := strconv.ParseInt(string(word), 10, 64)
	if errors.Is(err, strconv.ErrRange) {
		return math.MaxInt64, true
	}
	return v, err == nil && v >= 0
}

// parseFlat returns the value of a "name 123" line.
func parseFlat(b []byte, name string) (int64, bool) {
	f := fields{rest: b}
	for {
		key, ok := f.next()
		if !ok {
			return 0, false
		}
		match := string(key) == name
		word, ok := f.next()
		if !ok {
			return 0, false
		}
		if match {
			v, err := strconv.ParseInt(string(word), 10, 64)
			return v, err == nil && v >= 0
		}
	}
}
