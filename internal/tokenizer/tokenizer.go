// Package tokenizer turns text into token ids without an engine: what prompts
// are counted with where llama.cpp is not at hand.
//
// It reads the vocabulary of a GGUF file and gives the ids that llama.cpp of
// the pinned release gives, including what that does with invalid UTF-8 and
// with special tokens written in the text. Two kinds of vocabulary are known:
// byte-level BPE (with the pre-tokenizers of GPT-2, Llama 3 and Qwen2) and
// SentencePiece's BPE as Llama has it. Any other is refused: a count is exact,
// or there is none.
package tokenizer

import (
	"errors"
	"fmt"

	"github.com/nativebench/nativebench/internal/gguf"
)

// ErrUnsupported is wrapped in the error for a vocabulary of a kind that is not
// known here.
var ErrUnsupported = errors.New("not a kind of vocabulary that can be counted with here")

// Tokenizer is a vocabulary. It does not change; any goroutine may use it.
type Tokenizer struct {
	model    model
	pairs    pairs
	specials []special
	prefixes []string // one for each beginning of a special token
	around   int      // BOS and EOS, those of them that a prompt gets
}

// model is one of the two ways from text to tokens.
type model interface {
	// tokenize appends the ids of text, in which nothing is special. after
	// tells that it begins the prompt or follows a special token.
	tokenize(m *merger, ids []int32, text string, after bool) ([]int32, error)
}

// none is no token and no symbol.
const none int32 = -1

// Open reads the vocabulary of the GGUF file at path: a whole model, or a
// vocabulary only. The error wraps ErrUnsupported if the file is sound but its
// vocabulary is of a kind that is not known.
func Open(path string) (*Tokenizer, error) {
	f, err := gguf.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t, err := New(f)
	if err != nil {
		return nil, fmt.Errorf("the vocabulary in %s: %w", path, err)
	}
	return t, nil
}

// Tokenize returns the ids of text, without BOS. Special tokens written in the
// text are parsed. It is an error if the vocabulary cannot express the text.
func (t *Tokenizer) Tokenize(text string) ([]int32, error) { return t.tokenize(text, true) }

// CountTokens returns how many tokens a backend counts for text as a prompt:
// BOS included where the tokenizer adds one.
func (t *Tokenizer) CountTokens(text string) (int, error) {
	ids, err := t.tokenize(text, true)
	return len(ids) + t.around, err
}

// tokenize parses special tokens if control is set. Those that their makers
// declared to be text are parsed always.
func (t *Tokenizer) tokenize(text string, control bool) ([]int32, error) {
	m := &merger{pairs: t.pairs}
	ids := make([]int32, 0, len(text)/3+8)
	after := true
	for _, f := range t.partition(text, control) {
		if f.id != none {
			ids, after = append(ids, f.id), true
			continue
		}
		var err error
		if ids, err = t.model.tokenize(m, ids, f.text, after); err != nil {
			return nil, err
		}
		after = false
	}
	return ids, nil
}
