// Package hub has models of the Hugging Face hub on this machine: it finds what
// any program downloaded into the hub's standard cache, and downloads what is
// missing into the same layout, so that vLLM, TGI and Transformers reuse it.
//
// Layout, environment variables and wire format are those of the hub's own
// Python client, huggingface_hub 2.4.0: constants.py (variables, headers),
// file_download.py (layout, ETags, locks), _snapshot_download.py (references),
// _tree_cache.py (listings), hf_api.py (model_info), utils/_http.py (errors,
// rate limits), utils/_auth.py (tokens).
package hub

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// ErrMissing says that a model is not in the cache, or not whole.
var ErrMissing = errors.New("not in the cache")

// DefaultRevision is the branch that is meant where no revision is named.
const DefaultRevision = "main"

// Snapshot is a model's files of one commit, whole, on this machine.
type Snapshot struct {
	Repo     string // as it was asked for, "openai-community/gpt2"
	Revision string // the commit, 40 hexadecimal digits
	Dir      string // holds the files under their names; Transformers and vLLM load it
	Files    []File // those that loading the model needs, by name
}

// File is one file of a snapshot.
type File struct {
	Name  string // within the snapshot, with slashes
	Bytes int64
	// SHA256 is hexadecimal and of the content: of a large file that which its
	// blob is named by, of others that of what was read just now. It is "" where
	// a large file does not lie in such a blob; Verify fills it in.
	SHA256 string
}

// Bytes is the size of all files.
func (s *Snapshot) Bytes() (n int64) {
	for _, f := range s.Files {
		n += f.Bytes
	}
	return n
}

// CacheDir is where the hub's clients keep models: $HF_HUB_CACHE, else
// $HUGGINGFACE_HUB_CACHE (its old name), else hub/ in $HF_HOME, else
// $XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub
// (constants.py).
func CacheDir() (string, error) {
	for _, name := range []string{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"} {
		if dir := os.Getenv(name); dir != "" {
			return expand(dir)
		}
	}
	home, err := homeDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(home, "hub"), nil
}

// homeDir is HF_HOME of constants.py.
func homeDir() (string, error) {
	if dir := os.Getenv("HF_HOME"); dir != "" {
		return expand(dir)
	}
	if dir := os.Getenv("XDG_CACHE_HOME"); dir != "" {
		return expand(filepath.Join(dir, "huggingface"))
	}
	return expand("~/.cache/huggingface")
}

// expand resolves ~ and $VARIABLE, as the Python client does, and makes the path
// absolute.
func expand(dir string) (string, error) {
	if dir == "~" || strings.HasPrefix(dir, "~/") {
		home, err := os.UserHomeDir()
		if err != nil {
			return "", fmt.Errorf("the hub's cache needs a home directory: %w; set HF_HOME", err)
		}
		dir = home + dir[1:]
	}
	return filepath.Abs(os.ExpandEnv(dir))
}

// Find gives a model that lies whole in the cache, whoever downloaded it, and
// asks no network. A revision is a branch, a tag or a commit; "" is the default
// branch, as it was at the last download. If it is not there, or not whole, the
// error wraps ErrMissing and says what is missing.
func Find(repo, revision string) (*Snapshot, error) {
	dir, err := CacheDir()
	if err != nil {
		return nil, err
	}
	return find(dir, repo, revision)
}

func find(cache, repo, revision string) (*Snapshot, error) {
	if err := checkRepo(repo); err != nil {
		return nil, err
	}
	if revision == "" {
		revision = DefaultRevision
	}
	if err := checkRevision(revision); err != nil {
		return nil, err
	}
	folder := repoFolder(cache, repo)
	commit := revision
	if !isCommit(revision) {
		text, err := os.ReadFile(filepath.Join(folder, "refs", filepath.FromSlash(revision)))
		commit = strings.TrimSpace(string(text))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !isCommit(commit) {
			return nil, fmt.Errorf("%s, revision %s: %w %s", repo, revision, ErrMissing, cache)
		} else if err != nil {
			return nil, err
		}
	}
	return openSnapshot(cache, repo, commit)
}

// List gives all snapshots of a model that are whole in the cache, by commit.
func List(repo string) ([]*Snapshot, error) {
	if err := checkRepo(repo); err != nil {
		return nil, err
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(filepath.Join(repoFolder(cache, repo), "snapshots"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var list []*Snapshot
	for _, e := range entries {
		if !isCommit(e.Name()) {
			continue
		}
		s, err := openSnapshot(cache, repo, e.Name())
		switch {
		case errors.Is(err, ErrMissing):
		case err != nil:
			return nil, err
		default:
			list = append(list, s)
		}
	}
	return list, nil
}

// openSnapshot looks whether a commit's snapshot is whole. Files in it are links
// to blobs that were renamed into place when complete; that is not relied on:
// sizes are held against the hub's listing where the cache has one, and
// safetensors files against their own headers.
func openSnapshot(cache, repo, commit string) (*Snapshot, error) {
	folder := repoFolder(cache, repo)
	dir := filepath.Join(folder, "snapshots", commit)
	missing := func(format string, args ...any) error {
		return fmt.Errorf("%s, commit %.12s: %w %s as a whole: %s", repo, commit, ErrMissing, cache, fmt.Sprintf(format, args...))
	}
	var names []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		names = append(names, filepath.ToSlash(rel))
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s, commit %.12s: %w %s", repo, commit, ErrMissing, cache)
	} else if err != nil {
		return nil, err
	}
	listed := readTree(folder, commit)
	// Where the hub's listing is known, what should be there is chosen from it.
	all := names
	if listed != nil {
		all = nil
		for name := range listed {
			all = append(all, name)
		}
		slices.Sort(all)
	}
	wanted, err := choose(all, func(index string) ([]byte, error) {
		text, err := readBounded(filepath.Join(dir, filepath.FromSlash(index)), maxIndexBytes)
		if errors.Is(err, fs.ErrNotExist) {
			err = errors.New("it is not there")
		}
		return text, err
	})
	if err != nil {
		return nil, missing("%v", err)
	}
	s := &Snapshot{Repo: repo, Revision: commit, Dir: dir}
	for _, name := range wanted {
		p := filepath.Join(dir, filepath.FromSlash(name))
		st, err := os.Stat(p)
		if err != nil || !st.Mode().IsRegular() {
			if slices.Contains(names, "tokenizer.json") && slices.Contains(insideTokenizer(), name) {
				continue // other programs do not fetch it then
			}
			return nil, missing("%s is not there", name)
		}
		if entry, ok := listed[name]; ok && entry.Size != st.Size() {
			return nil, missing("%s has %d bytes of %d", name, st.Size(), entry.Size)
		}
		if strings.HasSuffix(name, ".safetensors") {
			if err := checkSafetensors(p, st.Size()); err != nil {
				return nil, missing("%s: %v", name, err)
			}
		} else if st.Size() == 0 && strings.HasSuffix(name, ".bin") {
			return nil, missing("%s is empty", name)
		}
		sum, err := contentHash(p, st.Size())
		if err != nil {
			return nil, err
		}
		s.Files = append(s.Files, File{Name: name, Bytes: st.Size(), SHA256: sum})
	}
	return s, nil
}

// contentHash is the SHA-256 of a file of a snapshot. A large file's blob is
// named by it (file_download.py: the blob is named by the ETag, which for LFS
// files is the SHA-256); others are read, if they are small.
func contentHash(p string, size int64) (string, error) {
	if blob := blobOf(p); isSHA256(blob) {
		return blob, nil
	}
	if size > maxIndexBytes {
		return "", nil
	}
	h := sha256.New()
	if err := hashInto(context.Background(), h, p, func(int) {}); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// blobOf is the name of the blob that a file of a snapshot is a link to, "" if it
// is none.
func blobOf(p string) string {
	target, err := os.Readlink(p)
	if err != nil {
		return ""
	}
	return filepath.Base(target)
}

// hashInto reads a file into h; read hears of the bytes.
func hashInto(ctx context.Context, h io.Writer, p string, read func(n int)) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	buffer := make([]byte, 1<<20)
	for ctx.Err() == nil {
		n, err := f.Read(buffer)
		h.Write(buffer[:n]) // of a hash: never fails
		read(n)
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// Verify reads all files and holds them against the hashes that name their
// blobs, and fills in the SHA256 that are not known. An error of Kind Corrupted
// says what to delete.
func (s *Snapshot) Verify(ctx context.Context, progress Progress) error {
	state := State{Total: s.Bytes()}
	for i, f := range s.Files {
		p := filepath.Join(s.Dir, filepath.FromSlash(f.Name))
		blob := blobOf(p)
		sum := sha256.New()
		named := blobHash(PlannedFile{Blob: blob, Bytes: f.Bytes})
		if err := hashInto(ctx, io.MultiWriter(sum, named), p, func(n int) {
			state.Done += int64(n)
			if progress != nil {
				progress(state)
			}
		}); err != nil {
			return err
		}
		if (isSHA256(blob) || isCommit(blob)) && hex.EncodeToString(named.Sum(nil)) != blob {
			real, err := filepath.EvalSymlinks(p)
			if err != nil {
				return err
			}
			return failure(Corrupted, "%s: %s is damaged, it is not what the hub's hash says: delete %s and pull the model again", s.Repo, f.Name, real)
		}
		s.Files[i].SHA256 = hex.EncodeToString(sum.Sum(nil))
	}
	return nil
}

// checkSafetensors holds a file's size against its header: the header's length
// in 8 bytes, the header in JSON, then tensors up to the largest of the
// data_offsets (https://github.com/huggingface/safetensors, "Format").
func checkSafetensors(p string, size int64) error {
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	var n uint64
	if err := binary.Read(f, binary.LittleEndian, &n); err != nil {
		return errors.New("too short for a safetensors file")
	}
	const maxHeader = 100_000_000 // the format's own limit
	if n > maxHeader || int64(n) > size-8 {
		return fmt.Errorf("it is cut: a header of %d bytes in a file of %d", n, size)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(f, text); err != nil {
		return err
	}
	var header map[string]json.RawMessage
	if err := json.Unmarshal(text, &header); err != nil {
		return fmt.Errorf("its header is damaged: %w", err)
	}
	var end int64
	for name, raw := range header {
		if name == "__metadata__" {
			continue
		}
		var tensor struct {
			Offsets [2]int64 `json:"data_offsets"`
		}
		if err := json.Unmarshal(raw, &tensor); err != nil {
			return fmt.Errorf("its header is damaged: %w", err)
		}
		end = max(end, tensor.Offsets[1])
	}
	if want := 8 + int64(n) + end; want != size {
		return fmt.Errorf("it has %d bytes, its header says %d", size, want)
	}
	return nil
}

// treeEntry is a file in the listing of a commit that the Python client keeps
// (_tree_cache.py).
type treeEntry struct {
	Size int64 `json:"size"`
}

// readTree reads trees/COMMIT.json. It is nil where there is none, or one that
// is not understood: the client ignores those too.
func readTree(folder, commit string) map[string]treeEntry {
	text, err := readBounded(filepath.Join(folder, "trees", commit+".json"), maxListingBytes)
	if err != nil {
		return nil
	}
	var tree struct {
		Version int                  `json:"format_version"`
		Files   map[string]treeEntry `json:"files"`
	}
	if json.Unmarshal(text, &tree) != nil || tree.Version != 1 || len(tree.Files) == 0 {
		return nil
	}
	for name := range tree.Files {
		if checkName(name) != nil {
			return nil
		}
	}
	return tree.Files
}

func readBounded(p string, limit int64) ([]byte, error) {
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, limit)
}

// readAll reads what is not larger than limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("it is larger than %d bytes", limit)
	}
	return text, err
}

// repoFolder is models--OWNER--NAME in the cache (repo_folder_name).
func repoFolder(cache, repo string) string {
	return filepath.Join(cache, folderName(repo))
}

func folderName(repo string) string { return "models--" + strings.ReplaceAll(repo, "/", "--") }

// What is put into paths and URLs is checked first.
var (
	repoPattern   = regexp.MustCompile(`^(\w[\w.-]*/)?\w([\w.-]*\w)?$`)
	commitPattern = regexp.MustCompile(`^[0-9a-f]{40}$`)
	sha256Pattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	refPattern    = regexp.MustCompile(`^[\w.+@/-]+$`)
)

func isCommit(s string) bool { return commitPattern.MatchString(s) }
func isSHA256(s string) bool { return sha256Pattern.MatchString(s) }

// checkRepo holds a repository's name against the hub's rules (validate_repo_id
// in utils/_validators.py).
func checkRepo(repo string) error {
	if len(repo) > 193 || !repoPattern.MatchString(repo) || strings.Contains(repo, "--") || strings.Contains(repo, "..") || strings.HasSuffix(repo, ".git") {
		return failure(BadInput, "%q is no name of a repository on the hub: give OWNER/NAME, as in openai-community/gpt2", repo)
	}
	return nil
}

func checkRevision(revision string) error {
	if len(revision) > 255 || !refPattern.MatchString(revision) || checkName(revision) != nil {
		return failure(BadInput, "%q is no revision: give a branch, a tag or a commit", revision)
	}
	return nil
}

// checkName refuses names of files that lead out of the snapshot's directory.
func checkName(name string) error {
	bad := name == "" || len(name) > 1024 || path.IsAbs(name) || strings.ContainsAny(name, "\\:\x00\n\r")
	for part := range strings.SplitSeq(name, "/") {
		bad = bad || part == "" || part == "." || part == ".." || len(part) > 255
	}
	if bad {
		return fmt.Errorf("the file name %.100q leads out of its directory", name)
	}
	return nil
}
