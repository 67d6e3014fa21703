package results

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// Names inside a run directory.
const (
	manifestFile  = "manifest.json"
	cellsFile     = "cells.jsonl"
	requestsFile  = "requests.jsonl"
	telemetryFile = "telemetry.jsonl"
	lockFile      = "lock"
	logsDir       = "logs"
	tempPrefix    = ".manifest-" // an unfinished manifest of a writer that was killed
)

// maxManifest bounds manifest.json, in bytes.
const maxManifest = MaxLine

// Read reads a run directory as it is, whether its run is over, under way or
// was killed. What cannot be read is left out and reported in Run.Damage. It is
// an error only when the directory cannot be understood at all: no manifest, or
// one of a newer schema.
func Read(dir string) (*Run, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	run := &Run{Dir: dir, Manifest: *m}
	if err := readFile(run, cellsFile, decodeEvent, func(e CellEvent) { run.Events = append(run.Events, e) }); err != nil {
		return nil, err
	}
	if err := run.readRequests(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(dir, telemetryFile)); errors.Is(err, fs.ErrNotExist) {
		run.damage("%s is missing", telemetryFile)
	}
	run.reportStrangers()
	return run, nil
}

func (r *Run) damage(format string, args ...any) {
	r.Damage = append(r.Damage, fmt.Sprintf(format, args...))
}

// readRequests reads the records and drops a measured request that is there
// twice: it would be counted twice.
func (r *Run) readRequests() error {
	first := firsts()
	twice := 0
	err := readFile(r, requestsFile, decodeRecord, func(rec Record) {
		if !first(&rec) {
			twice++
			return
		}
		r.Records = append(r.Records, rec)
	})
	if twice > 0 {
		r.damage("%s", toldTwice(twice))
	}
	return err
}

// reportStrangers reports lines of cells that the manifest does not name.
func (r *Run) reportStrangers() {
	known := make(map[string]bool, len(r.Manifest.Cells))
	for _, c := range r.Manifest.Cells {
		known[c.ID] = true
	}
	lines := map[string]int{}
	for i := range r.Events {
		if id := r.Events[i].Cell; !known[id] {
			lines[id]++
		}
	}
	for i := range r.Records {
		if id := r.Records[i].Cell; !known[id] {
			lines[id]++
		}
	}
	ids := make([]string, 0, len(lines))
	for id := range lines {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	for i, id := range ids {
		if i == 10 {
			r.damage("%s does not name %d further cells either; not used", manifestFile, len(ids)-i)
			break
		}
		r.damage("%s does not name the cell %.80q; its %d lines are not used", manifestFile, id, lines[id])
	}
}

// maxDamage bounds how many bad lines of one file are described one by one.
const maxDamage = 20

// readFile reads one JSONL file of a run into keep, with damage reported.
func readFile[T any](r *Run, name string, decode func([]byte) (T, error), keep func(T)) error {
	bad := 0
	tail, err := readLines(filepath.Join(r.Dir, name), decode, func(v T, err error) bool {
		if err == nil {
			keep(v)
		} else if bad++; bad <= maxDamage {
			r.damage("%s", err)
		}
		return true
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		r.damage("%s is missing", name)
		return nil
	case err != nil:
		return fmt.Errorf("reading run %s: %w", r.Dir, err)
	}
	if bad > maxDamage {
		r.damage("%s: %d further lines were left out", name, bad-maxDamage)
	}
	if tail.torn > 0 {
		r.damage("%s: %s", name, tail.describe())
	}
	return nil
}

// ending is what follows the last whole line of a JSONL file.
type ending struct {
	torn int64 // bytes that are no line
	line int   // their line number, from 1
}

func (e ending) describe() string {
	return fmt.Sprintf("the last line (%d) is cut off after %d bytes; left out", e.line, e.torn)
}

// readLines gives every line of a JSONL file to yield, decoded, or the error
// that says which line is not what it should be; yield returns false to stop.
// A last line without its newline is taken if it is whole JSON.
func readLines[T any](path string, decode func([]byte) (T, error), yield func(T, error) bool) (ending, error) {
	f, err := openRegular(path)
	if err != nil {
		return ending{}, err
	}
	defer f.Close()
	name := filepath.Base(path)
	in := lineReader{r: bufio.NewReaderSize(f, 64<<10)}
	for n := 1; ; n++ {
		line, size, err := in.next()
		if err != nil && !errors.Is(err, io.EOF) {
			return ending{}, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		var none T
		switch {
		case errors.Is(err, io.EOF) && size == 0:
			return ending{}, nil
		case errors.Is(err, io.EOF): // no newline at the end
			v, err := decode(line)
			if line == nil || err != nil {
				return ending{torn: size, line: n}, nil
			}
			yield(v, nil)
			return ending{}, nil
		case line == nil:
			if !yield(none, fmt.Errorf("%s:%d: a line of %d bytes, longer than %d; left out", name, n, size, MaxLine)) {
				return ending{}, nil
			}
		case len(bytes.TrimSpace(line)) == 0:
			// An empty line holds nothing that could be lost.
		default:
			v, err := decode(line)
			if err != nil {
				err = fmt.Errorf("%s:%d: %w; left out", name, n, err)
			}
			if !yield(v, err) {
				return ending{}, nil
			}
		}
	}
}

// lineReader splits into lines of at most MaxLine bytes.
type lineReader struct {
	r   *bufio.Reader
	buf []byte
}

// next returns a line without its newline, valid until the next call, and its
// size with it. The line is nil when it is too long. The error is io.EOF for a
// line that ends without a newline, an empty one included.
func (l *lineReader) next() (line []byte, size int64, err error) {
	l.buf = l.buf[:0]
	for {
		part, err := l.r.ReadSlice('\n')
		size += int64(len(part))
		if size <= MaxLine {
			l.buf = append(l.buf, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if size > MaxLine {
			l.buf = l.buf[:0]
			return nil, size, err
		}
		if l.buf == nil {
			l.buf = []byte{}
		}
		return bytes.TrimSuffix(l.buf, []byte("\n")), size, err
	}
}

// openRegular opens a file and refuses what would block or never end.
func openRegular(path string) (*os.File, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	return os.Open(path)
}

func readManifest(dir string) (*Manifest, error) {
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("reading run %s: there is no such directory", dir)
	case err != nil:
		return nil, fmt.Errorf("reading run %s: %w", dir, err)
	case !info.IsDir():
		return nil, fmt.Errorf("reading run %s: not a directory; name the directory that holds %s", dir, manifestFile)
	}
	f, err := openRegular(filepath.Join(dir, manifestFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("reading run %s: not a run directory: it holds no %s", dir, manifestFile)
	}
	if err != nil {
		return nil, fmt.Errorf("reading run %s: %w", dir, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, fmt.Errorf("reading run %s: %s: %w", dir, manifestFile, err)
	}
	m, err := decodeManifest(b)
	if err != nil {
		return nil, fmt.Errorf("reading run %s: %s: %w", dir, manifestFile, err)
	}
	return m, nil
}

// decodeManifest looks at the schema first: the rest of a newer one need not
// fit today's types.
func decodeManifest(b []byte) (*Manifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("longer than %d bytes", maxManifest)
	}
	var head struct {
		Schema *int
		Tool   struct{ Version string } `json:"nativebench"`
	}
	err := json.Unmarshal(b, &head)
	var wrongType *json.UnmarshalTypeError
	if err != nil && (head.Schema == nil || !errors.As(err, &wrongType)) {
		return nil, fmt.Errorf("not a manifest: %w", err)
	}
	switch {
	case head.Schema == nil:
		return nil, errors.New(`not a manifest: it has no "schema"`)
	case *head.Schema > Schema:
		return nil, fmt.Errorf("schema %d, written by nativebench %.40q; this nativebench reads schemas up to %d: use that version or a newer one",
			*head.Schema, head.Tool.Version, Schema)
	case *head.Schema < 1:
		return nil, fmt.Errorf("not a manifest: schema %d", *head.Schema)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("not a manifest of schema %d: %w", *head.Schema, err)
	}
	seen := make(map[string]bool, len(m.Cells))
	for i, c := range m.Cells {
		if c.ID == "" {
			return nil, fmt.Errorf("cell %d has no id", i)
		}
		if seen[c.ID] {
			return nil, fmt.Errorf("the cell %.80q is there twice", c.ID)
		}
		seen[c.ID] = true
	}
	return &m, nil
}

func decodeEvent(line []byte) (CellEvent, error) {
	var e CellEvent
	if err := json.Unmarshal(line, &e); err != nil {
		return e, fmt.Errorf("not a cell event: %w", err)
	}
	if e.Doubts == nil {
		e.Doubts = doubtsOf(e.Warnings)
	}
	return e, e.check()
}

func (e *CellEvent) check() error {
	switch {
	case e.Cell == "":
		return errors.New("not a cell event: no cell is named")
	case e.Attempt < 1:
		return fmt.Errorf("not a cell event: attempt %d (they count from 1)", e.Attempt)
	}
	switch e.State {
	case CellStarted, CellDone, CellFailed, CellInterrupted:
		return nil
	}
	return fmt.Errorf("not a cell event: unknown state %.40q", e.State)
}

func decodeRecord(line []byte) (Record, error) {
	var r Record
	if err := json.Unmarshal(line, &r); err != nil {
		return r, fmt.Errorf("not a request: %w", err)
	}
	return r, r.check()
}

func (r *Record) check() error {
	switch {
	case r.Cell == "":
		return errors.New("not a request: no cell is named")
	case r.Attempt < 1:
		return fmt.Errorf("not a request: attempt %d (they count from 1)", r.Attempt)
	}
	return nil
}

func decodeSample(line []byte) (Sample, error) {
	var s Sample
	if err := json.Unmarshal(line, &s); err != nil {
		return s, fmt.Errorf("not a sample: %w", err)
	}
	return s, s.check()
}

func (s *Sample) check() error {
	if s.Subject == "" {
		return errors.New("not a sample: no subject is named")
	}
	return nil
}
