package tokenizer

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
)

// JSONName is the file of a Hugging Face directory that OpenJSON reads.
const JSONName = "tokenizer.json"

// maxJSON bounds that file; those of the largest vocabularies have 35 MB.
const maxJSON = 128 << 20

// jsonFile is a tokenizer.json of Hugging Face's Tokenizers
// (https://github.com/huggingface/tokenizers, tokenizer/serialization.rs), as
// far as it is read.
type jsonFile struct {
	Added []struct {
		ID      int    `json:"id"`
		Content string `json:"content"`
		Special bool   `json:"special"`
	} `json:"added_tokens"`
	Normalizer jsonPart `json:"normalizer"`
	Splitter   jsonPart `json:"pre_tokenizer"`
	Processor  jsonPart `json:"post_processor"`
	Model      struct {
		Type         string         `json:"type"`
		Vocab        map[string]int `json:"vocab"`
		Merges       []jsonMerge    `json:"merges"`
		Unknown      string         `json:"unk_token"`
		ByteFallback bool           `json:"byte_fallback"`
	} `json:"model"`
}

// jsonPart is any of the steps around the model.
type jsonPart struct {
	Type     string                         `json:"type"`
	Parts    []jsonPart                     `json:"-"` // of a Sequence
	Pattern  struct{ Regex, String string } `json:"pattern"`
	Scheme   string                         `json:"prepend_scheme"`
	Prefix   *bool                          `json:"add_prefix_space"`
	UseRegex *bool                          `json:"use_regex"`
	Single   []map[string]json.RawMessage   `json:"single"`
}

// UnmarshalJSON reads a part, which may be null, and the parts of a Sequence,
// which have three names.
func (p *jsonPart) UnmarshalJSON(text []byte) error {
	type plain jsonPart
	var all struct {
		plain
		A []jsonPart `json:"normalizers"`
		B []jsonPart `json:"pretokenizers"`
		C []jsonPart `json:"processors"`
	}
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	*p = jsonPart(all.plain)
	p.Parts = slices.Concat(all.A, all.B, all.C)
	return nil
}

// list is the part itself, or the parts of a Sequence.
func (p jsonPart) list() []jsonPart {
	switch p.Type {
	case "":
		return nil
	case "Sequence":
		return p.Parts
	}
	return []jsonPart{p}
}

// jsonMerge is "a b" or, since Tokenizers 0.20, ["a", "b"].
type jsonMerge string

func (m *jsonMerge) UnmarshalJSON(text []byte) error {
	var pair [2]string
	if json.Unmarshal(text, &pair) == nil {
		*m = jsonMerge(pair[0] + " " + pair[1])
		return nil
	}
	return json.Unmarshal(text, (*string)(m))
}

// OpenJSON reads the vocabulary of the tokenizer.json at path. Of add_bos_token
// and add_eos_token the tokenizer_config.json beside it has the last word, if
// there is one. The ids are those that llama.cpp gives with the GGUF file that
// its converter makes of the same. The error wraps ErrUnsupported if the file is
// sound but of a kind that is not known.
func OpenJSON(path string) (*Tokenizer, error) {
	f, err := JSONMetadata(path)
	if err != nil {
		return nil, err
	}
	t, err := New(f)
	if err != nil {
		return nil, fmt.Errorf("the vocabulary in %s: %w", path, err)
	}
	return t, nil
}

// JSONMetadata is what a GGUF file's metadata would say of the vocabulary in the
// tokenizer.json at path.
func JSONMetadata(path string) (*gguf.File, error) {
	var j jsonFile
	if err := readJSON(path, &j); err != nil {
		return nil, err
	}
	kv, err := j.metadata()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	var config struct {
		BOS *bool `json:"add_bos_token"`
		EOS *bool `json:"add_eos_token"`
	}
	if err := readJSON(strings.TrimSuffix(path, JSONName)+"tokenizer_config.json", &config); err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	bos, eos, err := j.around()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if config.BOS != nil {
		bos = *config.BOS
	}
	if config.EOS != nil {
		eos = *config.EOS
	}
	return &gguf.File{KV: append(kv,
		gguf.KV{Key: "tokenizer.ggml.add_bos_token", Value: bos}, gguf.KV{Key: "tokenizer.ggml.add_eos_token", Value: eos},
		gguf.KV{Key: "tokenizer.ggml.bos_token_id", Value: uint32(0)}, // which one is not told, and does not matter
	)}, nil
}

func readJSON(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := json.NewDecoder(io.LimitReader(f, maxJSON)).Decode(into); err != nil {
		return fmt.Errorf("%s is not a tokenizer's JSON: %w", path, err)
	}
	return nil
}

// metadata is the vocabulary under llama.cpp's keys.
func (j *jsonFile) metadata() ([]gguf.KV, error) {
	if j.Model.Type != "BPE" && j.Model.Type != "" || len(j.Model.Vocab) == 0 || len(j.Model.Merges) == 0 {
		return nil, fmt.Errorf("%w: its model is %q; BPE is known", ErrUnsupported, j.Model.Type)
	}
	size := 0
	for _, id := range j.Model.Vocab {
		size = max(size, id+1)
	}
	for _, a := range j.Added {
		size = max(size, a.ID+1)
	}
	if most := 2 * (len(j.Model.Vocab) + len(j.Added)); size > most {
		return nil, fmt.Errorf("its ids go up to %d, with %d tokens", size-1, most/2)
	}
	tokens, types := make([]string, size), slices.Repeat([]int32{typeUnused}, size)
	set := func(id int, token string, typ int32) error {
		if id < 0 || tokens[id] != "" && tokens[id] != token {
			return fmt.Errorf("two tokens have the id %d", id)
		}
		tokens[id], types[id] = token, typ
		return nil
	}
	for token, id := range j.Model.Vocab {
		typ := int32(TypeNormal)
		if token == j.Model.Unknown {
			typ = typeUnknown
		} else if j.Model.ByteFallback && isByte(token) {
			typ = typeByte
		}
		if err := set(id, token, typ); err != nil {
			return nil, err
		}
	}
	for _, a := range j.Added {
		typ := int32(typeUserDefined)
		if a.Special {
			typ = typeControl
		}
		if a.Content == j.Model.Unknown {
			typ = typeUnknown
		}
		if err := set(a.ID, a.Content, typ); err != nil {
			return nil, err
		}
	}
	for id, token := range tokens {
		if token == "" {
			tokens[id] = fmt.Sprintf("[PAD%d]", id) // as the converter calls it
		}
	}
	kv := []gguf.KV{{Key: "tokenizer.ggml.tokens", Value: tokens}, {Key: "tokenizer.ggml.token_type", Value: types}}
	if j.Model.ByteFallback {
		return j.pieces(kv, tokens)
	}
	return j.bytes(kv)
}

func isByte(token string) bool {
	return len(token) == 6 && strings.HasPrefix(token, "<0x") && token[5] == '>'
}

// splits are the patterns that make a pre-tokenizer of llama.cpp's, in
// tokenizer.json of Llama 3 and of Qwen2.
var splits = map[string]string{
	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`: "llama-bpe",
	`(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`:      "qwen2",
}

// bytes is byte-level BPE.
func (j *jsonFile) bytes(kv []gguf.KV) ([]gguf.KV, error) {
	for _, n := range j.Normalizer.list() {
		if n.Type != "NFC" { // which llama.cpp leaves out
			return nil, fmt.Errorf("%w: its normalizer is %q", ErrUnsupported, n.Type)
		}
	}
	pre, known := "", false
	switch parts := j.Splitter.list(); {
	case len(parts) == 1 && parts[0].Type == "ByteLevel" && isFalse(parts[0].Prefix) && !isFalse(parts[0].UseRegex):
		pre, known = "gpt-2", true
	case len(parts) == 2 && parts[0].Type == "Split" && parts[1].Type == "ByteLevel" && isFalse(parts[1].UseRegex):
		pre, known = splits[parts[0].Pattern.Regex]
	}
	if !known {
		return nil, fmt.Errorf("%w: its pre-tokenizer is none of those of GPT-2, Llama 3 and Qwen2", ErrUnsupported)
	}
	var merges []string
	for _, m := range j.Model.Merges {
		merges = append(merges, string(m))
	}
	return append(kv, gguf.KV{Key: "tokenizer.ggml.model", Value: "gpt2"}, gguf.KV{Key: "tokenizer.ggml.pre", Value: pre}, gguf.KV{Key: "tokenizer.ggml.merges", Value: merges}), nil
}

func isFalse(b *bool) bool { return b != nil && !*b }

// pieces is SentencePiece's BPE. The earlier a piece is merged, the higher its
// score was: so Hugging Face's converters order merges.
func (j *jsonFile) pieces(kv []gguf.KV, tokens []string) ([]gguf.KV, error) {
	prefix := false
	for _, p := range slices.Concat(j.Normalizer.list(), j.Splitter.list()) {
		switch p.Type {
		case "Prepend":
			prefix = true
		case "Metaspace":
			prefix = p.Scheme != "never" && !isFalse(p.Prefix)
		case "Replace":
			if p.Pattern.String != " " {
				return nil, fmt.Errorf("%w: its normalizer replaces %q", ErrUnsupported, p.Pattern.String)
			}
		default:
			return nil, fmt.Errorf("%w: its normalizer or pre-tokenizer is %q", ErrUnsupported, p.Type)
		}
	}
	scores := slices.Repeat([]float32{float32(-len(j.Model.Merges))}, len(tokens))
	for rank, m := range slices.Backward(j.Model.Merges) { // the first of a piece last
		if id, ok := j.Model.Vocab[strings.Replace(string(m), " ", "", 1)]; ok {
			scores[id] = float32(-rank)
		}
	}
	return append(kv, gguf.KV{Key: "tokenizer.ggml.model", Value: "llama"}, gguf.KV{Key: "tokenizer.ggml.scores", Value: scores}, gguf.KV{Key: "tokenizer.ggml.add_space_prefix", Value: prefix}), nil
}

// around tells which special tokens a prompt gets, one before it and one after.
func (j *jsonFile) around() (bos, eos bool, err error) {
	for _, p := range j.Processor.list() {
		switch p.Type {
		case "ByteLevel":
		case "TemplateProcessing":
			seen := false
			for _, part := range p.Single {
				if _, ok := part["Sequence"]; ok {
					seen = true
				} else if seen {
					eos = true
				} else {
					bos = true
				}
			}
		default:
			return false, false, fmt.Errorf("%w: its post-processor is %q", ErrUnsupported, p.Type)
		}
	}
	return bos, eos, nil
}
