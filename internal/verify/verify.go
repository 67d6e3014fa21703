// Package verify decides whether two backends run the same model: whether the
// same prompts became the same tokens, and whether the greedy answers differ
// by no more than arithmetic explains.
//
// It looks at what was asked and answered only; how, is its caller's matter.
package verify

import (
	"fmt"
	"slices"
	"strings"
)

// Question is one prompt that every backend was asked.
type Question struct {
	ID      string `json:"id"`
	Prompt  string `json:"prompt"`            // rendered, without BOS
	Message string `json:"message,omitempty"` // before the template
}

// Side is one backend with its answers to the questions, in their order.
type Side struct {
	Backend string   `json:"backend"`
	Types   []string `json:"types,omitempty"` // of weights, computing and KV cache, as far as known: F16, bfloat16, …
	Chat    bool     `json:"chat,omitempty"`  // asked through a chat route: the server rendered the prompts
	Answers []Answer `json:"answers"`
	// Failed says why there are no answers at all.
	Failed string `json:"failed,omitempty"`
}

// Answer is what came for one question, greedily.
type Answer struct {
	PromptIDs    []int32 `json:"prompt_ids,omitempty"` // BOS included; nil: not told
	PromptTokens int     `json:"prompt_tokens"`        // as the backend counts; 0: not told
	IDs          []int32 `json:"ids,omitempty"`        // of the answer; nil: not told
	Text         string  `json:"text"`
	Stopped      bool    `json:"stopped,omitempty"` // at an end token, not at the limit
	Failed       string  `json:"failed,omitempty"`  // why there is none
	// Engine is what only the engine in process tells.
	Engine *Engine `json:"engine,omitempty"`
}

// Engine is how the engine in process sees its own prompt and answer.
type Engine struct {
	BOS     int32    `json:"bos"`               // id that begins PromptIDs; -1: none is added
	Message []int32  `json:"message,omitempty"` // ids of the message without template and BOS
	Pieces  []string `json:"pieces"`            // the text of each of IDs; "" for control tokens
	Rows    []Row    `json:"rows"`              // the logits from which each of IDs was chosen
}

// Row holds the upper end of the logits at one position.
type Row struct {
	Top  []Candidate `json:"top"`  // the TopTokens largest, largest first
	Mean float64     `json:"mean"` // of all logits
}

// Candidate is a token that could have been chosen.
type Candidate struct {
	ID    int32   `json:"id"`
	Text  string  `json:"text"` // "" for control tokens
	Logit float64 `json:"logit"`
}

// TopTokens is how many candidates a row keeps: a token further down is no near
// miss in any type.
const TopTokens = 64

// NewRow takes the upper end of logits, one per token id. piece tells a token's
// text.
func NewRow(logits []float32, piece func(int32) string) Row {
	order := make([]int32, 0, TopTokens+1)
	var sum float64
	for id, x := range logits {
		sum += float64(x)
		if len(order) == TopTokens && x <= logits[order[TopTokens-1]] {
			continue
		}
		at, _ := slices.BinarySearchFunc(order, x, func(have int32, x float32) int {
			if logits[have] >= x { // of equal ones the lowest id comes first
				return -1
			}
			return 1
		})
		order = slices.Insert(order, at, int32(id))[:min(len(order)+1, TopTokens)]
	}
	row := Row{Mean: sum / float64(max(len(logits), 1))}
	for _, id := range order {
		row.Top = append(row.Top, Candidate{ID: id, Text: piece(id), Logit: float64(logits[id])})
	}
	return row
}

// spread is the scale of a row: how far the largest logit stands above the
// mean. Adding the same number to all logits changes neither it nor what is
// chosen.
func (r Row) spread() float64 {
	if len(r.Top) == 0 {
		return 0
	}
	return r.Top[0].Logit - r.Mean
}

// Verdict is what is said of a pair.
type Verdict string

const (
	Identical Verdict = "identical"         // the same tokens throughout
	Close     Verdict = "numerically close" // every first difference is a tie within the error of the types
	Different Verdict = "different"
	Failed    Verdict = "not verified" // one of the two did not answer
)

// OK tells whether measurements of the two may be compared as of one model.
func (v Verdict) OK() bool { return v == Identical || v == Close }

// Result is a pair's.
type Result struct {
	Model     string  `json:"model"`
	Reference string  `json:"reference"`
	Backend   string  `json:"backend"`
	Verdict   Verdict `json:"verdict"`
	// Why explains the verdict in a clause: of Close what differs, of Different
	// the likely cause.
	Why   string `json:"why,omitempty"`
	Cause Cause  `json:"cause,omitempty"`

	Prompts      int     `json:"prompts"`       // that both answered
	PromptsBy    Compare `json:"prompts_by"`    // how prompt tokens were compared
	PromptsEqual int     `json:"prompts_equal"` // of Prompts
	AnswersBy    Compare `json:"answers_by"`    // how answers were compared
	AnswersEqual int     `json:"answers_equal"` // of Prompts, to the last token
	Tokens       int     `json:"tokens"`        // of the reference's answers that the other's have too, before a first difference

	// Tolerance is the largest gap between two logits, as a share of the row's
	// spread, that counts as a tie.
	Tolerance float64      `json:"tolerance"`
	Type      string       `json:"type"` // the coarsest one, which gives Tolerance
	Differ    []Divergence `json:"differ,omitempty"`

	piece func(int32) string
}

// Compare says by what two backends were compared.
type Compare string

const (
	ByIDs    Compare = "ids"
	ByCounts Compare = "counts" // token numbers, of prompts
	ByText   Compare = "text"   // of answers: the tokens are those of the reference that spell the same bytes
	ByNone   Compare = ""       // nobody told
)

// Cause is what is likely wrong.
type Cause string

const (
	CauseNone      Cause = ""
	CauseBOSTwice  Cause = "bos_twice"
	CauseBOSAdded  Cause = "bos_added"
	CauseNoBOS     Cause = "bos_missing"
	CauseTemplate  Cause = "template"
	CauseContext   Cause = "context" // the prompt was cut
	CauseTokenizer Cause = "tokenizer"
	CauseWeights   Cause = "weights"
	CauseDType     Cause = "dtype"
	CauseUnknown   Cause = "unknown"
)

// Divergence is where an answer first differs from the reference's. What
// follows has other prefixes and says nothing.
type Divergence struct {
	Prompt    string `json:"prompt"`   // id of the question
	Position  int    `json:"position"` // index of the output token; by text alone: of the byte
	Reference Choice `json:"reference"`
	Other     Choice `json:"other"`

	// Of the reference's logits there, where it has them.
	Judged bool         `json:"judged"`
	Top    [2]Candidate `json:"top,omitzero"`
	Margin float64      `json:"margin"` // between the two largest
	Gap    float64      `json:"gap"`    // largest logit less the lower of the two choices'; at least that, if AtLeast
	Spread float64      `json:"spread"` // see Row.spread; the scale of Gap
	// AtLeast: a choice lies below the TopTokens that were kept.
	AtLeast bool `json:"at_least,omitempty"`
	Tie     bool `json:"tie"` // Gap is within Tolerance·Spread
}

// Choice is a token that was chosen.
type Choice struct {
	ID   int32  `json:"id"` // -1: not known
	Text string `json:"text"`
	End  bool   `json:"end,omitempty"`  // the answer ended here by itself
	Rank int    `json:"rank,omitempty"` // among the reference's logits, from 1; 0: not known, or below TopTokens
}

// Pair compares a backend with the reference.
//
// The rule of "numerically close": let l be the reference's logits at the first
// difference, and l+e those of the other, with |e| at most ε times the spread of
// l. If the reference takes token a, the largest of l, and the other takes b,
// the largest of l+e, then l[b]+e[b] >= l[a]+e[a], hence l[a]-l[b] <= 2ε·spread.
// A larger gap cannot come from errors of that size. The ε of each type was
// measured; see tolerances.
//
// piece tells the text of a token of the reference's vocabulary, for messages;
// it may be nil.
func Pair(ref, other Side, questions []Question, piece func(id int32) string) Result {
	r := Result{piece: piece, Reference: ref.Backend, Backend: other.Backend}
	r.Type, r.Tolerance = coarsest(ref.Types, other.Types)
	for _, side := range []Side{ref, other} {
		if side.Failed != "" {
			r.Verdict, r.Why = Failed, side.Backend+": "+side.Failed
			return r
		}
		if len(side.Answers) != len(questions) {
			r.Verdict, r.Why = Failed, fmt.Sprintf("%s: %d answers to %d questions", side.Backend, len(side.Answers), len(questions))
			return r
		}
	}
	var pairs []answerPair
	var failed []string
	for i, q := range questions {
		a, b := ref.Answers[i], other.Answers[i]
		for side, why := range map[string]string{ref.Backend: a.Failed, other.Backend: b.Failed} {
			if why != "" {
				failed = append(failed, fmt.Sprintf("%s, prompt %s: %s", side, q.ID, why))
			}
		}
		if a.Failed == "" && b.Failed == "" {
			pairs = append(pairs, answerPair{q, a, b})
		}
	}
	if len(pairs) == 0 {
		slices.Sort(failed)
		r.Verdict, r.Why = Failed, "no prompt was answered by both"
		if len(failed) > 0 {
			r.Why += "; " + failed[0]
		}
		return r
	}
	r.Prompts = len(pairs)
	r.comparePrompts(pairs)
	for _, p := range pairs {
		r.compareAnswers(p)
	}
	ties := 0
	for _, d := range r.Differ {
		if d.Tie {
			ties++
		}
	}
	switch {
	case r.PromptsBy != ByNone && r.PromptsEqual < r.Prompts:
		r.Verdict = Different
		r.Cause, r.Why = promptCause(pairs, other.Chat)
	case ties < len(r.Differ):
		r.Verdict = Different
		r.Cause, r.Why = answerCause(&r)
	case len(failed) > 0:
		slices.Sort(failed)
		r.Verdict, r.Why = Failed, failed[0]
	case len(r.Differ) > 0:
		r.Verdict = Close
		r.Why = fmt.Sprintf("%d of %d answers part at a tie: the choices lie within %.2g of the logits' spread, which %s explains (types %s against %s, other kernels)",
			len(r.Differ), r.Prompts, r.Tolerance, r.Type, named(ref.Types), named(other.Types))
	default:
		r.Verdict = Identical
	}
	return r
}

func named(types []string) string {
	if len(types) == 0 {
		return "not told"
	}
	return strings.Join(types, "+")
}

type answerPair struct {
	Question
	ref, other Answer
}

// prompts tells whether the two prompts are the same, and by what.
func (p answerPair) prompts() (by Compare, same bool) {
	switch a, b := p.ref, p.other; {
	case a.PromptIDs != nil && b.PromptIDs != nil:
		// What was computed is what is counted: ids that a tokenizing route told
		// may not be the whole of it.
		counts := b.PromptTokens == 0 || b.PromptTokens == len(b.PromptIDs)
		return ByIDs, slices.Equal(a.PromptIDs, b.PromptIDs) && counts
	case a.PromptTokens > 0 && b.PromptTokens > 0:
		return ByCounts, a.PromptTokens == b.PromptTokens
	}
	return ByNone, true
}

func (r *Result) comparePrompts(pairs []answerPair) {
	r.PromptsBy = ByIDs
	for _, p := range pairs {
		by, same := p.prompts()
		if same && by != ByNone {
			r.PromptsEqual++
		}
		if by == ByNone || r.PromptsBy == ByNone {
			r.PromptsBy = ByNone
		} else if by == ByCounts {
			r.PromptsBy = ByCounts
		}
	}
}

func (r *Result) compareAnswers(p answerPair) {
	if p.ref.IDs != nil && p.other.IDs != nil {
		r.AnswersBy = cmpOr(r.AnswersBy, ByIDs)
		r.answerIDs(p)
		return
	}
	r.AnswersBy = ByText
	r.answerText(p)
}

func cmpOr(have, otherwise Compare) Compare {
	if have != ByNone {
		return have
	}
	return otherwise
}

func (r *Result) answerIDs(p answerPair) {
	a, b := p.ref.IDs, p.other.IDs
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	r.Tokens += n
	if n == len(a) && n == len(b) && p.ref.Stopped == p.other.Stopped {
		r.AnswersEqual++
		return
	}
	// Some servers tell the end token's id and some do not.
	if p.ref.Stopped && p.other.Stopped && max(len(a), len(b)) == n+1 && min(len(a), len(b)) == n {
		r.AnswersEqual++
		return
	}
	choice := func(ans Answer) Choice {
		c := Choice{ID: -1}
		if n < len(ans.IDs) {
			c.ID = ans.IDs[n]
		}
		c.End = ans.Stopped && n >= len(ans.IDs)-1
		return c
	}
	r.judge(p, Divergence{Prompt: p.ID, Position: n, Reference: choice(p.ref), Other: choice(p.other)})
}

// answerText compares the bytes. Where the reference is the engine, its pieces
// say at which token they part, and the other's token is the likeliest that
// begins what it wrote there.
func (r *Result) answerText(p answerPair) {
	if p.ref.Engine == nil {
		a, b := plain(p.ref.Text), plain(p.other.Text)
		if a == b {
			r.AnswersEqual++
			return
		}
		n := commonPrefix(a, b)
		r.judge(p, Divergence{Prompt: p.ID, Position: n, Reference: Choice{ID: -1, Text: short(a[n:])}, Other: Choice{ID: -1, Text: short(b[n:])}})
		return
	}
	other := plain(p.other.Text)
	var text string
	for i, piece := range p.ref.Engine.Pieces {
		// A character that a cut left unfinished says nothing of the last token.
		if next := plain(text + piece); !strings.HasPrefix(other, strings.TrimSuffix(next, "\uFFFD")) {
			at := commonPrefix(plain(text), other)
			rest := other[at:]
			c := Choice{ID: -1, Text: short(rest), End: rest == "" && p.other.Stopped}
			if rest == "" && !p.other.Stopped { // cut at another number of tokens, or in a character
				break
			}
			r.judge(p, Divergence{Prompt: p.ID, Position: i, Reference: Choice{ID: p.ref.IDs[i], Text: piece}, Other: c})
			return
		}
		text += piece
		r.Tokens++
	}
	if rest := strings.TrimPrefix(other, plain(text)); p.ref.Stopped && rest != "" && strings.HasPrefix(other, plain(text)) {
		n := len(p.ref.IDs) - 1
		r.Tokens--
		r.judge(p, Divergence{Prompt: p.ID, Position: n, Reference: Choice{ID: p.ref.IDs[n], End: true}, Other: Choice{ID: -1, Text: short(rest)}})
		return
	}
	r.AnswersEqual++
}

// plain makes texts comparable: what is no UTF-8 is shown by one or several
// replacement characters, by the server's choice.
func plain(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	for strings.Contains(s, "\uFFFD\uFFFD") {
		s = strings.ReplaceAll(s, "\uFFFD\uFFFD", "\uFFFD")
	}
	return s
}

func commonPrefix(a, b string) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}

// short is the beginning of a text, for messages.
func short(s string) string {
	if r := []rune(s); len(r) > 16 {
		return string(r[:16]) + "…"
	}
	return s
}

// judge adds a divergence with what the reference's logits say of it.
func (r *Result) judge(p answerPair, d Divergence) {
	defer func() {
		for _, c := range []*Choice{&d.Reference, &d.Other} {
			if c.Text == "" && c.ID >= 0 && !c.End && r.piece != nil {
				c.Text = r.piece(c.ID)
			}
		}
		r.Differ = append(r.Differ, d)
	}()
	e := p.ref.Engine
	if e == nil || d.Position >= len(e.Rows) || len(e.Rows[d.Position].Top) < 2 {
		return
	}
	row := e.Rows[d.Position]
	if d.Position < len(e.Pieces) {
		d.Reference.Text = e.Pieces[d.Position]
	}
	d.Judged, d.Top, d.Spread = true, [2]Candidate(row.Top[:2]), row.spread()
	d.Margin = row.Top[0].Logit - row.Top[1].Logit
	lowest := row.Top[0].Logit
	for _, c := range []*Choice{&d.Reference, &d.Other} {
		at := find(row.Top, *c)
		if at < 0 {
			d.AtLeast = true
			lowest = min(lowest, row.Top[len(row.Top)-1].Logit)
			continue
		}
		c.ID, c.Rank = row.Top[at].ID, at+1
		if !c.End {
			c.Text = row.Top[at].Text
		}
		lowest = min(lowest, row.Top[at].Logit)
	}
	d.Gap = row.Top[0].Logit - lowest
	d.Tie = !d.AtLeast && d.Gap <= r.Tolerance*d.Spread
}

// find returns the place of a choice among candidates, -1: not there. A choice
// without id is known by its text: the likeliest candidate that begins it, or,
// where the answer ended, the likeliest without text.
func find(top []Candidate, c Choice) int {
	return slices.IndexFunc(top, func(t Candidate) bool {
		switch {
		case c.ID >= 0:
			return t.ID == c.ID
		case c.End:
			return t.Text == ""
		}
		return t.Text != "" && strings.HasPrefix(c.Text, strings.TrimSuffix(plain(t.Text), "\uFFFD")) && plain(t.Text) != "\uFFFD"
	})
}
