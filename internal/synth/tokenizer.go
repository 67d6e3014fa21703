package synth

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
)

// vocabulary is a real tokenizer, read from a GGUF file that holds nothing else.
type vocabulary struct {
	file, sha256 string // base name and hash of where it came from
	kv           []gguf.KV
	tokens       []string // by id
	merges       []string // in order of priority
	special      []int    // ids of control tokens
	bos, eos     int
}

// readVocabulary reads a byte-level BPE vocabulary of size tokens.
func readVocabulary(path string, size int) (*vocabulary, error) {
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
	v := &vocabulary{file: filepath.Base(path), sha256: hex.EncodeToString(sum[:])}
	if err := v.fill(f, size); err != nil {
		return nil, fmt.Errorf("the vocabulary %s: %w", path, err)
	}
	return v, nil
}

func (v *vocabulary) fill(f *gguf.File, size int) error {
	for _, kv := range f.KV {
		if strings.HasPrefix(kv.Key, "tokenizer.") {
			v.kv = append(v.kv, kv)
		}
	}
	kind, err := gguf.Get[string](f, "tokenizer.ggml.model")
	if err != nil {
		return err
	}
	if kind != "gpt2" {
		return fmt.Errorf("it is of kind %q; byte-level BPE, \"gpt2\", is needed", kind)
	}
	if v.tokens, err = gguf.Get[[]string](f, "tokenizer.ggml.tokens"); err != nil {
		return err
	}
	if len(v.tokens) != size {
		return fmt.Errorf("it has %d tokens; the model has %d", len(v.tokens), size)
	}
	if v.merges, err = gguf.Get[[]string](f, "tokenizer.ggml.merges"); err != nil {
		return err
	}
	for _, m := range v.merges {
		if strings.Count(m, " ") != 1 {
			return fmt.Errorf("merge %q is not a pair", m)
		}
	}
	types, err := gguf.Get[[]int32](f, "tokenizer.ggml.token_type")
	if err != nil {
		return err
	}
	const control = 3 // LLAMA_TOKEN_TYPE_CONTROL
	for id, t := range types {
		if t == control {
			v.special = append(v.special, id)
		}
	}
	for _, id := range []struct {
		key string
		to  *int
	}{{"bos", &v.bos}, {"eos", &v.eos}} {
		n, err := f.Int("tokenizer.ggml." + id.key + "_token_id")
		if err != nil {
			return err
		}
		if n < 0 || n >= int64(size) || n >= int64(len(types)) || len(types) > size {
			return fmt.Errorf("its %s is token %d of %d, with %d token types", id.key, n, size, len(types))
		}
		*id.to = int(n)
	}
	return nil
}

// origin names where the vocabulary came from.
func (v *vocabulary) origin() string { return v.file + " sha256:" + v.sha256 }

// object is a JSON object, whose members encoding/json sorts by name.
type object map[string]any

// files gives the tokenizer's files as Hugging Face's libraries read them, by
// name.
func (v *vocabulary) files(context int) (map[string][]byte, error) {
	eos, bos := v.tokens[v.eos], v.tokens[v.bos]
	ids := orderedVocab(v.tokens)
	byteLevel := func(addPrefixSpace, trimOffsets bool) object {
		return object{"type": "ByteLevel", "add_prefix_space": addPrefixSpace, "trim_offsets": trimOffsets, "use_regex": true}
	}
	var added []object
	decoder := object{}
	for _, id := range v.special {
		token := object{"content": v.tokens[id], "lstrip": false, "normalized": true, "rstrip": false, "single_word": false, "special": true}
		decoder[fmt.Sprint(id)] = token
		withID := object{"id": id}
		for k, x := range token {
			withID[k] = x
		}
		added = append(added, withID)
	}
	out := map[string][]byte{
		"vocab.json": ids,
		"merges.txt": []byte("#version: 0.2\n" + strings.Join(v.merges, "\n") + "\n"),
	}
	for name, content := range map[string]any{
		"tokenizer.json": object{
			"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added,
			"normalizer":     nil,
			"pre_tokenizer":  byteLevel(false, true),
			"post_processor": byteLevel(true, false),
			"decoder":        byteLevel(true, true),
			"model": object{
				"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": "", "end_of_word_suffix": "",
				"fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
				// "a b", not ["a","b"]: Transformers before 4.45 reads only this form, newer ones both.
				"vocab": json.RawMessage(ids), "merges": v.merges,
			},
		},
		"tokenizer_config.json": object{
			"tokenizer_class": "GPT2Tokenizer", "model_max_length": context, "add_prefix_space": false, "clean_up_tokenization_spaces": false,
			"bos_token": bos, "eos_token": eos, "unk_token": eos, "added_tokens_decoder": decoder,
		},
		"special_tokens_map.json": object{"bos_token": bos, "eos_token": eos, "unk_token": eos},
	} {
		b, err := encodeJSON(content)
		if err != nil {
			return nil, err
		}
		out[name] = b
	}
	return out, nil
}

// orderedVocab is the JSON object of token to id, in the order of ids, as every
// reader of vocab.json expects to see it.
func orderedVocab(tokens []string) []byte {
	b := []byte{'{'}
	for id, token := range tokens {
		if id > 0 {
			b = append(b, ',')
		}
		name, _ := encodeJSON(token) // a string always encodes
		b = append(b, bytes.TrimSpace(name)...)
		b = fmt.Appendf(b, ":%d", id)
	}
	return append(b, '}')
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
