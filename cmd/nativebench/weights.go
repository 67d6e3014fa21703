package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nativebench/nativebench/internal/convert"
	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/internal/tokenizer"
)

// Values of --weights besides a GGUF file.
const (
	fromHub   = "hub"       // the model's own; or, as --hf-dir, in a directory of the user's
	synthetic = "synthetic" // random numbers in the model's shape
)

// syntheticSeed makes the weights that compare writes for itself. It is not the
// plan's seed: another choice of prompts must not mean another model.
const syntheticSeed = 1

// model is a model whose weights are on this machine.
type model struct {
	plan.Model
	file    results.Model
	context int // tokens per slot
	shape   gguf.Summary
}

// checkWeights refuses weights that cannot be had, before anything slow.
func (s *setup) checkWeights() error {
	from := "--weights " + s.weights
	if s.hfDir != "" && s.weights == fromHub {
		from = "--hf-dir " + s.hfDir
	}
	isFile := s.weights != synthetic && s.weights != fromHub
	switch {
	case s.weights != synthetic && (s.layers != 0 || s.width != 0):
		return refuse("--layers and --width are of --weights synthetic, not of %s: give that, or leave them away", from)
	case s.hfDir != "" && s.weightsGiven && !isFile:
		return refuse("--weights %s and --hf-dir %s both say whose weights: give one of them", s.weights, s.hfDir)
	case s.revision != "" && from != "--weights hub":
		return refuse("--revision %s is of --weights hub, not of %s: leave it away", s.revision, from)
	case s.weightsGiven && s.weights == synthetic && !slices.ContainsFunc(s.plan.Backends, func(name string) bool { return s.plan.Endpoints[name] == "" }):
		return refuse("--weights synthetic: nothing here loads weights, since every backend (%s) is at an --endpoint and has its own: leave it away, or add native to --backends", strings.Join(s.plan.Backends, ", "))
	case s.dtypeGiven && isFile:
		return refuse("--dtype %s: a GGUF file is measured as it is: leave it away, or convert another (nativebench models convert --type)", s.dtype)
	}
	if len(s.holders()) == 0 {
		return nil
	}
	if (from != "--weights "+fromHub && from != "--weights "+synthetic || s.revision != "") && len(s.plan.Models) > 1 {
		if s.revision != "" {
			from = "--revision " + s.revision
		}
		return refuse("%s is of one model, but %d are asked for (%s): name one --model", from, len(s.plan.Models), strings.Join(s.plan.Models, ", "))
	}
	for _, key := range s.plan.Models {
		var err error
		switch path := s.pathOf(key); {
		case path != "":
			err = s.checkFile(key, path)
		case s.weights == synthetic:
			if err = s.synthSpec(key).Check(); err != nil {
				err = refuse("--weights synthetic: %w; or give --weights FILE.gguf", err)
			}
		case s.hfDir != "":
			err = s.checkDirectory(key)
		default:
			err = s.checkHub(key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// checkFile refuses a GGUF file that cannot serve as the model, or not to all.
func (s *setup) checkFile(key, path string) error {
	if list := s.wantDirectory(); len(list) > 0 {
		dir := s.directoryOf(key)
		if dir == "" {
			return refuse("%s %s: %s loads a Hugging Face directory, not a GGUF file; give the same weights as --hf-dir DIR, or choose other --backends", s.weightsFlag, s.weights, list[0].name)
		}
		if _, err := os.Stat(filepath.Join(dir, "config.json")); err != nil {
			return refuse("--hf-dir %s: it has no config.json (%w); give a Hugging Face model directory", dir, err)
		}
	}
	if _, err := s.inspect(key, path); err != nil {
		return err
	}
	if list := s.wantDirectory(); len(list) > 0 {
		return sameVocabulary(path, s.directoryOf(key))
	}
	return nil
}

// sameVocabulary refuses a GGUF file and a Hugging Face directory whose tokens
// differ: they are not of one model. What is added to the vocabulary is left
// out, the converter writes some of it in another form; so is a directory whose
// tokenizer.json is missing or of a kind that is not known here.
func sameVocabulary(path, dir string) error {
	j, err := tokenizer.JSONMetadata(filepath.Join(dir, tokenizer.JSONName))
	if err != nil {
		return nil
	}
	f, err := gguf.ReadFile(path)
	if err != nil {
		return usageError{err}
	}
	tokens, err := gguf.Get[[]string](f, "tokenizer.ggml.tokens")
	if err != nil {
		return nil // the engine will tell
	}
	theirs, err := gguf.Get[[]string](j, "tokenizer.ggml.tokens")
	if err != nil {
		return usageError{err}
	}
	types, err := gguf.Get[[]int32](j, "tokenizer.ggml.token_type")
	if err != nil {
		return usageError{err}
	}
	for id, token := range theirs {
		if types[id] != tokenizer.TypeNormal {
			continue
		}
		other := "nothing"
		if id < len(tokens) {
			other = strconv.Quote(tokens[id])
		}
		if other != strconv.Quote(token) {
			return refuse("--hf-dir %s: token %d of its %s is %q, of %s %s: these are not the same weights; give both forms of one model", dir, id, tokenizer.JSONName, token, path, other)
		}
	}
	return nil
}

// checkDirectory refuses a Hugging Face directory that cannot be converted, or is
// another model's.
func (s *setup) checkDirectory(key string) error {
	spec, err := conversion(s.hfDir, s.dtype, s.engineDir)
	if err != nil {
		return err
	}
	if err := s.canConvert(spec); err != nil {
		return refuse("--hf-dir: %w", err)
	}
	m, err := plan.ModelByKey(key)
	if err != nil {
		return usageError{err}
	}
	switch shape, err := convert.Inspect(s.hfDir); {
	case err != nil:
		return refuse("--hf-dir: %w", err)
	case shape.Arch != m.HFType:
		return refuse("--hf-dir %s: its config.json says %q, and %s is %q: name the right --model (%s)", s.hfDir, shape.Arch, key, m.HFType, modelKeys())
	}
	return nil
}

// pathOf is the file of a model's weights; "" where nativebench makes it.
func (s *setup) pathOf(key string) string {
	if path := s.resumedPaths[key]; path != "" {
		return path
	}
	if s.weights == synthetic || s.weights == fromHub {
		return ""
	}
	return s.weights
}

// directoryOf is the Hugging Face directory of a model's weights; "" if there
// is none, or it lies beside synthetic ones in the cache.
func (s *setup) directoryOf(key string) string {
	if dir := s.resumedDirs[key]; dir != "" {
		return dir
	}
	if have := s.snapshots[key]; have != nil {
		return have.Dir
	}
	return s.hfDir
}

// inspect reads a GGUF file's header and refuses one that cannot serve as the
// model.
func (s *setup) inspect(key, path string) (*model, error) {
	m, err := plan.ModelByKey(key)
	if err != nil {
		return nil, usageError{err}
	}
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, refuse("%s %s: there is no such file; give a GGUF file, or %s, or %s", s.weightsFlag, path, fromHub, synthetic)
	case err != nil:
		return nil, refuse("%s: %w", s.weightsFlag, err)
	case st.IsDir():
		return nil, refuse("%s %s: it is a directory; give a GGUF file, or a Hugging Face directory as --hf-dir", s.weightsFlag, path)
	}
	f, err := gguf.ReadFile(path)
	if err != nil {
		return nil, refuse("%s: %w", s.weightsFlag, err)
	}
	shape, err := f.Summary()
	if err != nil {
		return nil, refuse("%s %s: %w", s.weightsFlag, path, err)
	}
	if shape.Arch != m.Arch {
		return nil, refuse("%s %s: it is a %s model, and %s is %s: name the right --model (%s)", s.weightsFlag, path, shape.Arch, key, m.Arch, modelKeys())
	}
	if shape.Tensors == 0 {
		return nil, refuse("%s %s: it holds no tensors, only a vocabulary; give a whole model", s.weightsFlag, path)
	}
	need := s.plan.SlotContext(m)
	if shape.Context > 0 && need > shape.Context {
		return nil, refuse("%s %s: it has a context of %d tokens, the plan needs %d for prompt and output: lower --max-tokens or --prompt-tokens", s.weightsFlag, path, shape.Context, need)
	}
	return &model{
		Model: m, shape: shape, context: min(roundUp(need, contextStep), m.Context),
		file: results.Model{
			Key: key, HubID: m.HubID, Path: path, Bytes: st.Size(), DType: shape.DType,
			Synthetic: shape.Synthetic, Seed: shape.Seed, Tokenizer: orElse(shape.Vocabulary, results.TokenizerInFile),
			Layers: shape.Layers, Width: shape.Width, Relative: relative(m, shape),
		},
	}, nil
}

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// relative says in what a file's shape is not the model's, "" if it is: what is
// measured of a relative is not the model's speed.
func relative(m plan.Model, shape gguf.Summary) string {
	var parts []string
	if shape.Layers != m.Shape.Layers {
		parts = append(parts, fmt.Sprintf("%d of %d layers", shape.Layers, m.Shape.Layers))
	}
	if shape.Width != m.Shape.Width {
		parts = append(parts, fmt.Sprintf("width %d of %d", shape.Width, m.Shape.Width))
	}
	return strings.Join(parts, ", ")
}

// contextStep is to what llama.cpp's server rounds a slot's context up: with
// that done here, all engines have caches of one size.
const contextStep = 256

func roundUp(n, step int) int { return (n + step - 1) / step * step }

// findModel gives the model's weights: the user's file, or one that is made of a
// Hugging Face directory or of random numbers, or was when it was first wanted.
func (s *setup) findModel(ctx context.Context, key string, show *liveLine) (*model, error) {
	path, want, dir := s.pathOf(key), "", s.directoryOf(key) // want: the Checksum
	switch {
	case path != "":
	case s.weights == synthetic:
		made, err := writeSynthetic(ctx, s.synthSpec(key), show)
		if err != nil {
			return nil, err
		}
		path, want, dir = made.GGUF, made.CRC32C, made.HFDir
	default:
		spec, err := conversion(dir, s.dtype, s.engineDir)
		if err != nil {
			return nil, err
		}
		made, err := convertShown(ctx, spec, show)
		if err != nil {
			return nil, err
		}
		path = made.Path
	}
	m, err := s.inspect(key, path)
	if err != nil {
		return nil, err
	}
	show.draw("checking " + path)
	defer show.erase()
	var sum synth.Checksum
	if m.file.SHA256, m.file.Bytes, err = hashFile(path, &sum); err != nil {
		return nil, err
	}
	m.file.HFPath = dir
	if want != "" && sum.String() != want {
		return nil, refuse("the synthetic weights in %s are damaged: delete that directory, it will be written again", filepath.Dir(path))
	}
	if err := describe(&m.file); err != nil {
		return nil, err
	}
	return m, nil
}

// synthSpec says which synthetic weights stand in for a model.
func (s *setup) synthSpec(key string) synth.Spec {
	return synth.Spec{
		Model: key, Seed: syntheticSeed, DType: s.dtype, VocabDir: filepath.Join(s.engineDir, "vocab"),
		Layers: s.layers, Width: s.width, GGUFOnly: len(s.wantDirectory()) == 0,
	}
}

// syntheticDir is where those weights are, in the user's cache.
func syntheticDir(spec synth.Spec) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", refuse("synthetic weights need a cache directory: %w; set XDG_CACHE_HOME, or give --weights FILE.gguf", err)
	}
	name := fmt.Sprintf("%s-%s-seed%d", spec.Model, strings.ToLower(spec.DType), spec.Seed)
	for _, size := range []struct {
		name string
		n    int
	}{{"layers", spec.Layers}, {"width", spec.Width}} {
		if size.n != 0 {
			name += fmt.Sprintf("-%s%d", size.name, size.n)
		}
	}
	return filepath.Join(cache, "nativebench", "models", name), nil
}

// writeSynthetic returns the synthetic weights in the user's cache, where they
// are written if they are not there yet.
func writeSynthetic(ctx context.Context, spec synth.Spec, show *liveLine) (*synth.Result, error) {
	dir, err := syntheticDir(spec)
	if err != nil {
		return nil, err
	}
	defer show.erase()
	return synth.Write(ctx, spec, dir, synthProgress(spec.Model, dir, show))
}

// synthProgress says once what is written, and on a terminal how far it is.
func synthProgress(name, dir string, show *liveLine) synth.Progress {
	said := false
	return func(done, total int64) {
		if !said {
			said = true
			show.line(fmt.Sprintf("writing synthetic weights of %s, %s, to %s", name, gib(total), dir))
		}
		show.draw(fmt.Sprintf("%.0f %% written", 100*float64(done)/float64(max(total, 1))))
	}
}

// weightBytes is the size of all tensors.
func (m *model) weightBytes() int64 { return m.shape.TensorBytes }
