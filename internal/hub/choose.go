package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

// maxIndexBytes bounds model.safetensors.index.json; that of a model with
// 100,000 tensors has about 10 MB.
const maxIndexBytes = 64 << 20

// companions are the files beside the weights that loading a causal language
// model reads: shape, generation defaults, tokenizer, chat template.
func companions() []string {
	return []string{
		"config.json", "generation_config.json",
		"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
		"vocab.json", "merges.txt", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json",
		"chat_template.json", "chat_template.jinja",
	}
}

// tokenizers are the files any of which makes a tokenizer.
func tokenizers() []string {
	return []string{"tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "tekken.json"}
}

// insideTokenizer are the files whose content tokenizer.json has too.
func insideTokenizer() []string {
	return append(tokenizers(), "merges.txt", "special_tokens_map.json", "added_tokens.json")
}

// choose picks of a repository's files those that are needed to load the model,
// by name: weights once, as safetensors where there are any, else PyTorch's, in
// the order in which Transformers looks for them (one file, then an index with
// its parts), and their companions. Formats of other programs and second copies
// (original/, consolidated*.safetensors) are left out. read gives the content of
// an index.
func choose(names []string, read func(index string) ([]byte, error)) ([]string, error) {
	have := map[string]bool{}
	for _, name := range names {
		have[name] = true
	}
	if !have["config.json"] {
		return nil, errors.New("config.json is not there")
	}
	if !slices.ContainsFunc(tokenizers(), func(name string) bool { return have[name] }) {
		return nil, errors.New("no tokenizer is there")
	}
	weights, err := chooseWeights(have, read)
	if err != nil {
		return nil, err
	}
	chosen := weights
	for _, name := range names {
		if slices.Contains(companions(), name) || path.Ext(name) == ".tiktoken" && path.Dir(name) == "." ||
			path.Dir(name) == "additional_chat_templates" && path.Ext(name) == ".jinja" {
			chosen = append(chosen, name)
		}
	}
	slices.Sort(chosen)
	return slices.Compact(chosen), nil
}

func chooseWeights(have map[string]bool, read func(index string) ([]byte, error)) ([]string, error) {
	for _, whole := range []string{"model.safetensors", "pytorch_model.bin"} {
		index := whole + ".index.json"
		switch {
		case have[whole]:
			return []string{whole}, nil
		case have[index]:
			text, err := read(index)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", index, err)
			}
			parts, err := indexParts(text)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", index, err)
			}
			for _, part := range parts {
				if !have[part] {
					return nil, fmt.Errorf("%s names %.100q, which is not there", index, part)
				}
			}
			return append(parts, index), nil
		}
	}
	for name := range have {
		if strings.HasSuffix(name, ".safetensors") || strings.HasSuffix(name, ".bin") {
			return nil, errors.New("there are weights, but neither model.safetensors nor pytorch_model.bin nor an index of their parts")
		}
	}
	return nil, errors.New("no weights are there (safetensors or PyTorch)")
}

// indexParts gives the files that an index of weights names.
func indexParts(text []byte) ([]string, error) {
	var index struct {
		Map map[string]string `json:"weight_map"`
	}
	if err := json.Unmarshal(text, &index); err != nil {
		return nil, fmt.Errorf("it is damaged: %w", err)
	}
	if len(index.Map) == 0 {
		return nil, errors.New("it names no weights")
	}
	parts := slices.Sorted(maps.Values(index.Map))
	return slices.Compact(parts), nil
}
