package synth

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
)

// vocabulary is a real tokenizer, read from a GGUF file that holds nothing else.
type vocabulary struct {
	file, sha256 string // base name and hash of where it came from
	note         string // in what it is not the model's own
	kv           []gguf.KV
	pre          string    // pre-tokenizer of byte-level BPE; "" for SentencePiece
	tokens       []string  // by id, and names for the rows without one
	kinds        []int32   // by id, see below
	merges       []string  // of byte-level BPE, in order of priority
	scores       []float32 // of SentencePiece, by id
	bos, eos     int
	addsBOS      bool   // the tokenizer puts bos before every text
	quiet        []span // tokens that no text has
}

// Kinds of tokens (enum llama_token_type).
const (
	kindNormal  = 1
	kindUnknown = 2
	kindControl = 3
	kindAdded   = 4 // by hand, found in the text before anything else
	kindUnused  = 5
)

// addedTokens are what a pre-tokenizer's models have after GPT-2's vocabulary.
// Phi-2's tokenizer is CodeGen's, whose source code needs no more room for
// indentation than runs of 31 to 2 blanks and 9 to 2 tabs: llama.cpp's converter
// knows the tokenizer by a hash of what it does, and knows this one by it
// (TestTokenizersAreThoseOfTheHub).
func addedTokens(pre string) (list []string) {
	if pre != "phi-2" {
		return nil
	}
	for n := 31; n >= 2; n-- {
		list = append(list, strings.Repeat(" ", n))
	}
	for n := 9; n >= 2; n-- {
		list = append(list, strings.Repeat("\t", n))
	}
	return list
}

// readVocabulary reads the vocabulary of a model of that shape.
func readVocabulary(path string, shape plan.Shape) (*vocabulary, error) {
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("no vocabulary at %s: it comes with the sources of llama.cpp (models/%s); build the engine, or say where it is (%w)", path, filepath.Base(path), fs.ErrNotExist)
	case err != nil:
		return nil, fmt.Errorf("reading the vocabulary: %w", err)
	}
	f, err := gguf.Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return nil, fmt.Errorf("the vocabulary %s: %w", path, err)
	}
	sum := sha256.Sum256(b)
	v := &vocabulary{file: filepath.Base(path), sha256: hex.EncodeToString(sum[:]), note: shape.VocabNote}
	if err := v.fill(f, shape); err != nil {
		return nil, fmt.Errorf("the vocabulary %s: %w", path, err)
	}
	return v, nil
}

func (v *vocabulary) fill(f *gguf.File, shape plan.Shape) error {
	kind, err := gguf.Get[string](f, "tokenizer.ggml.model")
	if err != nil {
		return err
	}
	if v.tokens, err = gguf.Get[[]string](f, "tokenizer.ggml.tokens"); err != nil {
		return err
	}
	if v.kinds, err = gguf.Get[[]int32](f, "tokenizer.ggml.token_type"); err != nil {
		return err
	}
	added := addedTokens(shape.VocabPre)
	size := len(v.tokens)
	switch want := shape.Vocab - shape.Padding - len(added); {
	case size != want:
		return fmt.Errorf("it has %d tokens; the model has %d", size, want)
	case len(v.kinds) != size:
		return fmt.Errorf("it has %d tokens and %d types of tokens", size, len(v.kinds))
	}
	v.addsBOS, _ = gguf.Get[bool](f, "tokenizer.ggml.add_bos_token")
	switch kind {
	case "gpt2":
		err = v.fillBPE(f, shape.VocabPre)
	case "llama":
		if v.scores, err = gguf.Get[[]float32](f, "tokenizer.ggml.scores"); err == nil && len(v.scores) != size {
			err = fmt.Errorf("it has %d tokens and %d scores", size, len(v.scores))
		}
	default:
		err = fmt.Errorf("it is of kind %q; byte-level BPE, \"gpt2\", or SentencePiece, \"llama\", is needed", kind)
	}
	if err != nil {
		return err
	}
	for _, id := range []struct {
		key string
		to  *int
	}{{"bos", &v.bos}, {"eos", &v.eos}} {
		n, err := f.Int("tokenizer.ggml." + id.key + "_token_id")
		if err != nil {
			return err
		}
		if n < 0 || n >= int64(size) {
			return fmt.Errorf("its %s is token %d of %d", id.key, n, size)
		}
		*id.to = int(n)
	}
	for _, token := range added {
		v.tokens, v.kinds = append(v.tokens, token), append(v.kinds, kindAdded)
	}
	for id := len(v.tokens); id < shape.Vocab; id++ { // as llama.cpp's converter names them
		v.tokens, v.kinds = append(v.tokens, fmt.Sprintf("[PAD%d]", id)), append(v.kinds, kindUnused)
	}
	v.fillMetadata(f, shape.VocabPre)
	v.fillQuiet()
	return nil
}

func (v *vocabulary) fillBPE(f *gguf.File, pre string) (err error) {
	if v.merges, err = gguf.Get[[]string](f, "tokenizer.ggml.merges"); err != nil {
		return err
	}
	for _, m := range v.merges {
		if strings.Count(m, " ") != 1 {
			return fmt.Errorf("merge %q is not a pair", m)
		}
	}
	if v.pre, err = gguf.Get[string](f, "tokenizer.ggml.pre"); err != nil {
		return err
	}
	if pre != "" {
		v.pre = pre
	}
	t, ok := preTokenizers()[v.pre]
	if !ok {
		return fmt.Errorf("its pre-tokenizer is %q, which has no Hugging Face form here; there is one of %s", v.pre, strings.Join(slices.Sorted(maps.Keys(preTokenizers())), ", "))
	}
	v.addsBOS = v.addsBOS || t.addsBOS
	return nil
}

// fillMetadata takes over the file's keys, with what was added.
func (v *vocabulary) fillMetadata(f *gguf.File, pre string) {
	for _, kv := range f.KV {
		switch {
		case kv.Key == "tokenizer.ggml.tokens":
			kv.Value = v.tokens
		case kv.Key == "tokenizer.ggml.token_type":
			kv.Value = v.kinds
		case kv.Key == "tokenizer.ggml.pre" && pre != "":
			kv.Value = pre
		}
		if strings.HasPrefix(kv.Key, "tokenizer.") {
			v.kv = append(v.kv, kv)
		}
	}
}

// fillQuiet lists end of sequence and all tokens that stand for no text.
func (v *vocabulary) fillQuiet() {
	for id, kind := range v.kinds {
		if id != v.eos && kind != kindUnknown && kind != kindControl && kind != kindUnused {
			continue
		}
		at := int64(id)
		if last := len(v.quiet) - 1; last >= 0 && v.quiet[last].to == at {
			v.quiet[last].to++
		} else {
			v.quiet = append(v.quiet, span{at, at + 1})
		}
	}
}

// origin names where the vocabulary came from.
func (v *vocabulary) origin() string {
	text := v.file + " sha256:" + v.sha256
	if v.note != "" {
		text += " (" + v.note + ")"
	}
	return text
}

// encodeJSON leaves <|endoftext|> readable, unlike json.Marshal.
func encodeJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
