package hub

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// partial is a blob that is being downloaded, in blocks that arrive in any
// order. Two files lie beside the blobs:
//
//	BLOB.nativebench.incomplete   the content, of full length, with holes
//	BLOB.nativebench.blocks       a header, then one byte per block: '#' is here, '.' is not
//
// A block is marked after its bytes were synced to the disk, so that no hole is
// ever taken for data, not even after a power cut. The name is not
// BLOB.incomplete, because huggingface_hub before 2.0 took that for a file
// without holes and went on at its end.
type partial struct {
	blob  string // path of the blob to be
	file  *os.File
	marks *os.File
	block int64
	size  int64
	begin int64 // of the marks in their file

	mu   sync.Mutex
	have []byte
}

const (
	here    = '#'
	notHere = '.'
)

func incompletePath(blob string) string { return blob + ".nativebench.incomplete" }
func blocksPath(blob string) string     { return blob + ".nativebench.blocks" }

func marksHeader(size, block int64) string {
	return fmt.Sprintf("nativebench blocks 1 size %d block %d\n", size, block)
}

func countBlocks(size, block int64) int64 { return (size + block - 1) / block }

// readMarks gives the blocks of an earlier download that are on the disk; nil
// where there is none, or one that this program would not have written.
func readMarks(blob string, size, block int64) []byte {
	st, err := os.Lstat(incompletePath(blob))
	if err != nil || !st.Mode().IsRegular() || st.Size() != size {
		return nil
	}
	text, err := readBounded(blocksPath(blob), 16<<20)
	have, ok := bytes.CutPrefix(text, []byte(marksHeader(size, block)))
	if err != nil || !ok || int64(len(have)) != countBlocks(size, block) {
		return nil
	}
	return have
}

// arrived is how many bytes of a blob of that size an earlier download left.
func arrived(blob string, size, block int64) (n int64) {
	for i, b := range readMarks(blob, size, block) {
		if b == here {
			n += min(block, size-int64(i)*block)
		}
	}
	return n
}

// openPartial goes on with an earlier download of the blob, or begins one. The
// caller holds the blob's lock.
func openPartial(blob string, size, block int64) (p *partial, err error) {
	p = &partial{blob: blob, block: block, size: size, begin: int64(len(marksHeader(size, block)))}
	p.have = readMarks(blob, size, block)
	flags := os.O_RDWR
	if p.have == nil {
		if err := removePartial(blob); err != nil {
			return nil, err
		}
		flags |= os.O_CREATE | os.O_EXCL
		p.have = bytes.Repeat([]byte{notHere}, int(countBlocks(size, block)))
	}
	if p.file, err = os.OpenFile(incompletePath(blob), flags, 0o666); err != nil {
		return nil, err
	}
	if err = p.file.Truncate(size); err == nil {
		if p.marks, err = os.OpenFile(blocksPath(blob), flags, 0o666); err == nil && flags&os.O_CREATE != 0 {
			_, err = p.marks.WriteAt(append([]byte(marksHeader(size, block)), p.have...), 0)
		}
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func removePartial(blob string) error {
	// The marks first: without them the rest counts for nothing.
	for _, path := range []string{blocksPath(blob), incompletePath(blob)} {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (p *partial) close() {
	p.file.Close()
	if p.marks != nil {
		p.marks.Close()
	}
}

// missing gives the runs of missing blocks, each of at most most blocks, as
// byte offsets [from, to).
func (p *partial) missing(most int64) (runs [][2]int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := int64(0); i < int64(len(p.have)); {
		if p.have[i] == here {
			i++
			continue
		}
		from := i
		for i < int64(len(p.have)) && p.have[i] != here && i-from < most {
			i++
		}
		runs = append(runs, [2]int64{from * p.block, min(i*p.block, p.size)})
	}
	return runs
}

// has tells whether the block that begins at offset is here.
func (p *partial) has(offset int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.have[offset/p.block] == here
}

// write puts a whole block in place; offset is where it begins.
func (p *partial) write(offset int64, content []byte) error {
	if offset%p.block != 0 || int64(len(content)) != min(p.block, p.size-offset) {
		panic(fmt.Sprintf("hub: %d bytes at %d are not a block", len(content), offset))
	}
	if _, err := p.file.WriteAt(content, offset); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(p.file.Fd())); err != nil {
		return &os.PathError{Op: "fdatasync", Path: p.file.Name(), Err: err}
	}
	i := offset / p.block
	if _, err := p.marks.WriteAt([]byte{here}, p.begin+i); err != nil {
		return err
	}
	p.mu.Lock()
	p.have[i] = here
	p.mu.Unlock()
	return nil
}

// matches reads the whole content and holds it against the hash in the file's
// name.
func (p *partial) matches(f PlannedFile) (bool, error) {
	h := blobHash(f)
	if _, err := io.Copy(h, io.NewSectionReader(p.file, 0, p.size)); err != nil {
		return false, err
	}
	return hex.EncodeToString(h.Sum(nil)) == f.Blob, nil
}

// finish makes the blob of it. All must be here and match.
func (p *partial) finish() error {
	if err := p.file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(p.file.Name(), p.blob); err != nil {
		return err
	}
	if err := syncDir(filepath.Dir(p.blob)); err != nil {
		return err
	}
	return removePartial(p.blob)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
