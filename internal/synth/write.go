package synth

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/nativebench/nativebench/internal/gguf"
)

func (j *job) ggufName() string { return fmt.Sprintf("%s-synthetic-%s.gguf", j.model.Key, j.dtype) }

// streams are the files that are not in had; those of one are written one after
// the other.
func (j *job) streams(had []File) (streams [][]content, err error) {
	if !slices.ContainsFunc(had, func(f File) bool { return f.Path == j.ggufName() }) {
		c, err := j.ggufContent()
		if err != nil {
			return nil, err
		}
		streams = append(streams, []content{c})
	}
	if j.hf {
		list, err := j.hfContents()
		if err != nil {
			return nil, err
		}
		streams = append(streams, list)
	}
	return streams, nil
}

// total is the size of all files.
func total(streams [][]content) (n int64) {
	for _, list := range streams {
		for _, c := range list {
			n += c.bytes
		}
	}
	return n
}

// write makes the files of the model that are not in had, in dir, and lists
// them.
func (j *job) write(ctx context.Context, dir string, had []File, progress Progress) ([]File, error) {
	streams, err := j.streams(had)
	if err != nil {
		return nil, err
	}
	if j.hf {
		if err := os.Mkdir(filepath.Join(dir, hfDir), 0o755); err != nil {
			return nil, err
		}
	}
	w := &writer{dir: dir, progress: progress, total: total(streams)}
	if err := checkSpace(dir, w.total); err != nil {
		return nil, err
	}
	if err := w.together(ctx, streams); err != nil {
		return nil, err
	}
	return w.files, nil
}

// sortFiles puts the GGUF file first.
func sortFiles(files []File) {
	slices.SortFunc(files, func(a, b File) int {
		if x, y := strings.HasSuffix(a.Path, ".gguf"), strings.HasSuffix(b.Path, ".gguf"); x != y {
			if x {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
}

func (j *job) ggufContent() (content, error) {
	kv, table := j.metadata(), make([]gguf.Tensor, len(j.tensors))
	for i, t := range j.tensors {
		table[i] = t.ggufTensor(j.dtype)
	}
	size, err := gguf.Size(kv, table)
	return content{j.ggufName(), size, func(ctx context.Context, out io.Writer) error {
		i := -1
		return gguf.Write(out, kv, table, func(_ gguf.Tensor, out io.Writer) error {
			i++ // tensors are asked for in the order of the table
			return j.tensors[i].writeTo(ctx, out, j.seed, form{dtype: j.dtype, stored: j.tensors[i].ggufDType(j.dtype)})
		})
	}}, err
}

// hfContents are the files of the Hugging Face directory.
func (j *job) hfContents() ([]content, error) {
	small, err := j.hfFiles()
	if err != nil {
		return nil, err
	}
	list, index, err := j.safetensors()
	if err != nil {
		return nil, err
	}
	if index != nil {
		small[safetensorsIndex] = index
	}
	for _, name := range slices.Sorted(maps.Keys(small)) {
		b := small[name]
		list = append(list, content{name, int64(len(b)), func(_ context.Context, out io.Writer) error {
			_, err := out.Write(b)
			return err
		}})
	}
	for i := range list {
		list[i].name = filepath.Join(hfDir, list[i].name)
	}
	return list, nil
}

// checkSpace compares what is needed with what the file system has for us.
func checkSpace(dir string, need int64) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("asking for free space: %w", err)
	}
	if free := int64(fs.Bavail) * int64(fs.Bsize); free < need {
		return fmt.Errorf("no space: %.1f MB are needed and %.1f MB are free; free some or choose another directory", float64(need)/1e6, float64(free)/1e6)
	}
	return nil
}

// content is a file to be written.
type content struct {
	name  string
	bytes int64
	write func(ctx context.Context, out io.Writer) error
}

// writer writes files into a directory and keeps their checksums.
type writer struct {
	dir      string
	total    int64
	progress Progress

	mu    sync.Mutex
	done  int64
	files []File
}

// together writes streams of files at the same time; they share nothing. When
// one fails the others stop, and its error is returned.
func (w *writer) together(ctx context.Context, streams [][]content) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error)
	for _, list := range streams {
		go func() {
			var err error
			for i := 0; i < len(list) && err == nil; i++ {
				err = w.file(ctx, list[i])
			}
			ended <- err
		}()
	}
	var first error
	for range streams {
		if err := <-ended; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	return first
}

// file writes one file to the disk and sums it on the way.
func (w *writer) file(ctx context.Context, c content) (err error) {
	f, err := os.OpenFile(filepath.Join(w.dir, c.name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	out := &summed{w: w, f: f}
	behind := newBehind(out)
	err = c.write(ctx, behind)
	if e := behind.close(); e != nil {
		err = e // which the other is a consequence of
	}
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil { // the name must not outlive the data in a power cut
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files = append(w.files, File{Path: c.name, Bytes: out.n, CRC32C: out.sum.String()})
	return nil
}

// summed is a file that is summed and counted as it is written.
type summed struct {
	w   *writer
	f   *os.File
	sum Checksum
	n   int64

	begun int64 // so many bytes of n are on their way to the disk
}

func (h *summed) Write(b []byte) (int, error) {
	h.sum.Write(b)
	n, err := h.f.Write(b)
	h.n += int64(n)
	// The disk begins now, and not when the kernel has too much or Sync asks, or it would
	// wait for the making. Where a file system cannot do that, Sync does.
	if h.n-h.begun >= writeback {
		_ = syscall.SyncFileRange(int(h.f.Fd()), h.begun, h.n-h.begun, syncFileRangeWrite)
		h.begun = h.n
	}
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.done += int64(n)
	if h.w.progress != nil {
		h.w.progress(h.w.done, h.w.total)
	}
	return n, err
}

// syncFileRangeWrite starts writing what is not yet under way, and does not wait
// for it (SYNC_FILE_RANGE_WRITE of sync_file_range(2)).
const syncFileRangeWrite = 2

// writeback is how many bytes are begun at once.
const writeback = 32 << 20

// behind writes in another goroutine than the one that makes the bytes.
type behind struct {
	full, free chan []byte // a buffer is in one of them, in use, or in buf
	buf        []byte
	ended      chan struct{}
	err        error // of the writing, valid when ended is closed
}

func newBehind(w io.Writer) *behind {
	// A megabyte stays in a core's cache; 4 were written at a third of the speed.
	const size, count = 1 << 20, 4
	b := &behind{full: make(chan []byte, count), free: make(chan []byte, count), buf: make([]byte, 0, size), ended: make(chan struct{})}
	for range count - 1 {
		b.free <- make([]byte, 0, size)
	}
	go func() {
		defer close(b.ended)
		for buf := range b.full {
			if _, b.err = w.Write(buf); b.err != nil {
				return
			}
			b.free <- buf[:0]
		}
	}()
	return b
}

func (b *behind) Write(p []byte) (int, error) {
	n := 0
	for n < len(p) {
		if len(b.buf) == cap(b.buf) {
			if err := b.pass(); err != nil {
				return n, err
			}
		}
		k := min(len(p)-n, cap(b.buf)-len(b.buf))
		b.buf = append(b.buf, p[n:n+k]...)
		n += k
	}
	return n, nil
}

// pass hands the full buffer on and takes an empty one.
func (b *behind) pass() error {
	b.full <- b.buf // which has room for all buffers
	select {
	case b.buf = <-b.free:
		return nil
	case <-b.ended:
		b.buf = b.buf[:0]
		return b.err
	}
}

// close writes what is left and waits for the writing to end.
func (b *behind) close() error {
	b.full <- b.buf
	close(b.full)
	<-b.ended
	return b.err
}
