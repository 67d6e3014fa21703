package results

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Create makes the run directory, with its parents, and its first manifest. It
// refuses a directory that holds anything.
func Create(dir string, m *Manifest) (*Writer, error) {
	b, err := encodeManifest(m)
	if err != nil {
		return nil, err
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	if err := checkEmpty(dir); err != nil { // before the lock file is put there
		return nil, err
	}
	return open(dir, func(w *Writer) error {
		if err := checkEmpty(dir); err != nil { // again: another may have come first
			return err
		}
		removeTemps(dir)
		if err := replaceManifest(dir, b); err != nil {
			return fmt.Errorf("making run directory %s: %w", dir, err)
		}
		return nil
	})
}

// Resume opens a run directory to complete it. A last line that a kill cut off
// is removed, which Run.Damage tells. The run says which cells are done
// (Run.Remaining) and the number of the next attempt at each (Run.NextAttempt).
func Resume(dir string) (*Writer, *Run, error) {
	if _, err := readManifest(dir); err != nil { // before the lock file is put there
		return nil, nil, err
	}
	var run *Run
	w, err := open(dir, func(w *Writer) error {
		removeTemps(dir)
		damage, err := repair(dir)
		if err != nil {
			return err
		}
		if run, err = Read(dir); err != nil {
			return err
		}
		run.Damage = append(damage, run.Damage...)
		for i := range run.Manifest.Cells {
			id := run.Manifest.Cells[i].ID
			w.attempts[id] = run.NextAttempt(id) - 1
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return w, run, nil
}

// open takes the lock, lets prepare look at and ready the directory, and opens
// the files.
func open(dir string, prepare func(*Writer) error) (_ *Writer, err error) {
	lock, err := takeLock(dir)
	if err != nil {
		return nil, err
	}
	w := &Writer{dir: dir, lock: lock, attempts: map[string]int{}}
	defer func() {
		if err != nil {
			for _, a := range []*appender{&w.requests, &w.samples, &w.cells} {
				a.close()
			}
			lock.Close()
		}
	}()
	if err := prepare(w); err != nil {
		return nil, err
	}
	for _, f := range []struct {
		name string
		into *appender
	}{{cellsFile, &w.cells}, {requestsFile, &w.requests}, {telemetryFile, &w.samples}} {
		if *f.into, err = openAppender(dir, f.name); err != nil {
			return nil, fmt.Errorf("opening run directory %s: %w", dir, err)
		}
	}
	if err := os.MkdirAll(w.LogDir(), 0o755); err != nil {
		return nil, fmt.Errorf("opening run directory %s: %w", dir, err)
	}
	if err := syncDir(dir); err != nil {
		return nil, fmt.Errorf("opening run directory %s: %w", dir, err)
	}
	_ = syncDir(filepath.Dir(dir)) // the parent may be one that this user cannot open
	return w, nil
}

// makeDir makes dir and its parents and says plainly why it cannot.
func makeDir(dir string) error {
	if dir == "" {
		return errors.New("making the run directory: no path was given; choose one with --out")
	}
	err := os.MkdirAll(dir, 0o755)
	if err == nil {
		return nil
	}
	reason := err.Error()
	var path *os.PathError
	if errors.As(err, &path) {
		switch {
		case errors.Is(err, syscall.ENOTDIR):
			reason = path.Path + " is a file, not a directory"
		case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
			reason = fmt.Sprintf("%s cannot be made there: %v", path.Path, path.Err)
		}
	}
	return fmt.Errorf("making run directory %s: %s; choose another --out", dir, reason)
}

// checkEmpty refuses a directory that holds anything but what a creation that
// was killed half way leaves behind.
func checkEmpty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("making run directory %s: %w; choose another --out", dir, err)
	}
	other := ""
	for _, e := range entries {
		switch name := e.Name(); {
		case name == manifestFile:
			return fmt.Errorf("making run directory %s: it holds a run already; choose another --out, or complete that run with --resume %s", dir, dir)
		case name != lockFile && !strings.HasPrefix(name, tempPrefix):
			other = name
		}
	}
	if other != "" {
		return fmt.Errorf("making run directory %s: it is not empty (it holds %s); choose another --out", dir, other)
	}
	return nil
}

// takeLock makes sure that no other process writes the directory. The lock
// falls with the process that holds it, however it ends. The file stays: to
// remove it would let two processes lock two files of one name.
func takeLock(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		var p *os.PathError
		if errors.As(err, &p) {
			err = p.Err
		}
		return nil, fmt.Errorf("opening run directory %s: it cannot be written to: %w; choose another --out", dir, err)
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if errors.Is(err, syscall.EWOULDBLOCK) {
		defer f.Close()
		return nil, fmt.Errorf("opening run directory %s: another nativebench%s is writing it; wait for it or choose another --out", dir, holder(f))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("opening run directory %s: its file system cannot lock %s: %w; choose an --out elsewhere", dir, path, err)
	}
	// For the message above only; not to have it is no harm.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// holder reads who holds the lock: " (process 123)", or "".
func holder(f *os.File) string {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (process %d)", pid)
}

// removeTemps removes unfinished manifests of a writer that was killed.
func removeTemps(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), tempPrefix) {
			_ = os.Remove(filepath.Join(dir, e.Name())) // it is only clutter
		}
	}
}

// repair makes every JSONL file end with a whole line: what follows the last
// one is cut off, and a newline that alone is missing is added.
func repair(dir string) (damage []string, err error) {
	for _, f := range []struct {
		name  string
		whole func(line []byte) error
	}{
		{cellsFile, func(b []byte) error { _, err := decodeEvent(b); return err }},
		{requestsFile, func(b []byte) error { _, err := decodeRecord(b); return err }},
		{telemetryFile, func(b []byte) error { _, err := decodeSample(b); return err }},
	} {
		told, err := repairFile(filepath.Join(dir, f.name), f.whole)
		if err != nil {
			return nil, fmt.Errorf("resuming run %s: %s: %w", dir, f.name, err)
		}
		if told != "" {
			damage = append(damage, f.name+": "+told)
		}
	}
	return damage, nil
}

// repairFile repairs one file and says what was done.
func repairFile(path string, whole func(line []byte) error) (told string, err error) {
	if info, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "was missing; an empty one was made", os.WriteFile(path, nil, 0o644)
	} else if err != nil {
		return "", err
	} else if !info.Mode().IsRegular() {
		return "", errors.New("not a regular file")
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return "", err
	}
	end, err := lastLineEnd(f, size)
	if err != nil || end == size {
		return "", err
	}
	if tail := size - end; tail < MaxLine {
		line := make([]byte, tail)
		if _, err := f.ReadAt(line, end); err != nil {
			return "", err
		}
		if whole(line) == nil {
			_, err := f.WriteAt([]byte("\n"), size)
			return "the last line had no newline; added", err
		}
	}
	return fmt.Sprintf("the last line was cut off after %d bytes; removed", size-end), f.Truncate(end)
}

// lastLineEnd returns the offset after the last newline. It reads from the
// end: what comes before may be large and is not in question.
func lastLineEnd(f io.ReaderAt, size int64) (int64, error) {
	buf := make([]byte, 64<<10)
	for end := size; end > 0; {
		start := max(0, end-int64(len(buf)))
		part := buf[:end-start]
		if _, err := f.ReadAt(part, start); err != nil {
			return 0, err
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return start + int64(i) + 1, nil
		}
		end = start
	}
	return 0, nil
}
