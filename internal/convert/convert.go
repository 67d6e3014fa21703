// Package convert makes a GGUF file of a Hugging Face model directory with
// llama.cpp's own converter (convert_hf_to_gguf.py) and quantizer
// (llama-quantize), both of the engine's pinned build. A result is kept and
// found again by the hashes of what it was made from.
package convert

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/launch"
)

// Types are what can be made, the default first. F16 and BF16 come from the
// converter; the others from the quantizer, which is given an F16 file made on
// the way: so all quantized types are the work of one program, and of the one
// that users quantize with.
func Types() []string { return []string{"f16", "bf16", "q8_0", "q4_k_m"} }

// Spec says what to convert.
type Spec struct {
	HFDir string // config.json, tokenizer files, *.safetensors or pytorch_model*.bin
	Type  string // one of Types(), in any case; "" is f16

	// Out is the file to write, which must not exist yet. "": a file in
	// CacheDir, where it is found again by the hashes of all that went into it.
	Out, CacheDir string

	EngineDir string // holds convert/ and llama-quantize
	PythonDir string // the environment that scripts/python-env.sh convert makes
}

// Result tells what was made of what. It is kept beside the GGUF file, in a
// file of its name with Suffix appended.
type Result struct {
	Path   string `json:"-"`
	Reused bool   `json:"-"` // nothing was made: it was there already

	Key    string `json:"key"` // hash of all that decides the GGUF's bytes
	Type   string `json:"type"`
	SHA256 string `json:"sha256"` // of the GGUF file
	Bytes  int64  `json:"bytes"`
	Params int64  `json:"params"`

	Name      string `json:"name"`               // of the model, general.name in the file
	HubID     string `json:"hub_id,omitempty"`   // if the directory is one of the hub's cache
	Revision  string `json:"revision,omitempty"` // commit of the hub's repository, likewise
	Synthetic bool   `json:"synthetic,omitempty"`
	Seed      uint64 `json:"seed,omitempty"` // of synthetic weights

	Source    string    `json:"source"`           // the directory
	Files     []File    `json:"files"`            // of it, which were converted
	Converter string    `json:"converter_sha256"` // hash of convert/, of the Python environment's pins and, where it was used, of the quantizer
	Python    string    `json:"python"`           // name of the environment, which holds the hash of its pins
	Began     time.Time `json:"began"`
	TookNS    int64     `json:"took_ns"`
}

// File is one file that was converted.
type File struct {
	Path   string `json:"path"` // relative to the directory
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// Suffix is appended to a GGUF file's name for that of its description.
const Suffix = ".json"

// Progress is told what is done and how far that is, in bytes. It is called by
// one goroutine at a time, a few times a second, and must be quick.
type Progress func(what string, done, total int64)

// ErrNoConverter says that this machine lacks what a conversion needs; the text
// says what, and what to do.
var ErrNoConverter = errors.New("there is no converter")

// ErrNoPython says, beside ErrNoConverter, what alone is missing.
var ErrNoPython = errors.New("its Python environment")

// Available says why nothing can be converted here; nil if it can.
func Available(engineDir, pythonDir string) error {
	const otherwise = "or give a GGUF file with --gguf PATH"
	for _, need := range []string{"convert/convert_hf_to_gguf.py", "llama-quantize"} {
		if _, err := os.Stat(filepath.Join(engineDir, need)); err != nil {
			return fmt.Errorf("%w to GGUF: the engine directory %s has no %s: build it anew (make engine), %s", ErrNoConverter, engineDir, need, otherwise)
		}
	}
	python := filepath.Join(pythonDir, "bin", "python")
	if st, err := os.Stat(python); err != nil || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%w to GGUF: %w %s is not there: make it (scripts/python-env.sh convert), %s", ErrNoConverter, ErrNoPython, pythonDir, otherwise)
	}
	return nil
}

// Check says what is wrong with a spec, before anything slow. Convert begins
// with it. Without HFDir it is about all else.
func (s Spec) Check() error {
	if !slices.Contains(Types(), s.typ()) {
		return fmt.Errorf("weights of type %q cannot be made: choose from %s", s.Type, strings.Join(Types(), ", "))
	}
	if s.HFDir != "" {
		if _, err := readDirectory(s.HFDir); err != nil {
			return err
		}
	}
	if err := s.outIsFree(); err != nil {
		return err
	}
	return Available(s.EngineDir, s.PythonDir)
}

func (s Spec) outIsFree() error {
	if s.Out == "" {
		return nil
	}
	if _, err := os.Lstat(s.Out); err == nil {
		return fmt.Errorf("%s exists already: name a file that does not, or remove it", s.Out)
	}
	return nil
}

func (s Spec) typ() string {
	if s.Type == "" {
		return Types()[0]
	}
	return strings.ToLower(s.Type)
}

// Convert makes the GGUF file, or finds it. Cancelling ctx ends the programs at
// work and leaves nothing behind. Two calls for one file, in this process or in
// two, make it once.
func Convert(ctx context.Context, s Spec, progress Progress) (*Result, error) {
	if progress == nil {
		progress = func(string, int64, int64) {}
	}
	if err := s.Check(); err != nil {
		return nil, err
	}
	dir, err := readDirectory(s.HFDir)
	if err != nil {
		return nil, err
	}
	files, err := dir.hash(ctx, progress)
	if err != nil {
		return nil, err
	}
	converter, python, err := s.converter(ctx)
	if err != nil {
		return nil, err
	}
	r := &Result{
		Type: strings.ToUpper(s.typ()), Name: dir.name, HubID: dir.hubID, Revision: dir.revision,
		Synthetic: dir.synthetic, Seed: dir.seed,
		Source: dir.path, Files: files, Converter: converter, Python: python, Params: dir.params,
	}
	r.Key = r.key()
	r.Path = s.Out
	if r.Path == "" {
		name := fileName(r.Name) + "-" + r.Type
		r.Path = filepath.Join(s.CacheDir, name+"-"+r.Key[:12], name+".gguf")
	}
	at, err := openPlace(ctx, r.Path, func() { progress("waiting for another process that converts to "+r.Path, 0, 0) })
	if err != nil {
		return nil, err
	}
	defer at.close()
	if s.Out == "" {
		if have, err := Read(r.Path); err == nil && have.Key == r.Key {
			have.Reused = true
			return have, nil
		}
	}
	if err := s.outIsFree(); err != nil { // somebody else may have been at it
		return nil, err
	}
	if err := at.clean(); err != nil {
		return nil, err
	}
	if err := s.write(ctx, r, dir, at, progress); err != nil {
		return nil, err
	}
	return r, nil
}

// Read reads the description beside a GGUF file; the error is fs.ErrNotExist
// where there is none. One that is of a file of another size is not believed.
// Whether the file's bytes are still those that were written, SHA256 tells.
func Read(path string) (*Result, error) {
	b, err := os.ReadFile(path + Suffix)
	if err != nil {
		return nil, err
	}
	r := &Result{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path+Suffix, err)
	}
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case r.SHA256 == "":
		return nil, fmt.Errorf("%s is not a description of a converted model: %w", path+Suffix, fs.ErrNotExist)
	case st.Size() != r.Bytes:
		return nil, fmt.Errorf("%s has %d bytes, not %d as when it was made", path, st.Size(), r.Bytes)
	}
	r.Path = path
	return r, nil
}

// key is the hash of all that decides the file's bytes.
func (r *Result) key() string {
	h := sha256.New()
	fmt.Fprintf(h, "1\n%s\n%s\n%s\n", r.Type, r.Converter, r.Name)
	for _, f := range r.Files {
		fmt.Fprintf(h, "%s %s\n", f.SHA256, f.Path)
	}
	return hex.EncodeToString(h.Sum(nil))
}

var unfit = regexp.MustCompile(`[^A-Za-z0-9._]+`)

// fileName makes a model's name fit for one.
func fileName(name string) string { return strings.Trim(unfit.ReplaceAllString(name, "-"), ".-") }

// converter is the hash of the programs that are used, and the name of the
// Python environment.
func (s Spec) converter(ctx context.Context) (sum, python string, err error) {
	h := sha256.New()
	add := func(path, name string) error {
		sum, _, err := hashFile(ctx, path, nil)
		fmt.Fprintf(h, "%s %s\n", sum, name)
		return err
	}
	root := filepath.Join(s.EngineDir, "convert")
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".py" {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return add(path, name)
	})
	if err != nil {
		return "", "", fmt.Errorf("the converter: %w", err)
	}
	if s.quantized() {
		for _, pattern := range []string{"llama-quantize", "libllama*.so", "libggml-base.so"} {
			paths, err := filepath.Glob(filepath.Join(s.EngineDir, pattern))
			if err != nil {
				return "", "", err
			}
			for _, path := range paths {
				if err := add(path, filepath.Base(path)); err != nil {
					return "", "", fmt.Errorf("the quantizer: %w", err)
				}
			}
		}
	}
	real, err := filepath.EvalSymlinks(s.PythonDir)
	if err != nil {
		return "", "", fmt.Errorf("the converter's Python environment: %w", err)
	}
	python = filepath.Base(real)
	fmt.Fprintln(h, python)
	return hex.EncodeToString(h.Sum(nil)), python, nil
}

func (s Spec) quantized() bool { return s.typ() != "f16" && s.typ() != "bf16" }

// write makes the file under temporary names and gives it its own when it is
// whole, the description last.
func (s Spec) write(ctx context.Context, r *Result, dir *directory, at *place, progress Progress) error {
	if err := at.checkSpace(s.typ(), dir); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(at.dir, tempStart)
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	r.Began = time.Now().UTC()
	first, log := s.typ(), filepath.Join(temp, "log")
	if s.quantized() {
		first = "f16"
	}
	made := filepath.Join(temp, first+".gguf")
	err = watched(ctx, made, dir.bytes(first), "converting to "+strings.ToUpper(first), progress, launch.Command{
		Name: "llama.cpp's convert_hf_to_gguf.py", LogPath: log,
		Argv: []string{
			filepath.Join(s.PythonDir, "bin", "python"), "-B", filepath.Join(s.EngineDir, "convert", "convert_hf_to_gguf.py"),
			"--outtype", first, "--model-name", r.Name, "--outfile", made, dir.path,
		},
		// Nothing of the user's own Python, and nothing from the network.
		Env: append(without(os.Environ(), "PYTHONPATH", "PYTHONHOME", "NO_LOCAL_GGUF"),
			"PYTHONNOUSERSITE=1", "HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1", "CUDA_VISIBLE_DEVICES="),
	})
	if err == nil && s.quantized() {
		from := made
		made = filepath.Join(temp, s.typ()+".gguf")
		err = watched(ctx, made, dir.bytes(s.typ()), "quantizing to "+r.Type, progress, launch.Command{
			Name: "llama.cpp's llama-quantize", LogPath: log,
			Argv: []string{filepath.Join(s.EngineDir, "llama-quantize"), from, made, r.Type},
		})
	}
	if err != nil {
		return fmt.Errorf("%s was not converted: %w", dir.path, err)
	}
	if err := r.finish(ctx, made, progress); err != nil {
		return err
	}
	return at.publish(made, r)
}

// without leaves variables out of an environment.
func without(env []string, names ...string) []string {
	return slices.DeleteFunc(env, func(pair string) bool {
		name, _, _ := strings.Cut(pair, "=")
		return slices.Contains(names, name)
	})
}

// finish looks at what was made, and hashes it.
func (r *Result) finish(ctx context.Context, made string, progress Progress) error {
	f, err := gguf.ReadFile(made)
	if err != nil {
		return fmt.Errorf("the converter made something that is no model: %w", err)
	}
	s, err := f.Summary()
	if err != nil {
		return fmt.Errorf("the converter made something that is no model: %w", err)
	}
	if s.Tensors == 0 || s.DType != r.Type {
		return fmt.Errorf("the converter made a file of %d tensors of type %s, not one of %s", s.Tensors, s.DType, r.Type)
	}
	r.Params = s.Params
	if r.SHA256, r.Bytes, err = hashFile(ctx, made, func(done int64) { progress("checking", done, f.Size) }); err != nil {
		return err
	}
	r.TookNS = time.Since(r.Began).Nanoseconds()
	return nil
}

// watched runs a program and tells how far the file that it writes has grown.
func watched(ctx context.Context, path string, total int64, what string, progress Progress, c launch.Command) error {
	progress(what, 0, total)
	ended := make(chan error, 1)
	go func() { ended <- launch.Run(ctx, c) }()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-ended:
			return err
		case <-tick.C:
			if st, err := os.Stat(path); err == nil {
				progress(what, min(st.Size(), total), total)
			} else {
				progress(what, 0, total)
			}
		}
	}
}
