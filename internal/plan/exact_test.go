package plan_test

import (
	"errors"
	"strings"
	"testing"
	"unicode"

	"pgregory.net/rapid"

	"github.com/nativebench/nativebench/internal/plan"
)

// counter is a made-up tokenizer.
type counter func(text string) int

func (c counter) CountTokens(text string) (int, error) { return c(text), nil }

func counters() map[string]counter {
	words := func(s string) int { return len(strings.Fields(s)) }
	punctuation := func(s string) (n int) {
		for _, r := range s {
			if unicode.IsPunct(r) {
				n++
			}
		}
		return n
	}
	return map[string]counter{
		"words":                   words,
		"words and BOS":           func(s string) int { return words(s) + 1 },
		"words and punctuation":   func(s string) int { return words(s) + punctuation(s) },
		"two words a token":       func(s string) int { return (words(s) + 1) / 2 },
		"two tokens a word":       func(s string) int { return 2*words(s) + punctuation(s) },
		"bytes":                   func(s string) int { return len(s) },
		"four bytes a token":      func(s string) int { return (len(s) + 3) / 4 },
		"long words are three":    func(s string) int { return words(s) + 2*strings.Count(s, "ti") + punctuation(s) },
		"a token more every tens": func(s string) int { return words(s) + words(s)/10 + punctuation(s) },
	}
}

func TestExactPromptIsExact(t *testing.T) {
	for name, c := range counters() {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				m := rapid.SampledFrom(plan.Models()).Draw(t, "model")
				// Below, template and word may be longer than what is asked.
				n := rapid.IntRange(128, 1200).Draw(t, "n")
				variant := rapid.Uint64().Draw(t, "variant")
				text, err := plan.ExactPromptVariant(c, m, n, variant)
				if err != nil {
					t.Fatal(err)
				}
				if got := c(text); got != n {
					t.Fatalf("%d tokens, want %d: %q", got, n, text)
				}
				if !strings.HasPrefix(text, m.Before) || !strings.HasSuffix(text, m.After) {
					t.Fatalf("not in the template of %s: %q", m.Key, text)
				}
				if again, err := plan.ExactPromptVariant(c, m, n, variant); err != nil || again != text {
					t.Fatalf("another text the second time: %q, %v", again, err)
				}
			})
		})
	}
}

func TestExactPromptVariantsDifferFromTheFirstWord(t *testing.T) {
	c := counters()["words"]
	first := map[string]bool{}
	for _, m := range plan.Models() {
		clear(first)
		for variant := range uint64(40) {
			text, err := plan.ExactPromptVariant(c, m, 50, variant)
			if err != nil {
				t.Fatal(err)
			}
			word := strings.Fields(strings.TrimPrefix(text, m.Before))[0]
			if first[word] {
				t.Errorf("%s: variant %d begins with %q as one before does", m.Key, variant, word)
			}
			first[word] = true
		}
		zero, _ := plan.ExactPromptVariant(c, m, 50, 0)
		if text, err := plan.ExactPrompt(c, m, 50); err != nil || text != zero {
			t.Errorf("ExactPrompt is not variant 0: %q, %v", text, err)
		}
	}
}

type brokenCounter struct{ err error }

func (b brokenCounter) CountTokens(string) (int, error) { return 0, b.err }

func TestExactPromptRefuses(t *testing.T) {
	gpt2, llama := plan.Models()[0], plan.Models()[2]
	broken := errors.New("tokenizer is gone")
	if _, err := plan.ExactPrompt(brokenCounter{broken}, gpt2, 10); !errors.Is(err, broken) {
		t.Errorf("the counter's error is lost: %v", err)
	}
	for _, c := range []struct {
		counter counter
		model   plan.Model
		n       int
		want    string
	}{
		{counters()["words"], gpt2, 0, "are 1 tokens already"},
		{counters()["words"], llama, 2, "a prompt of exactly 2 tokens for llama-2-7b-chat: the template and one word are 3 tokens already"},
		{func(string) int { return 5 }, gpt2, 100, "the counter does not count"},
		{func(s string) int { return 2 * len(strings.Fields(s)) }, gpt2, 101, "no text of that length was found, the nearest below has 100 tokens"},
	} {
		_, err := plan.ExactPrompt(c.counter, c.model, c.n)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got  %v\nwant %s", err, c.want)
		}
	}
}
