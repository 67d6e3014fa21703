package results

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// Writer writes one run directory. It is the only writer of it: a lock keeps
// others out until Close. Its methods may be called from several goroutines.
//
// Every line is handed to the kernel by one write before its method returns,
// so that killing the process loses nothing that was acknowledged. At cell
// events everything is also flushed to the disk, so that a cell that is done
// stays done when the machine dies.
//
// After a write has failed (the disk is full) every method returns that same
// error: the directory stays as it was after the last whole line.
type Writer struct {
	dir  string
	lock *os.File

	mu       sync.Mutex
	err      error // sticky
	cells    appender
	requests appender
	samples  appender
	attempts map[string]int // last attempt of each cell
}

// errClosed is what a writer returns after Close.
var errClosed = errors.New("results: the run directory was closed")

// SetManifest replaces manifest.json in one step: a reader sees the old one or
// the new one. Secrets in command lines and endpoints are removed.
func (w *Writer) SetManifest(m *Manifest) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	b, err := encodeManifest(m)
	if err != nil {
		return err
	}
	if err := replaceManifest(w.dir, b); err != nil {
		return w.fail(manifestFile, err, "the one before it is intact")
	}
	return nil
}

// Event appends to cells.jsonl and then flushes everything to the disk. The
// first event of an attempt is CellStarted, with an Attempt above all earlier
// ones of the cell (Run.NextAttempt; the first is 1).
func (w *Writer) Event(e CellEvent) error {
	if err := e.check(); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	line, err := encodeLine(e)
	if err != nil {
		return fmt.Errorf("results: event of cell %s: %w", e.Cell, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return w.err
	}
	if last := w.attempts[e.Cell]; e.State == CellStarted && e.Attempt <= last {
		return fmt.Errorf("results: cell %s: attempt %d cannot start after attempt %d", e.Cell, e.Attempt, last)
	} else if e.State != CellStarted && e.Attempt != last {
		return fmt.Errorf("results: cell %s: attempt %d is %s but was not started", e.Cell, e.Attempt, e.State)
	}
	// Requests first: an event must never be on the disk without them.
	for _, a := range []*appender{&w.requests, &w.samples} {
		if err := a.sync(); err != nil {
			return w.fail(a.name, err, "")
		}
	}
	if err := w.append(&w.cells, line); err != nil {
		return err
	}
	w.attempts[e.Cell] = e.Attempt
	if err := w.cells.sync(); err != nil {
		return w.fail(cellsFile, err, "")
	}
	return nil
}

// Request appends to requests.jsonl.
func (w *Writer) Request(r *Record) error {
	if err := r.check(); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	line, err := encodeLine(r)
	if err != nil {
		return fmt.Errorf("results: request %d of cell %s: %w", r.Index, r.Cell, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.append(&w.requests, line)
}

// Sample appends to telemetry.jsonl.
func (w *Writer) Sample(s *Sample) error {
	if err := s.check(); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	line, err := encodeLine(s)
	if err != nil {
		return fmt.Errorf("results: sample of %s: %w", s.Subject, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.append(&w.samples, line)
}

// Dir returns the run directory.
func (w *Writer) Dir() string { return w.dir }

// LogDir returns the directory for what servers and child processes print. It
// exists.
func (w *Writer) LogDir() string { return filepath.Join(w.dir, logsDir) }

// Close flushes everything to the disk and releases the directory. A second
// Close does nothing.
func (w *Writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lock == nil {
		return nil
	}
	var first error
	for _, a := range []*appender{&w.requests, &w.samples, &w.cells} {
		if err := a.close(); err != nil && first == nil && w.err == nil {
			first = w.fail(a.name, err, "")
		}
	}
	if w.err != nil && first == nil {
		first = w.err
	}
	w.lock.Close() // releases the flock
	w.lock, w.err = nil, errClosed
	return first
}

// append writes one line under the lock.
func (w *Writer) append(a *appender, line []byte) error {
	if w.err != nil {
		return w.err
	}
	if err := a.append(line); err != nil {
		return w.fail(a.name, err, "")
	}
	return nil
}

// fail makes the error that every later call returns too.
func (w *Writer) fail(name string, err error, note string) error {
	if note != "" {
		note = "; " + note
	}
	remedy := "find out what is wrong with the disk"
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		remedy = "free space"
	}
	var path *os.PathError
	if errors.As(err, &path) {
		err = path.Err // its path is in the text already
	}
	w.err = fmt.Errorf("results: writing %s: %w%s; what was written before is intact (%d cell events, %d requests, %d samples by this process): %s, then go on with --resume %s",
		filepath.Join(w.dir, name), err, note, w.cells.lines, w.requests.lines, w.samples.lines, remedy, w.dir)
	return w.err
}

// appender appends whole lines to one file.
type appender struct {
	name  string
	f     *os.File
	size  int64 // bytes up to the end of the last whole line
	lines int   // written by this process
	dirty bool  // written since the last sync
}

func openAppender(dir, name string) (appender, error) {
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return appender{}, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return appender{}, err
	}
	return appender{name: name, f: f, size: info.Size()}, nil
}

// append writes the line by one write. Of a line that fits only in part
// nothing is left.
func (a *appender) append(line []byte) error {
	a.dirty = true
	n, err := a.f.Write(line)
	if err == nil {
		a.size += int64(n)
		a.lines++
		return nil
	}
	if n > 0 {
		if cut := a.f.Truncate(a.size); cut != nil {
			return fmt.Errorf("%w (and a piece of a line of %d bytes could not be cut off: %w)", err, n, cut)
		}
	}
	return err
}

func (a *appender) sync() error {
	if !a.dirty {
		return nil
	}
	if err := a.f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // EINVAL: a file system without sync
		return err
	}
	a.dirty = false
	return nil
}

func (a *appender) close() error {
	if a.f == nil {
		return nil
	}
	return errors.Join(a.sync(), a.f.Close())
}

// encodeManifest makes the bytes of manifest.json, without secrets.
func encodeManifest(m *Manifest) ([]byte, error) {
	if m == nil {
		return nil, errors.New("results: no manifest was given")
	}
	c := *m
	switch c.Schema {
	case 0:
		c.Schema = Schema
	case Schema:
	default:
		return nil, fmt.Errorf("results: a manifest of schema %d cannot be written; this is schema %d", c.Schema, Schema)
	}
	c.Command = ScrubArgs(c.Command)
	c.Backends = append([]Backend(nil), c.Backends...)
	for i := range c.Backends {
		b := &c.Backends[i]
		b.Command, b.Endpoint = ScrubArgs(b.Command), ScrubText(b.Endpoint)
	}
	b, err := marshalIndent(c)
	if err != nil {
		return nil, fmt.Errorf("results: the manifest: %w", err)
	}
	if _, err := decodeManifest(b); err != nil { // what cannot be read back must not be written
		return nil, fmt.Errorf("results: the manifest: %w", err)
	}
	return b, nil
}

// replaceManifest writes beside manifest.json, flushes, and renames over it.
func replaceManifest(dir string, b []byte) (err error) {
	f, err := os.CreateTemp(dir, tempPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err != nil {
		return err
	}
	if err = f.Chmod(0o644); err != nil {
		return err
	}
	if err = f.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), filepath.Join(dir, manifestFile)); err != nil {
		return err
	}
	return syncDir(dir)
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}
