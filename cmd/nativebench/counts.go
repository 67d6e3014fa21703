package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/hub"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/tokenizer"
	"github.com/nativebench/nativebench/native"
)

// counter counts a model's prompts before they are sent.
type counter struct {
	plan.Counter // nil: nothing is known to count with
	entry        results.PromptCount
	close        func()
}

// vocabularyOf is the vocabulary, of those that llama.cpp's sources hold, that
// stands for a model's own, and in what it differs; "" if it is the model's own.
func vocabularyOf(m plan.Model) (file, differs string) {
	if m.Shape.VocabPre != "" {
		return m.Shape.VocabFile, fmt.Sprintf("it is another model's, without the tokens that %s has besides", m.Name)
	}
	return m.Shape.VocabFile, m.Shape.VocabNote
}

// counterOf opens what counts a model's prompts: the vocabulary in its weights,
// the user's, or one that came with the engine; by the engine, or without one
// by the tokenizer of this program. Those two give the same ids.
func (s *setup) counterOf(m plan.Model) (*counter, error) {
	c := &counter{entry: results.PromptCount{Model: m.Key}, close: func() {}}
	file, differs := vocabularyOf(m)
	path, hash := filepath.Join(s.engineDir, "vocab", file), ""
	held := s.models[m.Key]
	switch {
	case held != nil:
		path, differs, hash = held.file.Path, "", held.file.SHA256
	case s.plan.Vocab != "":
		path, differs = s.plan.Vocab, "" // that it is the model's is the user's word
	case s.cachedVocabulary(m) != "":
		path, differs = s.cachedVocabulary(m), ""
	case file == "":
		c.entry.Note = fmt.Sprintf("no vocabulary of %s comes with the engine; give --vocab FILE.gguf", m.Key)
		return c, nil
	}
	err := c.open(s.engineDir, path)
	switch {
	case err != nil && held == nil && errors.Is(err, fs.ErrNotExist):
		c.entry.Note = fmt.Sprintf("there is no %s: `make engine` fetches it; or give --vocab FILE.gguf", path)
		return c, nil
	case err != nil:
		c.entry.Note = err.Error()
		return c, nil
	}
	if hash == "" {
		if hash, _, err = hashFile(path); err != nil {
			c.close()
			return nil, err
		}
	}
	c.entry.Vocabulary, c.entry.SHA256, c.entry.Exact, c.entry.Note = path, hash, differs == "", differs
	return c, nil
}

// cachedVocabulary is the model's tokenizer.json in the hub's cache, where that
// is what weights would be taken from; "" if there is none that can be read.
func (s *setup) cachedVocabulary(m plan.Model) string {
	if s.weights != fromHub {
		return ""
	}
	have, err := hub.Find(m.HubID, s.revision)
	if err != nil {
		return ""
	}
	path := filepath.Join(have.Dir, tokenizer.JSONName)
	if _, err := tokenizer.OpenJSON(path); err != nil {
		return ""
	}
	return path
}

func (c *counter) open(engineDir, path string) error {
	if filepath.Base(path) == tokenizer.JSONName {
		t, err := tokenizer.OpenJSON(path)
		if err == nil {
			c.Counter = t
		}
		return err
	}
	if v, err := native.OpenVocab(engineDir, path); err == nil {
		c.Counter, c.close = v, func() { v.Close() }
		return nil
	}
	t, err := tokenizer.Open(path)
	if err == nil {
		c.Counter = t
	}
	return err
}

// exactly counts text with the model's own vocabulary; false if that is not at
// hand.
func (c *counter) exactly(text string) (int, bool) {
	if c.Counter == nil || !c.entry.Exact {
		return 0, false
	}
	n, err := c.CountTokens(text)
	return n, err == nil
}

// checkVocab refuses a --vocab that cannot be counted with. Without a backend
// that loads weights a file of --weights is that, too, and the tokenizer.json of
// an --hf-dir: nothing else of them is used.
func (s *setup) checkVocab() error {
	holders, flag := s.holders(), "--vocab"
	if s.plan.Vocab == "" && strings.HasSuffix(s.weights, ".gguf") && len(holders) == 0 {
		s.plan.Vocab, flag = s.weights, s.weightsFlag
	} else if s.plan.Vocab == "" && s.hfDir != "" && len(holders) == 0 {
		s.plan.Vocab, flag = filepath.Join(s.hfDir, tokenizer.JSONName), "--hf-dir"
	}
	path := s.plan.Vocab
	switch {
	case path == "":
		return nil
	case len(holders) > 0:
		return refuse("--vocab %s: %s has the weights here, and prompts are counted with their vocabulary; leave --vocab away", path, holders[0].name)
	case len(s.plan.Models) > 1:
		return refuse("%s %s is of one model, but %d are asked for (%s): name one --model", flag, path, len(s.plan.Models), strings.Join(s.plan.Models, ", "))
	}
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return refuse("%s %s: there is no such file; give a GGUF file, or a %s", flag, path, tokenizer.JSONName)
	}
	if filepath.Base(path) != tokenizer.JSONName { // which does not say whose it is
		f, err := gguf.ReadFile(path)
		if err != nil {
			return refuse("%s: %w", flag, err)
		}
		m, err := plan.ModelByKey(s.plan.Models[0])
		if err != nil {
			return usageError{err}
		}
		if arch, err := gguf.Get[string](f, "general.architecture"); err != nil || arch != m.Arch {
			return refuse("%s %s: it is of a %s model, and %s is %s: give that model's, or name the right --model (%s)", flag, path, arch, m.Key, m.Arch, modelKeys())
		}
	}
	c := counter{close: func() {}}
	switch err := c.open(s.engineDir, path); {
	case errors.Is(err, tokenizer.ErrUnsupported) && filepath.Base(path) == tokenizer.JSONName:
		return refuse("%s: %w; give --vocab FILE.gguf instead", flag, err)
	case errors.Is(err, tokenizer.ErrUnsupported):
		return refuse("%s: %w; leave it away, or use a program with the engine in it", flag, err)
	case err != nil:
		return refuse("%s: %w; give a GGUF file with the model's vocabulary", flag, err)
	}
	c.close()
	return nil
}

// fitted leaves out those of a task's built-in prompts that are shorter or
// longer than the task says. All fit with the vocabularies that they were made
// for.
func (s *setup) fitted(list []plan.Prompt, m plan.Model, c plan.Cell, counts *counter) []plan.Prompt {
	t, err := plan.TaskByKey(c.Task)
	if err != nil {
		return list
	}
	fit := slices.DeleteFunc(slices.Clone(list), func(p plan.Prompt) bool {
		n, ok := counts.exactly(m.Render(p.Text))
		if !ok {
			return false
		}
		return n < t.InputTokens[0] || n > t.InputTokens[1]
	})
	switch {
	case len(fit) == 0:
		s.countNotes = append(s.countNotes, fmt.Sprintf("%s: all %d prompts of %s lie outside the task's %s tokens and are used nevertheless", m.Key, len(list), t.Key, span(t.InputTokens)))
		return list
	case len(fit) < len(list):
		s.countNotes = append(s.countNotes, fmt.Sprintf("%s: %d of %d prompts of %s lie outside the task's %s tokens and were left out", m.Key, len(list)-len(fit), len(list), t.Key, span(t.InputTokens)))
	}
	return fit
}

// recorded tells that the built-in prompts were counted with the model's own
// tokenizer when they were written.
func recorded(m plan.Model, tasks []string) bool {
	for _, task := range tasks {
		for _, p := range plan.Prompts(task) {
			if p.Tokens[m.Key] == 0 {
				return false
			}
		}
	}
	return true
}

// countText says how a model's prompts were counted.
func countText(c results.PromptCount) string {
	switch {
	case c.Exact && c.Vocabulary != "":
		return "exact, with the vocabulary in " + c.Vocabulary
	case c.Exact:
		return "exact, recorded when they were written"
	case c.Vocabulary != "":
		return fmt.Sprintf("approximate, with the vocabulary in %s: %s", c.Vocabulary, c.Note)
	}
	return "unknown: " + c.Note
}
