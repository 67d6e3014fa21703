package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/synth"
)

// synthetic is the value of --weights for random weights.
const synthetic = "synthetic"

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
	if s.weights != synthetic && (s.layers != 0 || s.width != 0) {
		return refuse("--layers and --width are of synthetic weights, and --weights is %s: leave them away", s.weights)
	}
	if len(s.holders()) == 0 {
		return nil
	}
	if s.weights != synthetic && len(s.plan.Models) > 1 {
		return refuse("--weights %s is one model, but %d are asked for (%s): name one --model", s.weights, len(s.plan.Models), strings.Join(s.plan.Models, ", "))
	}
	if s.converts() {
		if len(s.plan.Models) > 1 {
			return refuse("--hf-dir %s is one model, but %d are asked for (%s): name one --model", s.hfDir, len(s.plan.Models), strings.Join(s.plan.Models, ", "))
		}
		spec, err := conversion(s.hfDir, s.dtype, s.engineDir)
		if err != nil {
			return err
		}
		if err := spec.Check(); err != nil {
			return refuse("--hf-dir: %w", err)
		}
		return nil
	}
	for _, key := range s.plan.Models {
		if list := s.wantDirectory(); len(list) > 0 && s.pathOf(key) != "" {
			dir := s.directoryOf(key)
			if dir == "" {
				return refuse("--weights %s: %s loads a Hugging Face directory, not a GGUF file; give the same weights as --hf-dir DIR, or choose other --backends", s.weights, list[0].name)
			}
			if _, err := os.Stat(filepath.Join(dir, "config.json")); err != nil {
				return refuse("--hf-dir %s: it has no config.json (%w); give a Hugging Face model directory", dir, err)
			}
		}
		if path := s.pathOf(key); path != "" {
			if _, err := s.inspect(key, path); err != nil {
				return err
			}
		} else if err := s.synthSpec(key).Check(); err != nil {
			return refuse("--weights synthetic: %w; or give --weights FILE.gguf", err)
		}
	}
	return nil
}

// converts says that the weights are a Hugging Face directory and no file: it
// is converted.
func (s *setup) converts() bool { return s.resumed == nil && s.hfDir != "" && s.weights == synthetic }

// pathOf is the file of a model's weights; "" for synthetic ones in the cache.
func (s *setup) pathOf(key string) string {
	if path := s.resumedPaths[key]; path != "" {
		return path
	}
	if s.weights == synthetic {
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
		return nil, refuse("%s %s: there is no such file; give a GGUF file, or \"synthetic\"", s.weightsFlag, path)
	case err != nil:
		return nil, refuse("%s: %w", s.weightsFlag, err)
	case st.IsDir():
		return nil, refuse("%s %s: it is a directory; give a GGUF file, or \"synthetic\"", s.weightsFlag, path)
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

// findModel gives the model's weights: the user's file, or synthetic ones from
// the cache, where they are written the first time.
func (s *setup) findModel(ctx context.Context, key string, show *liveLine) (*model, error) {
	path, want, dir := s.pathOf(key), "", s.directoryOf(key)
	switch {
	case s.converts():
		spec, err := conversion(dir, s.dtype, s.engineDir)
		if err != nil {
			return nil, err
		}
		made, err := convertShown(ctx, spec, show)
		if err != nil {
			return nil, err
		}
		path = made.Path
	case path == "":
		made, err := writeSynthetic(ctx, s.synthSpec(key), show)
		if err != nil {
			return nil, err
		}
		path, want, dir = made.GGUF, made.SHA256, made.HFDir
	}
	m, err := s.inspect(key, path)
	if err != nil {
		return nil, err
	}
	show.draw("checking " + path)
	defer show.erase()
	if m.file.SHA256, m.file.Bytes, err = hashFile(path); err != nil {
		return nil, err
	}
	m.file.HFPath = dir
	if want != "" && m.file.SHA256 != want {
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

// syntheticDir is where synthetic weights are kept in the user's cache.
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
