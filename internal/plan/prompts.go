package plan

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
)

// Prompt is something to say to a model.
type Prompt struct {
	ID   string `json:"id"`             // unique among the prompts of its source
	Task string `json:"task,omitempty"` // key of the task; "" in a user's file that does not say
	Lang string `json:"lang,omitempty"` // of Text: en, ko; "" if not known
	Text string `json:"text"`           // what the user says, before the template

	// Tokens is the length in tokens of the rendered prompt without BOS, by
	// key of the model whose template and tokenizer were used. Built-in
	// prompts have it for every model, a user's prompts for none.
	Tokens map[string]int `json:"tokens,omitempty"`
}

//go:embed prompts/*.jsonl
var promptFiles embed.FS

// Prompts returns the built-in prompts of a task, always in the same order, or
// nothing for a task that has none. Their lengths lie in the task's range under
// the tokenizer of every model, rendered and not.
func Prompts(task string) []Prompt {
	data, err := promptFiles.ReadFile("prompts/" + task + ".jsonl")
	if err != nil {
		return nil
	}
	var prompts []Prompt
	for line := range bytes.Lines(data) {
		var p Prompt
		if err := json.Unmarshal(line, &p); err != nil {
			panic(fmt.Sprintf("plan: built-in prompts of %s, line %d: %v", task, len(prompts)+1, err)) // compiled in: only a bad build gets here
		}
		prompts = append(prompts, p)
	}
	return prompts
}

// PromptIndex says which of n > 0 prompts request i of a cell uses. Over n
// successive requests each prompt comes once, in an order that depends on the
// seed alone; each further n requests have another order. Warm-up requests
// (negative i) take the prompts that the first n requests use last, so that a
// short cell is not warmed up with what it measures.
//
// The order is a format-preserving permutation: four Feistel rounds on the
// smallest even number of bits that holds n, walked until the value falls below n
// (Black and Rogaway, CT-RSA 2002). It needs no memory, however many prompts
// there are.
func PromptIndex(seed uint64, i, n int) int {
	if n <= 1 {
		return 0
	}
	round := 0
	if i >= 0 {
		round = i / n
	}
	x := uint64((i%n + n) % n)
	half := uint(1)
	for 1<<(2*half) < n {
		half++
	}
	mask := uint64(1)<<half - 1
	for {
		left, right := x>>half, x&mask
		for key := range 4 {
			left, right = right, left^(RequestSeed(seed^right<<32, round*4+key)>>3&mask)
		}
		if x = left<<half | right; x < uint64(n) {
			return int(x)
		}
	}
}
