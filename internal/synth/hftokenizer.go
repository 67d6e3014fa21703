package synth

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// object is a JSON object, whose members encoding/json sorts by name.
type object map[string]any

// files gives the tokenizer's files as Hugging Face's libraries read them, by
// name.
func (v *vocabulary) files(context int) (map[string][]byte, error) {
	if v.pre == "" {
		return v.sentencePieceFiles(context)
	}
	return v.bpeFiles(context)
}

// preTokenizer is what tokenizer.json and its companions say of a pre-tokenizer
// of llama.cpp's.
type preTokenizer struct {
	class   string // of Transformers
	split   string // regular expression; "" for the one of ByteLevel
	addsBOS bool
	files   bool // vocab.json and merges.txt are there too
}

func preTokenizers() map[string]preTokenizer {
	return map[string]preTokenizer{
		"gpt-2": {class: "GPT2Tokenizer", files: true},
		"phi-2": {class: "CodeGenTokenizer", files: true},
		"llama-bpe": {
			class: "PreTrainedTokenizerFast", addsBOS: true,
			split: `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`,
		},
	}
}

func byteLevel(addPrefixSpace, trimOffsets, useRegex bool) object {
	return object{"type": "ByteLevel", "add_prefix_space": addPrefixSpace, "trim_offsets": trimOffsets, "use_regex": useRegex}
}

// addedTokens are tokenizer.json's added_tokens and tokenizer_config.json's
// added_tokens_decoder: what is found in a text before it is split.
func (v *vocabulary) addedTokens(normalized bool) (list []object, decoder object) {
	decoder = object{}
	for id, kind := range v.kinds {
		if kind != kindControl && kind != kindUnknown && kind != kindAdded {
			continue
		}
		token := object{"content": v.tokens[id], "lstrip": false, "normalized": normalized, "rstrip": false, "single_word": false, "special": kind != kindAdded}
		decoder[fmt.Sprint(id)] = token
		withID := object{"id": id}
		for k, x := range token {
			withID[k] = x
		}
		list = append(list, withID)
	}
	return list, decoder
}

// bosTemplate puts BOS before a text.
func (v *vocabulary) bosTemplate() object {
	bos := object{"SpecialToken": object{"id": v.tokens[v.bos], "type_id": 0}}
	text := func(id string, typeID int) object { return object{"Sequence": object{"id": id, "type_id": typeID}} }
	second := object{"SpecialToken": object{"id": v.tokens[v.bos], "type_id": 1}}
	return object{
		"type": "TemplateProcessing", "single": []object{bos, text("A", 0)}, "pair": []object{bos, text("A", 0), second, text("B", 1)},
		"special_tokens": object{v.tokens[v.bos]: object{"id": v.tokens[v.bos], "ids": []int{v.bos}, "tokens": []string{v.tokens[v.bos]}}},
	}
}

// bpeFiles are those of byte-level BPE.
func (v *vocabulary) bpeFiles(context int) (map[string][]byte, error) {
	pre := preTokenizers()[v.pre]
	eos, bos := v.tokens[v.eos], v.tokens[v.bos]
	var known []string // but those added to it
	for id, token := range v.tokens {
		if v.kinds[id] == kindAdded || v.kinds[id] == kindUnused {
			break
		}
		known = append(known, token)
	}
	ids := orderedVocab(known)
	added, decoder := v.addedTokens(v.pre != "llama-bpe")
	splitter, processor := byteLevel(false, true, true), byteLevel(true, false, true)
	if pre.split != "" {
		splitter = object{"type": "Sequence", "pretokenizers": []object{
			{"type": "Split", "pattern": object{"Regex": pre.split}, "behavior": "Isolated", "invert": false},
			byteLevel(false, true, false),
		}}
	}
	if pre.addsBOS {
		processor = object{"type": "Sequence", "processors": []object{processor, v.bosTemplate()}}
	}
	config := object{
		"tokenizer_class": pre.class, "model_max_length": context, "clean_up_tokenization_spaces": false,
		"bos_token": bos, "eos_token": eos, "added_tokens_decoder": decoder,
	}
	special := object{"bos_token": bos, "eos_token": eos}
	out := map[string][]byte{}
	if pre.files {
		config["add_prefix_space"], config["unk_token"], special["unk_token"] = false, eos, eos
		out["vocab.json"] = ids
		out["merges.txt"] = []byte("#version: 0.2\n" + strings.Join(v.merges, "\n") + "\n")
	}
	return out, encodeAll(out, map[string]any{
		"tokenizer.json": object{
			"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added,
			"normalizer":     nil,
			"pre_tokenizer":  splitter,
			"post_processor": processor,
			"decoder":        byteLevel(true, true, true),
			"model": object{
				"type": "BPE", "dropout": nil, "unk_token": nil, "continuing_subword_prefix": "", "end_of_word_suffix": "",
				"fuse_unk": false, "byte_fallback": false, "ignore_merges": pre.split != "",
				// "a b", not ["a","b"]: Transformers before 4.45 reads only this form, newer ones both.
				"vocab": json.RawMessage(ids), "merges": v.merges,
			},
		},
		"tokenizer_config.json":   config,
		"special_tokens_map.json": special,
	})
}

// sentencePieceFiles are those of a SentencePiece model of BPE with bytes to
// fall back on, in SentencePiece's form and in that of Hugging Face's Tokenizers.
// The class is the general one, which does what tokenizer.json says: Transformers
// 5 makes its LlamaTokenizer anew from the vocabulary, without the blank before
// a text that begins with one.
func (v *vocabulary) sentencePieceFiles(context int) (map[string][]byte, error) {
	unk := slices.Index(v.kinds, kindUnknown)
	if unk < 0 {
		return nil, fmt.Errorf("the vocabulary %s has no unknown token", v.file)
	}
	eos, bos := v.tokens[v.eos], v.tokens[v.bos]
	added, decoder := v.addedTokens(false)
	var processor any
	if v.addsBOS {
		processor = v.bosTemplate()
	}
	replace := func(from, to string) object {
		return object{"type": "Replace", "pattern": object{"String": from}, "content": to}
	}
	out := map[string][]byte{"tokenizer.model": v.sentencePieceModel()}
	return out, encodeAll(out, map[string]any{
		"tokenizer.json": object{
			"version": "1.0", "truncation": nil, "padding": nil, "added_tokens": added,
			"normalizer":     object{"type": "Sequence", "normalizers": []object{{"type": "Prepend", "prepend": "▁"}, replace(" ", "▁")}},
			"pre_tokenizer":  nil,
			"post_processor": processor,
			"decoder": object{"type": "Sequence", "decoders": []object{
				replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
			}},
			"model": object{
				"type": "BPE", "dropout": nil, "unk_token": v.tokens[unk], "continuing_subword_prefix": nil, "end_of_word_suffix": nil,
				"fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
				"vocab": json.RawMessage(orderedVocab(v.tokens)), "merges": v.scoreMerges(),
			},
		},
		"tokenizer_config.json": object{
			"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": context, "clean_up_tokenization_spaces": false,
			"add_bos_token": v.addsBOS, "add_eos_token": false,
			"bos_token": bos, "eos_token": eos, "unk_token": v.tokens[unk], "added_tokens_decoder": decoder,
		},
		"special_tokens_map.json": object{"bos_token": bos, "eos_token": eos, "unk_token": v.tokens[unk]},
	})
}

// scoreMerges are the merges that do what SentencePiece does by scores: of all
// pairs of pieces side by side that make a piece it joins those of the best
// score. Pairs of one piece are ordered by their ids, as in the converter of
// Transformers.
func (v *vocabulary) scoreMerges() []string {
	ids := make(map[string]int, len(v.tokens))
	for id, token := range v.tokens {
		ids[token] = id
	}
	type merge struct {
		left, right string
		piece       int
	}
	var all []merge
	for id, token := range v.tokens {
		if v.kinds[id] != kindNormal {
			continue
		}
		for i, r := range token {
			at := i + utf8.RuneLen(r)
			_, left := ids[token[:at]]
			_, right := ids[token[at:]]
			if at < len(token) && left && right {
				all = append(all, merge{token[:at], token[at:], id})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b merge) int {
		switch {
		case v.scores[a.piece] != v.scores[b.piece]:
			if v.scores[a.piece] > v.scores[b.piece] {
				return -1
			}
			return 1
		case a.piece != b.piece:
			return a.piece - b.piece
		case a.left != b.left:
			return ids[a.left] - ids[b.left]
		}
		return ids[a.right] - ids[b.right]
	})
	list := make([]string, len(all))
	for i, m := range all {
		list[i] = m.left + " " + m.right
	}
	return list
}

// encodeAll adds files of JSON.
func encodeAll(out map[string][]byte, files map[string]any) error {
	for name, content := range files {
		b, err := encodeJSON(content)
		if err != nil {
			return err
		}
		out[name] = b
	}
	return nil
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
