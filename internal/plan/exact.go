package plan

import (
	"fmt"
	"strings"
)

// Counter counts the tokens of a rendered prompt as a backend does, with the
// BOS if its tokenizer adds one.
type Counter interface {
	CountTokens(text string) (int, error)
}

// exactWords are common enough to be one token each, with the space before them, in
// the vocabularies of all models of the table.
const exactWords = "time year people way day man thing world life hand part place case week company " +
	"system program question work government number night point home water room mother area money story " +
	"fact month right study book word business issue side kind head house service friend father power hour game line " +
	"end member law car city community name president team minute body information back " +
	"parent face level office door health person art war history party result change morning reason research " +
	"girl air force education"

// ExactPrompt makes a prompt of exactly n tokens for a context-scaling sweep:
// the model's template around common words. The text is the same whenever
// counter, model and n are. c decides what a token is, and what is returned has
// been counted by it. It is an error if n is below what the template alone
// needs, or if no text of that length was found.
func ExactPrompt(c Counter, m Model, n int) (string, error) {
	return ExactPromptVariant(c, m, n, 0)
}

// ExactPromptVariant is ExactPrompt with other words for each variant, from the
// first word on: requests that use different variants share no more of a prompt
// prefix than the template.
func ExactPromptVariant(c Counter, m Model, n int, variant uint64) (string, error) {
	s := exactSearch{counter: c, model: m, variant: variant}
	text, err := s.find(n)
	if err != nil {
		return "", fmt.Errorf("a prompt of exactly %d tokens for %s: %w", n, m.Key, err)
	}
	return text, nil
}

// exactSearch counts rendered prompts made of so many words.
type exactSearch struct {
	counter Counter
	model   Model
	variant uint64
}

func (s exactSearch) find(n int) (string, error) {
	least, err := s.count(1, "")
	if err != nil {
		return "", err
	}
	if n < least {
		return "", fmt.Errorf("the template and one word are %d tokens already; ask for at least that", least)
	}
	words, at := 1, least
	if n > least {
		if words, at, err = s.longestWithin(n, least); err != nil {
			return "", err
		}
	}
	// What is left is smaller than a word: close the gap with short pieces,
	// taking back a word or more where they do not divide it.
	nearest := at
	for back := range min(words, 4) {
		tail := ""
		if back > 0 {
			if at, err = s.count(words-back, ""); err != nil {
				return "", err
			}
		}
		for at < n {
			piece, got, err := s.shortest(words-back, tail, at, n)
			if err != nil {
				return "", err
			}
			if piece == "" {
				break
			}
			tail, at = tail+piece, got
		}
		if at == n {
			return s.text(words-back, tail), nil
		}
		nearest = max(nearest, at)
	}
	return "", fmt.Errorf("no text of that length was found, the nearest below has %d tokens", nearest)
}

// shortest returns the first short piece that, put after tail, makes the prompt
// longer than at and not longer than n tokens, and the new count; "" if none
// does.
func (s exactSearch) shortest(words int, tail string, at, n int) (string, int, error) {
	for _, piece := range []string{" a", ".", ",", " I", "!", "?", " a b"} {
		got, err := s.count(words, tail+piece)
		if err != nil {
			return "", 0, err
		}
		if got > at && got <= n {
			return piece, got, nil
		}
	}
	return "", 0, nil
}

func (s exactSearch) text(n int, tail string) string {
	list := strings.Fields(exactWords)
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteByte(' ')
		}
		// The first word is a different one for len(list) successive variants.
		at := int(s.variant % uint64(len(list)))
		if i > 0 {
			at = int(RequestSeed(s.variant, i) % uint64(len(list)))
		}
		b.WriteString(list[at])
	}
	return s.model.Render(b.String() + tail)
}

func (s exactSearch) count(n int, tail string) (int, error) {
	return s.counter.CountTokens(s.text(n, tail))
}

// longestWithin finds a number of words whose prompt has at most n tokens, one
// word more being over n, and that prompt's tokens. least is the count of one
// word, at most n. With one token a word the first guess is right.
func (s exactSearch) longestWithin(n, least int) (words, at int, err error) {
	low, atLow, high := 1, least, 0 // high: fewest words known to be over n, 0 while none is
	for step := n - least; high == 0 || high-low > 1; step *= 2 {
		try := low + max(step, 1)
		if high > 0 {
			try = (low + high) / 2
		}
		if try > 64*(n+1) {
			return 0, 0, fmt.Errorf("%d words are counted as only %d tokens: the counter does not count", low, atLow)
		}
		got, err := s.count(try, "")
		switch {
		case err != nil:
			return 0, 0, err
		case got == n:
			return try, n, nil
		case got > n:
			high = try
		default:
			low, atLow = try, got
		}
	}
	return low, atLow, nil
}
