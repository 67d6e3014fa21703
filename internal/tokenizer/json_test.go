package tokenizer

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/synth"
)

// A model's tokenizer.json gives the ids of its GGUF file: of llama.cpp's
// vectors, of the prompts, and of random text with special tokens in it.
func TestJSONIsTheSameVocabulary(t *testing.T) {
	for _, c := range []struct {
		model, vocab string
		width        int
	}{{"gpt2", "gpt-2", 64}, {"phi-2", "gpt-2", 80}, {"llama-2-7b-chat", "llama-spm", 128}, {"llama-3-8b-instruct", "llama-bpe", 512}} {
		t.Run(c.model, func(t *testing.T) {
			made, err := synth.Write(t.Context(), synth.Spec{Model: c.model, Layers: 1, Width: c.width, VocabDir: vocabDir(t)}, t.TempDir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			want, err := Open(made.GGUF)
			if err != nil {
				t.Fatal(err)
			}
			got, err := OpenJSON(filepath.Join(made.HFDir, JSONName))
			if err != nil {
				t.Fatal(err)
			}
			var texts []string
			for _, v := range vectors(t, c.vocab) {
				texts = append(texts, v.text)
			}
			for _, task := range plan.Tasks() {
				for _, p := range plan.Prompts(task.Key) {
					texts = append(texts, p.Text)
				}
			}
			parts := []string{" ", "  ", "\n", "\t", "a", "the", "Ünï", "한국어", "🙂", "1234", "'s", "...", "<s>", "</s>", "<unk>", "<|endoftext|>", "<|eot_id|>", "\xff"}
			random := rand.New(rand.NewPCG(1, 2))
			for range 500 {
				var b strings.Builder
				for range 1 + random.IntN(20) {
					b.WriteString(parts[random.IntN(len(parts))])
				}
				texts = append(texts, b.String())
			}
			for _, text := range texts {
				a, errA := want.Tokenize(text)
				b, errB := got.Tokenize(text)
				if !slices.Equal(a, b) || (errA != nil) != (errB != nil) {
					t.Fatalf("%q:\n%v, %v, the GGUF file says\n%v, %v", text, b, errB, a, errA)
				}
			}
			n, err := got.CountTokens("a")
			if want, wantErr := want.CountTokens("a"); n != want || err != nil || wantErr != nil {
				t.Errorf("a prompt of one letter has %d tokens, not %d", n, want)
			}
		})
	}
}

// What is not known is refused by name, and what is no vocabulary too.
func TestJSONRefusals(t *testing.T) {
	const model = `"model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}`
	const level = `"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false}`
	for _, c := range []struct {
		text, says  string
		unsupported bool
	}{
		{`{` + level + `,` + model + `}`, "", false},
		{`{` + level + `,"model":{"vocab":{"a":0,"b":1,"ab":2},"merges":[["a","b"]]}}`, "", false},
		{`no`, "is not a tokenizer's JSON", false},
		{`{}`, `its model is ""`, true},
		{`{"model":{"type":"Unigram","vocab":[["a",0]]}}`, "is not a tokenizer's JSON", false},
		{`{"model":{"type":"WordPiece","vocab":{"a":0}}}`, `its model is "WordPiece"`, true},
		{`{` + model + `}`, "its pre-tokenizer is none of those", true},
		{`{"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":"x"}},{"type":"ByteLevel","use_regex":false}]},` + model + `}`, "its pre-tokenizer is none of those", true},
		{`{"normalizer":{"type":"Lowercase"},` + level + `,` + model + `}`, `its normalizer is "Lowercase"`, true},
		{`{"post_processor":{"type":"BertProcessing"},` + level + `,` + model + `}`, `its post-processor is "BertProcessing"`, true},
		{`{"added_tokens":[{"id":1,"content":"c"}],` + level + `,` + model + `}`, "two tokens have the id 1", false},
		{`{"added_tokens":[{"id":99999999,"content":"c"}],` + level + `,` + model + `}`, "its ids go up to 99999999", false},
	} {
		path := filepath.Join(t.TempDir(), JSONName)
		if err := os.WriteFile(path, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		tok, err := OpenJSON(path)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.text, err)
		case c.says == "":
			if ids, err := tok.Tokenize("abb"); err != nil || !slices.Equal(ids, []int32{2, 1}) {
				t.Errorf("%s: ids %v, %v", c.text, ids, err)
			}
		case err == nil || !strings.Contains(err.Error(), c.says) || errors.Is(err, ErrUnsupported) != c.unsupported || strings.Contains(err.Error(), "\n"):
			t.Errorf("%s: %v, want %q", c.text, err, c.says)
		}
	}
}

// The tokenizer_config.json beside it says whether a prompt gets a BOS.
func TestJSONConfigDecidesBOS(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(JSONName, `{"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"model":{"vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]},
		"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"b"}},{"Sequence":{"id":"A"}},{"SpecialToken":{"id":"b"}}]}}`)
	for _, c := range []struct {
		config string
		want   int
	}{{"", 3}, {`{}`, 3}, {`{"add_bos_token":false}`, 2}, {`{"add_bos_token":false,"add_eos_token":false}`, 1}} {
		if c.config != "" {
			write("tokenizer_config.json", c.config)
		}
		tok, err := OpenJSON(filepath.Join(dir, JSONName))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := tok.CountTokens("ab"); n != c.want || err != nil {
			t.Errorf("%q: %d tokens, %v; want %d", c.config, n, err, c.want)
		}
	}
}
