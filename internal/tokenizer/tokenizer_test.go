package tokenizer

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/nativebench/nativebench/internal/gguf"
)

// file is a GGUF file of a vocabulary and nothing else.
func file(kind string, tokens []string, types []int32, more ...gguf.KV) *gguf.File {
	return &gguf.File{KV: append([]gguf.KV{
		{Key: "tokenizer.ggml.model", Value: kind},
		{Key: "tokenizer.ggml.tokens", Value: tokens},
		{Key: "tokenizer.ggml.token_type", Value: types},
	}, more...)}
}

func kv(key string, value any) gguf.KV { return gguf.KV{Key: "tokenizer.ggml." + key, Value: value} }

// smallBPE knows a, b, c, space and some of what they make; "d" it does not.
func smallBPE(more ...gguf.KV) *gguf.File {
	return mergedBy([]string{"b c", "a b", "Ġ ab", "ab c", "a b"}, more...)
}

func mergedBy(merges []string, more ...gguf.KV) *gguf.File {
	return file("gpt2",
		[]string{"a", "b", "c", "Ġ", "ab", "Ġab", "bc", "<|end|>", "  ", "Ã"},
		[]int32{1, 1, 1, 1, 1, 1, 1, 3, 4, 1},
		append([]gguf.KV{kv("pre", "gpt-2"), kv("merges", merges)}, more...)...)
}

func smallSentencePiece(more ...gguf.KV) *gguf.File {
	return file("llama",
		[]string{"<unk>", "<s>", "</s>", "<0x64>", "▁", "a", "b", "▁a", "ab", "▁ab", "ba", "<0xC3>", "<0xA9>"},
		[]int32{2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 6, 6},
		append([]gguf.KV{kv("scores", []float32{0, 0, 0, 0, -1, -1, -1, -2, -3, -4, -3, 0, 0})}, more...)...)
}

func TestTokenize(t *testing.T) {
	for _, c := range []struct {
		name string
		file *gguf.File
		text string
		want []int32
	}{
		{"nothing", smallBPE(), "", []int32{}},
		{"the earliest merge comes first", smallBPE(), "abc", []int32{0, 6}},
		{"a merge whose result is no token falls to bytes", mergedBy([]string{"a b", "ab c"}), "abc", []int32{0, 1, 2}},
		{"a space belongs to the word after it", smallBPE(), "ab ab", []int32{4, 5}},
		{"bytes that are no token are dropped", smallBPE(), "adb", []int32{0, 1}},
		{"special tokens are parsed", smallBPE(), "ab<|end|>ab", []int32{4, 7, 4}},
		{"tokens defined as text are parsed", smallBPE(), "a  b", []int32{0, 8, 1}},
		{"a byte of a character", smallBPE(), "é", []int32{9}},

		{"nothing", smallSentencePiece(), "", []int32{}},
		{"a space is put in front", smallSentencePiece(), "ab", []int32{9}},
		{"unless the file says no", smallSentencePiece(kv("add_space_prefix", false)), "ab", []int32{8}},
		{"of equal scores the leftmost", smallSentencePiece(kv("add_space_prefix", false)), "aba", []int32{8, 5}},
		{"unknown characters fall to bytes", smallSentencePiece(), "adé", []int32{7, 3, 11, 12}},
		{"after a special token a space is put again", smallSentencePiece(), "a</s>a", []int32{7, 2, 7}},
	} {
		tok, err := New(c.file)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got, err := tok.Tokenize(c.text); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %q is %v, %v; want %v", c.name, c.text, got, err, c.want)
		}
	}
}

func TestCountTokensAddsWhatAPromptGets(t *testing.T) {
	for _, c := range []struct {
		file *gguf.File
		want int
	}{
		{smallBPE(), 1},
		{smallBPE(kv("add_bos_token", true), kv("bos_token_id", uint32(7))), 2},
		{smallBPE(kv("add_eos_token", true)), 2},
		{smallSentencePiece(), 2},
		{smallSentencePiece(kv("add_bos_token", false)), 1},
	} {
		tok, err := New(c.file)
		if err != nil {
			t.Error(err)
			continue
		}
		if n, err := tok.CountTokens("ab"); err != nil || n != c.want {
			t.Errorf("%d tokens, %v; want %d", n, err, c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		want        string
		unsupported bool
		file        *gguf.File
	}{
		{`kind is "bert"`, true, file("bert", []string{"a"}, []int32{1})},
		{`pre-tokenizer is ""`, true, file("gpt2", []string{"a"}, []int32{1}, kv("merges", []string{}))},
		{`pre-tokenizer is "falcon"`, true, file("gpt2", []string{"a"}, []int32{1}, kv("pre", "falcon"), kv("merges", []string{}))},
		{"may be its fim_pre token", true, file("llama", []string{"<PRE>", "<fim_prefix>", "c"}, []int32{1, 1, 1})},
		{"special depends on the model", true, file("llama", []string{"<|end|>", "<|call|>"}, []int32{1, 1})},
		{"modern-bert", true, smallBPE(gguf.KV{Key: "general.name", Value: "Modern-BERT"})},
		{`lacks "tokenizer.ggml.model"`, false, &gguf.File{}},
		{`lacks "tokenizer.ggml.merges"`, false, file("gpt2", []string{"a"}, []int32{1}, kv("pre", "gpt-2"))},
		{`tokens 0 and 1 are both "a"`, false, file("llama", []string{"a", "a"}, []int32{1, 1})},
		{"2 tokens and 1 token types", false, file("llama", []string{"a", "b"}, []int32{1})},
		{"2 tokens and 1 scores", false, file("llama", []string{"a", "b"}, []int32{1, 1}, kv("scores", []float32{1}))},
		{"gets a BOS", false, smallBPE(kv("add_bos_token", true))},
	} {
		_, err := New(c.file)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%v; want one line with %q", err, c.want)
		}
		if errors.Is(err, ErrUnsupported) != c.unsupported {
			t.Errorf("%v: unsupported: %v", err, !c.unsupported)
		}
	}
}

func TestTextThatCannotBeExpressed(t *testing.T) {
	for _, c := range []struct {
		file *gguf.File
		text string
	}{
		{smallSentencePiece(), "x"},
		{smallBPE(), "a\xf4\x90\x80\x80"},
	} {
		tok, err := New(c.file)
		if err != nil {
			t.Fatal(err)
		}
		if ids, err := tok.Tokenize(c.text); err == nil {
			t.Errorf("%q: %v", c.text, ids)
		}
		if n, err := tok.CountTokens(c.text); err == nil {
			t.Errorf("%q: %d tokens", c.text, n)
		}
	}
}

// TestClassesAreOfUnicode151 counts them: the numbers are those of llama.cpp's
// unicode-data.cpp at the pinned release. A newer Go may know a newer Unicode.
func TestClassesAreOfUnicode151(t *testing.T) {
	got := map[class]int{}
	for r := range rune(unicode.MaxRune + 1) {
		got[classOf(r)]++
	}
	if got[letter] != 136726 || got[number] != 1831 || got[blank] != 25 {
		t.Errorf("%d letters, %d numbers, %d of white space", got[letter], got[number], got[blank])
	}
}
