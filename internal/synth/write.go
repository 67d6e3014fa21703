package synth

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/nativebench/nativebench/internal/gguf"
)

func (j *job) ggufName() string { return fmt.Sprintf("%s-synthetic-%s.gguf", j.model.Key, j.dtype) }

// write makes all files of the model in dir and lists them, the GGUF first.
func (j *job) write(ctx context.Context, dir string, progress Progress) ([]File, error) {
	small, err := j.hfFiles()
	if err != nil {
		return nil, err
	}
	kv, table := j.metadata(), make([]gguf.Tensor, len(j.tensors))
	for i, t := range j.tensors {
		table[i] = t.ggufTensor(j.dtype)
	}
	total, err := j.bytes(kv, table, small)
	if err != nil {
		return nil, err
	}
	if err := checkSpace(dir, total); err != nil {
		return nil, err
	}
	if err := os.Mkdir(filepath.Join(dir, hfDir), 0o755); err != nil {
		return nil, err
	}
	w := &writer{dir: dir, total: total, progress: progress}
	err = w.together(ctx, map[string]content{
		j.ggufName(): func(ctx context.Context, out io.Writer) error {
			i := -1
			return gguf.Write(out, kv, table, func(_ gguf.Tensor, out io.Writer) error {
				i++ // tensors are asked for in the order of the table
				return j.tensors[i].writeTo(ctx, out, j.seed, form{dtype: j.dtype, stored: j.tensors[i].ggufDType(j.dtype)})
			})
		},
		filepath.Join(hfDir, safetensorsName): func(ctx context.Context, out io.Writer) error {
			return writeSafetensors(ctx, out, j.tensors, j.seed, j.dtype)
		},
	})
	if err != nil {
		return nil, err
	}
	for name, b := range small {
		if err := w.file(ctx, filepath.Join(hfDir, name), func(_ context.Context, out io.Writer) error {
			_, err := out.Write(b)
			return err
		}); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(w.files, func(a, b File) int {
		if a.Path == j.ggufName() {
			return -1
		}
		if b.Path == j.ggufName() {
			return 1
		}
		return strings.Compare(a.Path, b.Path)
	})
	return w.files, nil
}

// bytes is what the files will take.
func (j *job) bytes(kv []gguf.KV, table []gguf.Tensor, small map[string][]byte) (int64, error) {
	total, err := gguf.Size(kv, table)
	if err != nil {
		return 0, err
	}
	header, err := safetensorsHeader(j.tensors, j.dtype)
	if err != nil {
		return 0, err
	}
	total += int64(len(header)) + j.params()*j.dtype.bytes()
	for _, b := range small {
		total += int64(len(b))
	}
	return total, nil
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

// content writes a file's bytes.
type content func(ctx context.Context, out io.Writer) error

// writer writes files into a directory and keeps their hashes.
type writer struct {
	dir      string
	total    int64
	progress Progress

	mu    sync.Mutex
	done  int64
	files []File
}

// together writes files at the same time; they share nothing. When one fails
// the others stop, and its error is returned.
func (w *writer) together(ctx context.Context, files map[string]content) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error)
	for name, write := range files {
		go func() { ended <- w.file(ctx, name, write) }()
	}
	var first error
	for range files {
		if err := <-ended; err != nil && first == nil {
			first = err
			cancel()
		}
	}
	return first
}

// file writes one file to the disk and hashes it on the way.
func (w *writer) file(ctx context.Context, name string, write content) (err error) {
	f, err := os.OpenFile(filepath.Join(w.dir, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	out := &hashed{w: w, f: f, sum: sha256.New()}
	buf := bufio.NewWriterSize(out, 1<<20)
	if err := write(ctx, buf); err != nil {
		return err
	}
	if err := buf.Flush(); err != nil {
		return err
	}
	if err := f.Sync(); err != nil { // the name must not outlive the data in a power cut
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files = append(w.files, File{Path: name, Bytes: out.n, SHA256: hex.EncodeToString(out.sum.Sum(nil))})
	return nil
}

// hashed is a file that is hashed and counted as it is written.
type hashed struct {
	w   *writer
	f   *os.File
	sum hash.Hash
	n   int64
}

func (h *hashed) Write(b []byte) (int, error) {
	n, err := h.f.Write(b)
	h.sum.Write(b[:n])
	h.n += int64(n)
	h.w.mu.Lock()
	defer h.w.mu.Unlock()
	h.w.done += int64(n)
	if h.w.progress != nil {
		h.w.progress(h.w.done, h.w.total)
	}
	return n, err
}
