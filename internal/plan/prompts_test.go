package plan_test

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/nativebench/nativebench/internal/plan"
)

func TestBuiltInPrompts(t *testing.T) {
	texts, ids := map[string]string{}, map[string]bool{}
	hangul := regexp.MustCompile(`\p{Hangul}`)
	// Phi-2's tokenizer is GPT-2's with tokens for runs of white space added:
	// without such runs both give the same tokens.
	run := regexp.MustCompile(`[ \t]{2}|\t|\r| \n|\n |\n\n\n`)
	for _, task := range plan.Tasks() {
		prompts := plan.Prompts(task.Key)
		if len(prompts) < 40 {
			t.Errorf("%s: %d prompts, want at least 40", task.Key, len(prompts))
		}
		korean := 0
		for _, p := range prompts {
			if p.Task != task.Key || ids[p.ID] || !strings.HasPrefix(p.ID, task.Key+"-") {
				t.Errorf("%s: id %q, task %q", task.Key, p.ID, p.Task)
			}
			ids[p.ID] = true
			if other := texts[p.Text]; other != "" {
				t.Errorf("%s and %s are the same", p.ID, other)
			}
			texts[p.Text] = p.ID
			if p.Text != strings.TrimSpace(p.Text) || !utf8.ValidString(p.Text) {
				t.Errorf("%s: white space around it, or not UTF-8", p.ID)
			}
			if at := run.FindStringIndex(p.Text); at != nil {
				t.Errorf("%s: a run of white space at byte %d", p.ID, at[0])
			}
			if hangul.MatchString(p.Text) != (p.Lang == "ko") || p.Lang != "ko" && p.Lang != "en" {
				t.Errorf("%s: language %q", p.ID, p.Lang)
			}
			if p.Lang == "ko" {
				korean++
			}
			if len(p.Tokens) != 4 {
				t.Errorf("%s: token counts %v", p.ID, p.Tokens)
			}
			for _, m := range plan.Models() {
				if m.Beyond() {
					continue // its templates may be longer than the task's range
				}
				most := p.Tokens[m.Key]
				if m.AddBOS {
					most++
				}
				if p.Tokens[m.Key] < task.InputTokens[0] || most > task.InputTokens[1] {
					t.Errorf("%s: %d tokens for %s, the task has %v", p.ID, most, m.Key, task.InputTokens)
				}
			}
		}
		if korean < 4 {
			t.Errorf("%s: %d Korean prompts, want at least 4", task.Key, korean)
		}
	}
	if p := plan.Prompts("no such task"); p != nil {
		t.Errorf("%d prompts for a task that has none", len(p))
	}
}

func TestPromptIndexIsAPermutation(t *testing.T) {
	for _, n := range []int{1, 2, 3, 4, 5, 7, 16, 17, 40, 45, 64, 65, 255, 256, 257, 1000} {
		for seed := range uint64(5) {
			for _, from := range []int{-n, 0, n, 7 * n} {
				seen := make([]bool, n)
				for i := from; i < from+n; i++ {
					at := plan.PromptIndex(seed, i, n)
					if at < 0 || at >= n || seen[at] {
						t.Fatalf("n %d, seed %d: request %d has prompt %d, out of range or for the second time", n, seed, i, at)
					}
					seen[at] = true
				}
			}
		}
	}
}

func TestPromptIndexDependsOnSeedAndRound(t *testing.T) {
	order := func(seed uint64, from int) string {
		var s []int
		for i := from; i < from+45; i++ {
			s = append(s, plan.PromptIndex(seed, i, 45))
		}
		return fmt.Sprint(s)
	}
	if order(1, 0) == order(2, 0) {
		t.Error("two seeds have the same order")
	}
	if order(1, 0) == order(1, 45) {
		t.Error("two rounds have the same order")
	}
	if order(1, 0) != order(1, -45) {
		t.Error("warm-up does not take the prompts of the first round from its end")
	}
	// Each prompt comes first for about as many seeds as any other: 400 of
	// 4000 expected, 19 is the standard deviation.
	first := make([]int, 10)
	for seed := range uint64(4000) {
		first[plan.PromptIndex(seed, 0, len(first))]++
	}
	if slices.Min(first) < 300 || slices.Max(first) > 500 {
		t.Errorf("how often each prompt is first: %v", first)
	}
}
