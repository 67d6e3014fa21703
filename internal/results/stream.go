package results

import (
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
)

// ReadEvents is Read without the requests: what is small of a run. Its Records
// are empty; Requests gives them one by one.
func ReadEvents(dir string) (*Run, error) {
	m, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	run := &Run{Dir: dir, Manifest: *m}
	if err := readFile(run, cellsFile, decodeEvent, func(e CellEvent) { run.Events = append(run.Events, e) }); err != nil {
		return nil, err
	}
	for _, name := range []string{requestsFile, telemetryFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); errors.Is(err, fs.ErrNotExist) {
			run.damage("%s is missing", name)
		}
	}
	return run, nil
}

// Requests reads requests.jsonl line by line, all attempts, so that a long run
// need not fit in memory. A line that cannot be read comes as an error that
// says so, and the next ones follow; a measured request that is there twice
// comes once, and an error at the end counts them. A missing file has none.
func (r *Run) Requests() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		first := firsts()
		twice, stopped := 0, false
		tail, err := readLines(filepath.Join(r.Dir, requestsFile), decodeRecord, func(rec Record, err error) bool {
			if err == nil && !first(&rec) {
				twice++
				return true
			}
			stopped = !yield(rec, err)
			return !stopped
		})
		switch {
		case stopped, errors.Is(err, fs.ErrNotExist):
			return
		case err != nil:
			yield(Record{}, err)
			return
		case tail.torn > 0 && !yield(Record{}, fmt.Errorf("%s: %s", requestsFile, tail.describe())):
			return
		}
		if twice > 0 {
			yield(Record{}, errors.New(toldTwice(twice)))
		}
	}
}

// IsPart tells whether path names a file that a run is made of: one that must
// not be written over.
func IsPart(path string) bool {
	switch filepath.Base(path) {
	case manifestFile, cellsFile, requestsFile, telemetryFile, lockFile:
		_, err := os.Stat(filepath.Join(filepath.Dir(path), manifestFile))
		return err == nil
	}
	return false
}

// firsts tells of each record whether it is the first of its request. A
// measured one that came twice would be counted twice.
func firsts() func(*Record) bool {
	type key struct {
		cell       string
		attempt, i int
	}
	seen := map[key]bool{}
	return func(rec *Record) bool {
		k := key{rec.Cell, rec.Attempt, rec.Index}
		if !rec.Warmup && seen[k] {
			return false
		}
		seen[k] = true
		return true
	}
}

func toldTwice(n int) string {
	return fmt.Sprintf("%s: %d requests are there twice; the first of each is used", requestsFile, n)
}
