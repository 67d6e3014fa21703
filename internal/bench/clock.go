package bench

import (
	"syscall"
	"time"
	"unsafe"
)

// The clock of every stamp is CLOCK_MONOTONIC in nanoseconds since boot, read
// raw: stamps of the engine (C), of this process and of its children lie on
// one axis. Go's own monotonic clock is the same clock less an offset that is
// measured once, so that Now costs one vDSO call and no system call.
var (
	clockBase                     = time.Now()
	clockOffset, clockUncertainty = measureOffset()
)

// Now returns the time in nanoseconds of CLOCK_MONOTONIC. It does not allocate.
func Now() int64 { return int64(time.Since(clockBase)) + clockOffset }

// At returns the time of a time.Now reading on the clock of Now. Such a reading
// holds the wall clock and the monotonic clock of one moment: At ties the two
// together without a second read. t must have been made in this process.
func At(t time.Time) int64 { return int64(t.Sub(clockBase)) + clockOffset }

// ClockUncertainty returns the half-width, in nanoseconds, of the interval in
// which the offset between Go's clock and CLOCK_MONOTONIC was pinned down.
func ClockUncertainty() int64 { return clockUncertainty }

// WallTime turns a stamp into wall-clock time, for people. It is as good as
// the wall clock's standing at the moment of the call.
func WallTime(ns int64) time.Time { return time.Now().Add(time.Duration(ns - Now())) }

// measureOffset brackets a raw clock read between two Go reads and keeps the
// tightest of many tries.
func measureOffset() (offset, uncertainty int64) {
	uncertainty = 1 << 62
	for range 200 {
		a := int64(time.Since(clockBase))
		raw := rawMonotonic()
		b := int64(time.Since(clockBase))
		if raw == 0 { // no such clock: Now counts from process start
			return 0, 0
		}
		if w := (b - a + 1) / 2; w < uncertainty {
			uncertainty, offset = w, raw-(a+b)/2
		}
	}
	return offset, uncertainty
}

// rawMonotonic reads CLOCK_MONOTONIC by system call; 0 where that fails.
func rawMonotonic() int64 {
	const clockMonotonic = 1
	var ts syscall.Timespec
	if _, _, errno := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&ts)), 0); errno != 0 {
		return 0
	}
	return ts.Nano()
}
