package tokenizer

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/nativebench/nativebench/native"
)

// known are the vocabularies that can be counted with, of llama.cpp's.
var known = []string{"gpt-2", "llama-spm", "llama-bpe", "phi-3", "mpt", "qwen2", "baichuan"}

// both opens a vocabulary here and in the engine.
func both(t testing.TB, name string) (*Tokenizer, *native.Vocab) {
	t.Helper()
	dir := vocabDir(t)
	ref, err := native.OpenVocab(filepath.Dir(dir), filepath.Join(dir, "ggml-vocab-"+name+".gguf"))
	if errors.Is(err, native.ErrLeftOut) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ref.Close() })
	return open(t, name), ref
}

// same compares ids and counts with the engine's, also where both must fail.
func same(t *testing.T, tok *Tokenizer, ref *native.Vocab, text string) {
	t.Helper()
	want, wantErr := ref.Tokenize(text)
	got, err := tok.Tokenize(text)
	if (err != nil) != (wantErr != nil) || err == nil && !slices.Equal(got, want) {
		t.Errorf("%q:\n%v, %v; the engine has\n%v, %v", text, got, err, want, wantErr)
		return
	}
	if len(text) > 1<<12 {
		return // the count would say nothing new
	}
	n, err := ref.CountTokens(text)
	if got, gotErr := tok.CountTokens(text); (err != nil) != (gotErr != nil) || err == nil && got != n {
		t.Errorf("%q: counted %d, %v; the engine has %d, %v", text, got, gotErr, n, err)
	}
}

// TestEngineAgreesOnCharacters puts characters where their class shows: all of
// those below the ideographs, and above those at which the class changes, with
// every 31st of the rest.
func TestEngineAgreesOnCharacters(t *testing.T) {
	var text []string
	var b strings.Builder
	before := other
	for r := range rune(unicode.MaxRune + 1) {
		class := classOf(r)
		if utf8.ValidRune(r) && (r < 0x3400 || class != before || classOf(r+1) != class || r%31 == 0 && r < 0x40000) {
			c := string(r)
			b.WriteString(" " + c + "a" + c + "1" + c + "! " + c + c + "\n" + c)
		}
		if before = class; b.Len() > 1<<14 || r == unicode.MaxRune {
			text = append(text, b.String())
			b.Reset()
		}
	}
	for _, name := range []string{"gpt-2", "llama-spm", "llama-bpe", "qwen2"} { // one of each way to cut text
		t.Run(name, func(t *testing.T) {
			tok, ref := both(t, name)
			for _, s := range text {
				if same(t, tok, ref, s); t.Failed() {
					return
				}
			}
		})
	}
}

// TestEngineAgreesOnRandomText makes texts of what tokenizers trip over.
func TestEngineAgreesOnRandomText(t *testing.T) {
	for _, name := range known {
		t.Run(name, func(t *testing.T) {
			tok, ref := both(t, name)
			parts := []string{
				" ", "  ", "     ", "\t", "\n", "\n\n", "\r\n", " \n ", "\u00a0", "\u3000", "\u0085", "'s", "'S", "'ll", "'LL", "'", "'r", "the", " the", "The", "Ünïcödé", "한국어", " 질문",
				"中文", "日本語のテキスト", "русский", "ภาษาไทย", "🦙", "👨‍👩‍👧", "é", "1", "12345678", "²", "Ⅷ", "½", "...", "!!", "==", "{}", "▁", "▁▁", "Ġ", "<s>", "</s>", "<unk>", "<|endoftext|>", "<|im_start|>",
				"<|eot_id|>", "<0x0A>", "[INST] ", " [/INST]", "\xff", "\xc0\x80", "\xc1\x81", "\xed\xa0\x80", "\xe2\x96", "\xf0\x9f", "\xf4\x90\x80\x80", "\xf5", "\x80", "\x00", "func main() {\n\tfmt.Println(\"x\")\n}", "aaaaaaaaaaaaaaaaaaaa", "supercalifragilistic",
			}
			for _, s := range tok.specials {
				parts = append(parts, s.text)
			}
			random := rand.New(rand.NewPCG(1, 2))
			for range 1500 {
				var b strings.Builder
				for range random.IntN(12) {
					if random.IntN(4) == 0 {
						b.WriteRune(rune(random.IntN(0x3000)))
					} else {
						b.WriteString(parts[random.IntN(len(parts))])
					}
				}
				if same(t, tok, ref, b.String()); t.Failed() {
					return
				}
			}
		})
	}
}
