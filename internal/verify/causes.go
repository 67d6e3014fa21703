package verify

import (
	"fmt"
	"slices"
	"strings"
)

// promptCause finds what is wrong with prompts that are not the same: the first
// fault that explains every prompt that differs.
func promptCause(pairs []answerPair, chat bool) (Cause, string) {
	var differ []answerPair
	for _, p := range pairs {
		if _, same := p.prompts(); !same {
			differ = append(differ, p)
		}
	}
	first := differ[0]
	in := fmt.Sprintf("%d of %d prompts", len(differ), len(pairs))
	for _, fault := range promptFaults() {
		if slices.ContainsFunc(differ, func(p answerPair) bool { return !fault.explains(p) }) {
			continue
		}
		why := fmt.Sprintf("%s: %s", in, fault.says(first))
		if fault.cause == CauseTemplate && chat {
			why += "; its chat route applies the server's own template"
		}
		return fault.cause, why
	}
	why := fmt.Sprintf("%s have other tokens", in)
	if a, b := first.ref.PromptIDs, first.other.PromptIDs; a != nil && b != nil {
		n := 0
		for n < len(a) && n < len(b) && a[n] == b[n] {
			n++
		}
		why += fmt.Sprintf(" (%s: %d against %d, the first other one at position %d)", first.ID, len(b), len(a), n)
	} else {
		why += fmt.Sprintf(" (%s: %d against %d)", first.ID, first.other.PromptTokens, first.ref.PromptTokens)
	}
	if chat {
		return CauseTemplate, why + ": its chat route applies the server's own template"
	}
	return CauseTokenizer, why + ": another tokenizer, or another template"
}

// promptFault is one way to get a prompt wrong, with how it shows in the ids,
// or in the counts where there are no ids.
type promptFault struct {
	cause    Cause
	explains func(p answerPair) bool
	says     func(p answerPair) string
}

func promptFaults() []promptFault {
	// ids are those of both, unless the other counted more or fewer than it tells:
	// then the count is what was computed.
	ids := func(p answerPair) (a, b []int32, ok bool) {
		a, b = p.ref.PromptIDs, p.other.PromptIDs
		return a, b, a != nil && b != nil && counted(p.other) == len(b)
	}
	// more is how many tokens the other has beyond the reference.
	more := func(p answerPair) int { return p.other.PromptTokens - p.ref.PromptTokens }
	bos := func(p answerPair) int32 {
		if p.ref.Engine == nil {
			return -1
		}
		return p.ref.Engine.BOS
	}
	return []promptFault{
		{
			CauseBOSTwice,
			func(p answerPair) bool {
				if a, b, ok := ids(p); ok {
					return len(b) == len(a)+1 && slices.Equal(b[1:], a) && b[0] == a[0]
				}
				return more(p) == 1 && bos(p) >= 0
			},
			func(p answerPair) string {
				if _, b, ok := ids(p); ok {
					return fmt.Sprintf("BOS (id %d) comes twice", b[0])
				}
				return fmt.Sprintf("one token more in each (%s: %d against %d), as if BOS came twice", p.ID, p.other.PromptTokens, p.ref.PromptTokens)
			},
		},
		{
			CauseBOSAdded,
			func(p answerPair) bool {
				if a, b, ok := ids(p); ok {
					return len(b) == len(a)+1 && slices.Equal(b[1:], a)
				}
				return more(p) == 1 && p.ref.Engine != nil
			},
			func(p answerPair) string {
				if _, b, ok := ids(p); ok {
					return fmt.Sprintf("a token (id %d) is put before the prompt, as BOS would be, which this model's tokenizer does not add", b[0])
				}
				return fmt.Sprintf("one token more in each (%s: %d against %d), as if a BOS were added, which this model's tokenizer does not", p.ID, p.other.PromptTokens, p.ref.PromptTokens)
			},
		},
		{
			CauseNoBOS,
			func(p answerPair) bool {
				if a, b, ok := ids(p); ok {
					return len(a) == len(b)+1 && slices.Equal(a[1:], b)
				}
				return more(p) == -1 && bos(p) >= 0
			},
			func(p answerPair) string {
				return fmt.Sprintf("one token less, at the beginning (%s: %d against %d): BOS is missing", p.ID, p.other.PromptTokens, p.ref.PromptTokens)
			},
		},
		{
			CauseTemplate, // none was applied
			func(p answerPair) bool {
				if p.Message == "" || p.Message == p.Prompt || p.ref.Engine == nil || len(p.ref.Engine.Message) == 0 {
					return false
				}
				want := len(p.ref.Engine.Message)
				if _, b, ok := ids(p); ok {
					return slices.Equal(b[max(len(b)-want, 0):], p.ref.Engine.Message) && len(b) <= want+1
				}
				return p.other.PromptTokens == want || p.other.PromptTokens == want+1 && bos(p) >= 0
			},
			func(p answerPair) string {
				return fmt.Sprintf("the message stands there without the model's template (%s: %d tokens against %d)", p.ID, p.other.PromptTokens, p.ref.PromptTokens)
			},
		},
		{
			CauseContext,
			func(p answerPair) bool {
				if a, b, ok := ids(p); ok {
					if len(b) == 0 || len(b) >= len(a) {
						return false
					}
					rest := b[1:] // behind a BOS that the cut left
					return slices.Equal(a[:len(b)], b) || slices.Equal(a[len(a)-len(b):], b) || len(rest) > 0 && b[0] == a[0] && slices.Equal(a[len(a)-len(rest):], rest)
				}
				return more(p) < -1
			},
			func(p answerPair) string {
				return fmt.Sprintf("the prompt was cut: %d tokens of %d (%s); give the server a longer context", counted(p.other), counted(p.ref), p.ID)
			},
		},
		{
			CauseTemplate, // another one
			func(p answerPair) bool {
				if p.ref.Engine == nil || len(p.ref.Engine.Message) == 0 {
					return false
				}
				message := p.ref.Engine.Message
				if _, b, ok := ids(p); ok {
					// Its ends may merge with what stands around.
					return len(message) > 4 && contains(b, message[2:len(message)-2])
				}
				return more(p) > 0
			},
			func(p answerPair) string {
				return fmt.Sprintf("the message stands in other surroundings (%s: %d tokens against %d), as if another template were applied", p.ID, p.other.PromptTokens, p.ref.PromptTokens)
			},
		},
	}
}

// counted is how many tokens of a prompt were computed, as far as is told.
func counted(a Answer) int {
	if a.PromptTokens > 0 {
		return a.PromptTokens
	}
	return len(a.PromptIDs)
}

func contains(list, part []int32) bool {
	for i := 0; i+len(part) <= len(list); i++ {
		if slices.Equal(list[i:i+len(part)], part) {
			return true
		}
	}
	return false
}

// answerCause finds why answers to the same prompts differ by more than
// arithmetic does: another model's choices lie anywhere among the reference's
// logits, those of the same model in a coarser type stay near the top.
func answerCause(r *Result) (Cause, string) {
	var share []float64
	var worst Divergence
	unjudged := 0
	for _, d := range r.Differ {
		switch {
		case !d.Judged:
			unjudged++
		case !d.Tie:
			s := d.Gap / d.Spread
			if d.AtLeast { // anywhere among thousands
				s = max(s, 1)
			}
			if share = append(share, s); s >= slices.Max(share) {
				worst = d
			}
		}
	}
	differ := fmt.Sprintf("%d of %d answers differ", len(r.Differ), r.Prompts)
	if len(share) == 0 {
		return CauseUnknown, fmt.Sprintf("%s, and without the engine's own logits (backend native) it cannot be told whether by more than rounding", differ)
	}
	slices.Sort(share)
	middle := share[len(share)/2]
	rank := fmt.Sprintf("its #%d", worst.Other.Rank)
	if worst.Other.Rank == 0 {
		rank = fmt.Sprintf("not among its first %d", TopTokens)
	}
	least := ""
	if worst.AtLeast {
		least = "at least "
	}
	facts := fmt.Sprintf("%s by more than %s explains: at token %d of %s it takes %q, %s of %s, %s%.2g of the logits' spread below the top (ties end at %.2g)",
		differ, r.Type, worst.Position, worst.Prompt, worst.Other.Text, rank, r.Reference, least, worst.Gap/worst.Spread, r.Tolerance)
	if middle >= otherModel {
		return CauseWeights, "other weights: " + facts
	}
	for _, t := range tolerances() {
		if 2*t.epsilon > r.Tolerance && slices.Max(share) <= 2*t.epsilon && !worst.AtLeast {
			return CauseDType, fmt.Sprintf("weights or sums of a coarser type than %s (the gaps are such as %s makes): %s", r.Type, t.name, facts)
		}
	}
	return CauseDType, "weights of a coarser type, or of a relative of this model: " + facts
}

// otherModel is the share of the spread below the top at which another model's
// choice lies in the median, or further. A token taken at random lies at about
// 1, the mean, and so is one taken that is not among the TopTokens; half leaves
// room for models that know the same language.
const otherModel = 0.5

// tolerance is how far the logits of one model come apart when one side
// computes in this type: ε of Pair.
type tolerance struct {
	name    string
	epsilon float64
	aliases []string // beginnings of how backends name it, in lower case
	blocks  bool     // numbers share a scale in blocks: the weights themselves are others
}

// tolerances, finest first. Each ε is the largest |difference| between a logit
// of the engine and one of Transformers in float32, as a share of the row's
// spread, seen over 96 rows of 50,257 logits of the whole synthetic GPT-2,
// rounded up by a third or more:
//
//	weights F32 0.0035, F16 0.0065, BF16 0.032 (against F16 0.060), Q8_0 0.16, Q4_K_M 0.62
//
// float32 is hardly better than float16 there: llama.cpp's CPU kernels look GELU
// up in a table of float16 and attend in float16. With the types below Q8_0 a
// bound on every logit is no bound any more: what differs in these by more than
// in Q8_0 is called different.
func tolerances() []tolerance {
	return []tolerance{
		{"F16", 0.01, []string{"f16", "float16", "half", "f32", "float32", "all f32"}, false},
		{"BF16", 0.08, []string{"bf16", "bfloat16"}, false},
		{"Q8_0", 0.2, []string{"q8", "q6", "q5", "q4", "q3", "q2", "iq", "mxfp", "fp8", "int8", "int4"}, true},
	}
}

// coarsest returns the coarsest of the types of two sides and how far apart two
// logits may be and still tie, as a share of the spread: 2ε. Types that are not
// known are taken for the finest. A side's first type is that of its weights:
// where both have the same in blocks, the weights are the same numbers, and
// kernels alone are left to differ.
func coarsest(a, b []string) (name string, share float64) {
	worst := tolerances()[0]
	same := len(a) > 0 && len(b) > 0 && a[0] == b[0]
	for i, t := range slices.Concat(a, b) {
		weights := i == 0 || i == len(a)
		for _, have := range tolerances() {
			if have.epsilon > worst.epsilon && have.names(t) && !(have.blocks && weights && same) {
				worst = have
			}
		}
	}
	return worst.name, 2 * worst.epsilon
}

func (t tolerance) names(text string) bool {
	return slices.ContainsFunc(t.aliases, func(a string) bool { return strings.HasPrefix(strings.ToLower(text), a) })
}
