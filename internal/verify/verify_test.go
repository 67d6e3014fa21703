package verify

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
)

// The tests' model has a vocabulary of 200 words; token i is the i-th. Its
// logits at a position follow from all tokens before, by a formula.
func word(id int32) string {
	if id == end {
		return ""
	}
	return fmt.Sprintf(" w%d.", id)
}

const (
	bos = int32(1)
	end = int32(2)
)

// logits are from 0 to 10, most of them low, the two largest about 0.6 apart.
func logits(before uint32, seed int) []float32 {
	row := make([]float32, 200)
	for i := range row {
		x := before*2654435761 + uint32(i)*40503 + uint32(seed)*97
		x ^= x >> 15
		x *= 2246822519
		x ^= x >> 13
		row[i] = float32(10 * math.Pow(float64(x%20000)/20000, 12))
	}
	row[end] = 0
	return row
}

// answer is what the tests' model of that seed answers greedily, with noise
// added to the logits that it chooses by.
func answer(prompt []int32, n, seed int, noise func(position int, row []float32)) Answer {
	a := Answer{PromptIDs: prompt, PromptTokens: len(prompt), Engine: &Engine{BOS: bos, Message: prompt[3 : len(prompt)-2]}}
	var before uint32
	for _, id := range prompt {
		before = before*31 + uint32(id)
	}
	for i := range n {
		row := logits(before, seed)
		a.Engine.Rows = append(a.Engine.Rows, NewRow(row, word))
		if noise != nil {
			noise(i, row)
		}
		best := 0
		for id, x := range row {
			if x > row[best] {
				best = id
			}
		}
		before = before*31 + uint32(best)
		a.IDs = append(a.IDs, int32(best))
		a.Engine.Pieces = append(a.Engine.Pieces, word(int32(best)))
		a.Text += word(int32(best))
	}
	return a
}

// server takes away what only the engine tells.
func server(a Answer) Answer { a.Engine = nil; return a }

// textOnly takes away the ids, too.
func textOnly(a Answer) Answer { a.Engine, a.IDs, a.PromptIDs = nil, nil, nil; return a }

func prompt(i int) []int32 {
	// BOS, template of two, message, template of two
	return []int32{bos, 10, 11, int32(20 + i), int32(30 + i), 40, 41, int32(42 + i), 43, 44, int32(50 + i), 12, 13}
}

func sides(n int, make func(i int) Answer) (ref, other Side, list []Question) {
	ref, other = Side{Backend: "native", Types: []string{"F16", "F16 KV"}}, Side{Backend: "srv", Types: []string{"F16"}}
	for i := range n {
		list = append(list, Question{ID: fmt.Sprintf("p%d", i), Prompt: "<a> hello <b>", Message: "hello"})
		ref.Answers = append(ref.Answers, answer(prompt(i), 12, 1, nil))
		other.Answers = append(other.Answers, make(i))
	}
	return ref, other, list
}

func TestVerdicts(t *testing.T) {
	plain := func(i int) Answer { return server(answer(prompt(i), 12, 1, nil)) }
	changed := func(change func(p []int32, i int) []int32) func(int) Answer {
		return func(i int) Answer {
			p := change(prompt(i), i)
			a := server(answer(p, 12, 1, nil))
			return a
		}
	}
	counts := func(make func(int) Answer) func(int) Answer {
		return func(i int) Answer { a := make(i); a.PromptIDs = nil; return a }
	}
	for _, c := range []struct {
		name    string
		make    func(i int) Answer
		change  func(ref, other *Side)
		verdict Verdict
		cause   Cause
		why     string
	}{
		{"the same", plain, nil, Identical, CauseNone, ""},
		{"the same by text", func(i int) Answer { return textOnly(answer(prompt(i), 12, 1, nil)) }, nil, Identical, CauseNone, ""},
		{"BOS twice", changed(func(p []int32, _ int) []int32 { return slices.Insert(p, 0, bos) }), nil, Different, CauseBOSTwice, "BOS (id 1) comes twice"},
		{"BOS twice, counts", counts(changed(func(p []int32, _ int) []int32 { return slices.Insert(p, 0, bos) })), nil, Different, CauseBOSTwice, "14 against 13"},
		{"another token first", changed(func(p []int32, _ int) []int32 { return slices.Insert(p, 0, 7) }), nil, Different, CauseBOSAdded, "(id 7) is put before"},
		{"BOS that the tokenizer does not add", counts(changed(func(p []int32, _ int) []int32 { return slices.Insert(p, 0, 7) })), func(ref, _ *Side) {
			for i := range ref.Answers {
				ref.Answers[i].Engine.BOS = -1
			}
		}, Different, CauseBOSAdded, "as if a BOS were added"},
		{"no BOS", changed(func(p []int32, _ int) []int32 { return p[1:] }), nil, Different, CauseNoBOS, "BOS is missing"},
		{"no BOS, counts", counts(changed(func(p []int32, _ int) []int32 { return p[1:] })), nil, Different, CauseNoBOS, "BOS is missing"},
		{"no template", changed(func(p []int32, _ int) []int32 { return slices.Concat(p[:1], p[3:len(p)-2]) }), nil, Different, CauseTemplate, "without the model's template"},
		{"no template, counts", counts(changed(func(p []int32, _ int) []int32 { return slices.Concat(p[:1], p[3:len(p)-2]) })), nil, Different, CauseTemplate, "without the model's template"},
		{"another template", changed(func(p []int32, _ int) []int32 {
			return slices.Concat(p[:1], []int32{91, 92, 93, 94}, p[3:len(p)-2], []int32{95, 96})
		}), nil, Different, CauseTemplate, "in other surroundings"},
		{"another template, counts, chat", counts(changed(func(p []int32, _ int) []int32 { return append(p, 95, 96) })), func(_, other *Side) { other.Chat = true }, Different, CauseTemplate, "chat route applies the server's own template"},
		{"the first tokens only", changed(func(p []int32, _ int) []int32 { return p[:6] }), nil, Different, CauseContext, "6 tokens of 13"},
		{"the last tokens only", changed(func(p []int32, _ int) []int32 { return p[7:] }), nil, Different, CauseContext, "6 tokens of 13"},
		{"BOS and the last tokens", changed(func(p []int32, _ int) []int32 { return slices.Concat(p[:1], p[8:]) }), nil, Different, CauseContext, "6 tokens of 13"},
		{"cut, counts", counts(changed(func(p []int32, _ int) []int32 { return p[:5] })), nil, Different, CauseContext, "5 tokens of 13"},
		{"told whole, computed in part", func(i int) Answer { a := plain(i); a.PromptTokens = 7; return a }, nil, Different, CauseContext, "7 tokens of 13"},
		{"one prompt of several", func(i int) Answer {
			if i != 2 {
				return plain(i)
			}
			return server(answer(slices.Insert(prompt(i), 0, bos), 12, 1, nil))
		}, nil, Different, CauseBOSTwice, "1 of 6 prompts"},
		{"another tokenizer", changed(func(p []int32, _ int) []int32 { p[4], p[6], p[8], p[9] = 66, 67, 68, 69; return p }), nil, Different, CauseTokenizer, "another tokenizer"},
		{"other weights", func(i int) Answer { return server(answer(prompt(i), 12, 2, nil)) }, nil, Different, CauseWeights, "other weights"},
		{"other weights by text", func(i int) Answer { return textOnly(answer(prompt(i), 12, 2, nil)) }, nil, Different, CauseWeights, "other weights"},
		{"noise of F16", func(i int) Answer { return server(answer(prompt(i), 12, 1, tilt(0.009))) }, widen(0.1), Close, CauseNone, "tie"},
		{"noise of F16 by text", func(i int) Answer { return textOnly(answer(prompt(i), 12, 1, tilt(0.009))) }, widen(0.1), Close, CauseNone, "tie"},
		{"noise of BF16 said to be F16", func(i int) Answer { return server(answer(prompt(i), 12, 1, tilt(0.07))) }, widen(1), Different, CauseDType, "BF16"},
		{"noise of BF16 said to be BF16", func(i int) Answer { return server(answer(prompt(i), 12, 1, tilt(0.07))) }, func(ref, other *Side) {
			widen(1)(ref, other)
			other.Types = []string{"bfloat16"}
		}, Close, CauseNone, "BF16"},
		{"no logits to judge by", func(i int) Answer { return server(answer(prompt(i), 12, 1, tilt(0.009))) }, func(ref, other *Side) {
			widen(0.1)(ref, other)
			for i := range ref.Answers {
				ref.Answers[i].Engine = nil
			}
		}, Different, CauseUnknown, "without the engine's own logits"},
		{"neither ids nor counts", func(i int) Answer { a := textOnly(answer(prompt(i), 12, 1, nil)); a.PromptTokens = 0; return a }, nil, Identical, CauseNone, ""},
		{"it could not be asked", plain, func(_, other *Side) { other.Failed = "no answer on its port" }, Failed, CauseNone, "srv: no answer on its port"},
		{"one prompt failed", func(i int) Answer {
			if i == 3 {
				return Answer{Failed: "too long"}
			}
			return plain(i)
		}, nil, Failed, CauseNone, "srv, prompt p3: too long"},
		{"all prompts failed", func(int) Answer { return Answer{Failed: "too long"} }, nil, Failed, CauseNone, "no prompt was answered by both; srv, prompt p0: too long"},
	} {
		ref, other, list := sides(6, c.make)
		if c.change != nil {
			c.change(&ref, &other)
		}
		r := Pair(ref, other, list, word)
		if r.Verdict != c.verdict || r.Cause != c.cause || !strings.Contains(r.Why, c.why) || strings.Contains(r.Why, "\n") {
			t.Errorf("%s: %s, %q, %q; want %s, %q, %q", c.name, r.Verdict, r.Cause, r.Why, c.verdict, c.cause, c.why)
		}
		if r.Verdict == Identical && (r.AnswersEqual != 6 || r.Tokens != 72 || len(r.Differ) > 0) {
			t.Errorf("%s: %+v", c.name, r)
		}
		if c.cause == CauseNone && c.verdict == Identical && strings.Contains(c.name, "text") != (r.AnswersBy == ByText) && c.name != "neither ids nor counts" {
			t.Errorf("%s: compared by %q", c.name, r.AnswersBy)
		}
	}
}

// tilt takes the second best token at position 5 and up, if it is within the
// share of the spread: what an error of half of it can do.
func tilt(share float64) func(int, []float32) {
	return func(position int, row []float32) {
		if position < 5 {
			return
		}
		r := NewRow(row, word)
		if gap := r.Top[0].Logit - r.Top[1].Logit; gap <= 2*share*r.spread() {
			row[r.Top[1].ID] = float32(r.Top[0].Logit) + 1
		}
	}
}

// widen makes sure that the noise has something to tilt: it counts that the
// tests' model does have near ties of about that gap.
func widen(gap float64) func(ref, other *Side) {
	return func(ref, other *Side) {
		for i, a := range ref.Answers {
			if !slices.Equal(a.IDs, other.Answers[i].IDs) && other.Answers[i].Text != a.Text {
				return
			}
		}
		panic(fmt.Sprintf("no answer has two logits within %g: the test tests nothing", gap))
	}
}

func TestEnds(t *testing.T) {
	row := func(top ...Candidate) Row { return Row{Top: top, Mean: -10} }
	a, b, stop := Candidate{5, " a", 9}, Candidate{6, " b", 8.9}, Candidate{end, "", 8.95}
	engine := &Engine{BOS: -1, Pieces: []string{" a", " b"}, Rows: []Row{row(a, b), row(b, stop, a)}}
	ref := Answer{PromptTokens: 3, IDs: []int32{5, 6}, Text: " a b", Engine: engine}
	stopped := Answer{PromptTokens: 3, IDs: []int32{5, end}, Text: " a", Stopped: true, Engine: &Engine{BOS: -1, Pieces: []string{" a", ""}, Rows: []Row{row(a, b), row(stop, b)}}}
	for _, c := range []struct {
		name       string
		ref, other Answer
		verdict    Verdict
		at         int
	}{
		{"both end, one tells the end's id", stopped, Answer{PromptTokens: 3, IDs: []int32{5}, Text: " a", Stopped: true}, Identical, -1},
		{"both end, by text", stopped, Answer{PromptTokens: 3, Text: " a", Stopped: true}, Identical, -1},
		{"the other ends at a near tie", ref, Answer{PromptTokens: 3, IDs: []int32{5}, Text: " a", Stopped: true}, Close, 1},
		{"the other ends at a near tie, with its id", ref, Answer{PromptTokens: 3, IDs: []int32{5, end}, Text: " a", Stopped: true}, Close, 1},
		{"the other ends at a near tie, by text", ref, Answer{PromptTokens: 3, Text: " a", Stopped: true}, Close, 1},
		{"the other goes on at a near tie", stopped, Answer{PromptTokens: 3, IDs: []int32{5, 6}, Text: " a b"}, Close, 1},
		{"the other goes on at a near tie, by text", stopped, Answer{PromptTokens: 3, Text: " a b"}, Close, 1},
		{"the other ends at once", ref, Answer{PromptTokens: 3, IDs: []int32{}, Stopped: true}, Different, 0},
	} {
		r := Pair(Side{Backend: "native", Answers: []Answer{c.ref}}, Side{Backend: "srv", Answers: []Answer{c.other}}, []Question{{ID: "p"}}, nil)
		if r.Verdict != c.verdict || (c.at < 0) != (len(r.Differ) == 0) || c.at >= 0 && r.Differ[0].Position != c.at {
			t.Errorf("%s: %s (%s) %+v", c.name, r.Verdict, r.Why, r.Differ)
		}
	}
}

// A character that was cut, and bytes that are none, are shown by one or many
// replacement characters: no difference.
func TestCutCharacters(t *testing.T) {
	engine := &Engine{BOS: -1, Pieces: []string{" caf", "\xc3", "\xa9", "\xed", "\x95"}, Rows: make([]Row, 5)}
	ref := Answer{PromptTokens: 1, IDs: []int32{1, 2, 3, 4, 5}, Text: " café", Engine: engine}
	for _, text := range []string{" café", " café\uFFFD", " café\uFFFD\uFFFD"} {
		r := Pair(Side{Backend: "native", Answers: []Answer{ref}}, Side{Backend: "srv", Answers: []Answer{{PromptTokens: 1, Text: text}}}, []Question{{ID: "p"}}, nil)
		if r.Verdict != Identical {
			t.Errorf("%q: %s, %+v", text, r.Verdict, r.Differ)
		}
	}
	r := Pair(Side{Backend: "native", Answers: []Answer{ref}}, Side{Backend: "srv", Answers: []Answer{{PromptTokens: 1, Text: " cafè"}}}, []Question{{ID: "p"}}, nil)
	if r.Verdict != Different || r.Differ[0].Position != 2 {
		t.Errorf("%s, %+v", r.Verdict, r.Differ)
	}
}

func TestNewRow(t *testing.T) {
	row := logits(7, 3)
	row[150] = row[20] // of equal ones the lowest id comes first
	r := NewRow(row, word)
	order := make([]int32, len(row))
	var sum float64
	for i := range order {
		order[i] = int32(i)
		sum += float64(row[i])
	}
	slices.SortStableFunc(order, func(a, b int32) int {
		switch {
		case row[a] > row[b]:
			return -1
		case row[a] < row[b]:
			return 1
		}
		return 0
	})
	if len(r.Top) != TopTokens || r.Mean != sum/float64(len(row)) {
		t.Fatalf("%d candidates, mean %g", len(r.Top), r.Mean)
	}
	for i, c := range r.Top {
		if c.ID != order[i] || c.Logit != float64(row[order[i]]) || c.Text != word(c.ID) {
			t.Fatalf("candidate %d is %+v, by sorting %d", i, c, order[i])
		}
	}
	if few := NewRow([]float32{1, 3, 2}, word); len(few.Top) != 3 || few.Top[0].ID != 1 || few.Top[2].ID != 0 {
		t.Errorf("%+v", few)
	}
}

func TestCoarsest(t *testing.T) {
	for _, c := range []struct {
		a, b []string
		want string
	}{
		{[]string{"F16", "F16 KV"}, []string{"float32"}, "F16"},
		{[]string{"F16"}, []string{"bfloat16"}, "BF16"},
		{[]string{"Q4_K - Medium", "F16 KV"}, []string{"Q4_K - Medium", "F16 KV"}, "F16"},
		{[]string{"Q4_K - Medium", "F16 KV"}, []string{"float16"}, "Q8_0"},
		{[]string{"Q8_0"}, nil, "Q8_0"},
		{nil, nil, "F16"},
	} {
		if got, share := coarsest(c.a, c.b); got != c.want || share <= 0 {
			t.Errorf("%v and %v: %s, %g; want %s", c.a, c.b, got, share, c.want)
		}
	}
}

func TestPairSampled(t *testing.T) {
	ref, other := Side{Backend: "native"}, Side{Backend: "srv"}
	a := Counts{1: 900, 2: 600, 3: 490, 4: 10}
	for _, c := range []struct {
		name    string
		b       Counts
		failed  string
		verdict Verdict
		why     string
	}{
		{"alike", Counts{1: 880, 2: 620, 3: 487, 4: 12, 5: 1}, "", Close, "p = "},
		{"a hotter one", Counts{1: 750, 2: 600, 3: 550, 4: 100}, "", Different, "p = "},
		{"failed", nil, "it does not tell ids", Failed, "srv: it does not tell ids"},
	} {
		other.Failed = c.failed
		if r := PairSampled(ref, other, a, c.b, 0.001); r.Verdict != c.verdict || !strings.Contains(r.Why, c.why) {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
	other.Failed = ""
	if r := PairSampled(ref, other, Counts{7: 100}, Counts{7: 100}, 0.001); r.Verdict != Identical {
		t.Errorf("%+v", r)
	}
	if r := PairSampled(ref, other, Counts{7: 100}, Counts{8: 100}, 0.001); r.Verdict != Different {
		t.Errorf("%+v", r)
	}
}
