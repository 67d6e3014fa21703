package plan

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
)

// Model is one row of the table of models.
type Model struct {
	Key    string // how users and results name it
	Name   string // as its makers write it
	HubID  string // repository on the Hugging Face hub
	Size   string // number of parameters as it is usually printed, "6.7B"
	Params int64  // the same, counted from the tensor shapes
	Arch   string // general.architecture of its GGUF
	HFType string // model_type of the hub's config.json
	Gated  bool   // the hub asks for a token and an accepted licence
	// SamplingOf, if set, is the model of the experiment whose rows of the
	// sampling table this one takes: it is not one of the experiment's itself.
	SamplingOf string

	// Context is the number of positions, in tokens, prompt and output. It is
	// max_position_embeddings (GPT-2: n_positions) of the hub's config.json.
	Context int
	// SlidingWindow is how many tokens back a layer attends, 0 for all. A
	// prompt may be longer (Context is the limit); tokens further back are
	// then seen through the layers in between only. llama.cpp's converter and
	// engine leave it away for Mistral and attend to all.
	SlidingWindow int
	Shape         Shape

	// Before and After surround what the user says. They are the text of the
	// model's single-turn template without BOS: the server or engine adds BOS
	// itself where the tokenizer has one (AddBOS), and a second one would
	// silently change the prompt.
	Before, After string
	// TrimText drops white space around what the user says, as the model's own
	// template does.
	TrimText bool
	// AddBOS tells that the tokenizer puts a BOS before the prompt, so that a
	// backend counts one token more than the rendered text has.
	AddBOS bool
}

// Shape is what decides the tensors of a model, with its architecture. Sources:
// config.json on the hub and, for the vocabulary, what llama.cpp's sources hold.
type Shape struct {
	Layers, Width  int     // Width: elements of a token's embedding
	Heads, KVHeads int     // of attention: for queries; for keys and values
	FFN            int     // elements of the feed-forward's hidden layer
	Vocab          int     // rows of the embedding: tokens, then Padding rows without one
	Padding        int     // rows
	Epsilon        float64 // of the norms
	RopeTheta      float64 // base of the rotary frequencies; 0: positions are learned
	RopeDims       int     // elements of each head that are rotated

	// VocabFile, of llama.cpp's models directory, is the vocabulary of synthetic
	// weights. VocabPre, if set, is the pre-tokenizer where the file's is another
	// model's, and adds the tokens that go with it. VocabNote says in what the
	// vocabulary is not the model's own file; "" if it is.
	VocabFile, VocabPre, VocabNote string
}

// HeadSize is how many elements a head of attention has.
func (s Shape) HeadSize() int { return s.Width / s.Heads }

// Beyond tells a model that the experiment does not have.
func (m Model) Beyond() bool { return m.SamplingOf != "" }

// Render puts text, which is what the user says, into the model's single-turn
// template. The result has no BOS and goes to a raw completion route.
func (m Model) Render(text string) string {
	if m.TrimText {
		text = strings.TrimSpace(text)
	}
	return m.Before + text + m.After
}

// Models returns the table of models, in the order in which they run: the
// experiment's four, then those Beyond it. A model of an architecture that is
// here already is one row more.
func Models() []Model {
	return []Model{
		{
			Key: "gpt2", Name: "GPT-2 small", HubID: "openai-community/gpt2", Size: "124M", Params: 124_439_808,
			Arch: "gpt2", HFType: "gpt2", Context: 1024,
			Shape: Shape{
				Layers: 12, Width: 768, Heads: 12, KVHeads: 12, FFN: 3072, Vocab: 50257, Epsilon: 1e-5,
				VocabFile: "ggml-vocab-gpt-2.gguf",
			},
		},
		{
			Key: "phi-2", Name: "Phi-2", HubID: "microsoft/phi-2", Size: "2.7B", Params: 2_779_683_840,
			Arch: "phi2", HFType: "phi", Context: 2048,
			Before: "Instruct: ", After: "\nOutput:",
			Shape: Shape{
				Layers: 32, Width: 2560, Heads: 32, KVHeads: 32, FFN: 10240, Vocab: 51200, Padding: 905, Epsilon: 1e-5,
				RopeTheta: 10000, RopeDims: 32,
				VocabFile: "ggml-vocab-gpt-2.gguf", VocabPre: "phi-2",
				VocabNote: "GPT-2's vocabulary with Phi-2's 38 added tokens, runs of blanks and of tabs, written from their definition",
			},
		},
		{
			Key: "llama-2-7b-chat", Name: "Llama 2 7B Chat", HubID: "meta-llama/Llama-2-7b-chat-hf", Size: "6.7B", Params: 6_738_415_616,
			Arch: "llama", HFType: "llama", Gated: true, Context: 4096,
			Before: "[INST] ", After: " [/INST]", TrimText: true, AddBOS: true,
			Shape: Shape{
				Layers: 32, Width: 4096, Heads: 32, KVHeads: 32, FFN: 11008, Vocab: 32000, Epsilon: 1e-5,
				RopeTheta: 10000, RopeDims: 128, VocabFile: "ggml-vocab-llama-spm.gguf",
			},
		},
		{
			Key: "mistral-7b-instruct", Name: "Mistral 7B Instruct v0.1", HubID: "mistralai/Mistral-7B-Instruct-v0.1", Size: "7.3B", Params: 7_241_732_096,
			// Open when it was released; the hub asks for an account since 2024.
			Arch: "llama", HFType: "mistral", Gated: true, Context: 32768, SlidingWindow: 4096,
			Before: "[INST] ", After: " [/INST]", AddBOS: true,
			Shape: Shape{
				Layers: 32, Width: 4096, Heads: 32, KVHeads: 8, FFN: 14336, Vocab: 32000, Epsilon: 1e-5,
				RopeTheta: 10000, RopeDims: 128, VocabFile: "ggml-vocab-llama-spm.gguf",
				VocabNote: "Llama 2's vocabulary in place of Mistral's own, which has as many tokens but other ones",
			},
		},
		{
			Key: "llama-3-8b-instruct", Name: "Llama 3 8B Instruct", HubID: "meta-llama/Meta-Llama-3-8B-Instruct", Size: "8.0B", Params: 8_030_261_248,
			Arch: "llama", HFType: "llama", Gated: true, Context: 8192, SamplingOf: "llama-2-7b-chat",
			Before:   "<|start_header_id|>user<|end_header_id|>\n\n",
			After:    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
			TrimText: true, AddBOS: true,
			Shape: Shape{
				Layers: 32, Width: 4096, Heads: 32, KVHeads: 8, FFN: 14336, Vocab: 128256, Epsilon: 1e-5,
				RopeTheta: 500000, RopeDims: 128, VocabFile: "ggml-vocab-llama-bpe.gguf",
			},
		},
	}
}

// ModelByKey finds a model. The error of an unknown key lists the keys.
func ModelByKey(key string) (Model, error) {
	models := Models()
	if i := slices.IndexFunc(models, func(m Model) bool { return m.Key == key }); i >= 0 {
		return models[i], nil
	}
	return Model{}, unknown("model", key, modelKeys())
}

// Task is one row of the table of tasks.
type Task struct {
	Key  string // how users and results name it
	Name string // what is asked, for people
	// InputTokens and OutputTokens are the ranges, ends included, that prompts
	// keep to and answers are expected in. The cap that is sent is the
	// sampling table's, which for some rows lies outside OutputTokens.
	InputTokens, OutputTokens [2]int
}

// Tasks returns the table of tasks, in the order in which they run.
func Tasks() []Task {
	return []Task{
		{Key: "chat", Name: "free conversation", InputTokens: [2]int{20, 100}, OutputTokens: [2]int{20, 100}},
		{Key: "summarization", Name: "document summary", InputTokens: [2]int{200, 800}, OutputTokens: [2]int{50, 100}},
		{Key: "qa", Name: "closed-book, short answer", InputTokens: [2]int{100, 500}, OutputTokens: [2]int{10, 30}},
		{Key: "code", Name: "write a function", InputTokens: [2]int{10, 50}, OutputTokens: [2]int{50, 150}},
	}
}

// TaskByKey finds a task. The error of an unknown key lists the keys. The task
// of sweep cells, ContextTask, has no row and is not found.
func TaskByKey(key string) (Task, error) {
	tasks := Tasks()
	if i := slices.IndexFunc(tasks, func(t Task) bool { return t.Key == key }); i >= 0 {
		return tasks[i], nil
	}
	return Task{}, unknown("task", key, taskKeys())
}

// samplingRow is one cell of the table of sampling parameters.
type samplingRow struct {
	model, task       string
	temperature, topP float64
	maxTokens         int
}

func samplingTable() []samplingRow {
	return []samplingRow{
		{"gpt2", "chat", 0.9, 0.95, 100},
		{"gpt2", "summarization", 0.5, 0.9, 60},
		{"gpt2", "qa", 0.3, 1.0, 40},
		{"gpt2", "code", 0.8, 0.9, 100},

		{"phi-2", "chat", 0.8, 0.9, 100},
		{"phi-2", "summarization", 0.4, 0.9, 60},
		{"phi-2", "qa", 0.2, 1.0, 40},
		{"phi-2", "code", 0.7, 0.9, 90},

		{"llama-2-7b-chat", "chat", 0.7, 0.95, 150},
		{"llama-2-7b-chat", "summarization", 0.3, 0.9, 80},
		{"llama-2-7b-chat", "qa", 0.1, 1.0, 50},
		{"llama-2-7b-chat", "code", 0.6, 0.85, 120},

		{"mistral-7b-instruct", "chat", 0.8, 0.95, 120},
		{"mistral-7b-instruct", "summarization", 0.3, 0.9, 70},
		{"mistral-7b-instruct", "qa", 0.2, 1.0, 50},
		{"mistral-7b-instruct", "code", 0.7, 0.9, 110},
	}
}

// SamplingFor returns the row of the sampling table for a model and a task:
// temperature, top-p and the cap on output tokens; for a model beyond the
// experiment that of the model it names. Seed and IgnoreEOS are left zero. The error of an unknown key lists the keys.
func SamplingFor(model, task string) (bench.Sampling, error) {
	m, err := ModelByKey(model)
	if err != nil {
		return bench.Sampling{}, err
	}
	if m.Beyond() {
		model = m.SamplingOf
	}
	if _, err := TaskByKey(task); err != nil {
		return bench.Sampling{}, err
	}
	for _, r := range samplingTable() {
		if r.model == model && r.task == task {
			return bench.Sampling{Temperature: r.temperature, TopP: r.topP, MaxTokens: r.maxTokens}, nil
		}
	}
	return bench.Sampling{}, fmt.Errorf("no sampling row for model %q and task %q: the table of sampling parameters is not complete", model, task)
}

func modelKeys() (keys []string) {
	for _, m := range Models() {
		keys = append(keys, m.Key)
	}
	return keys
}

func taskKeys() (keys []string) {
	for _, t := range Tasks() {
		keys = append(keys, t.Key)
	}
	return keys
}

// unknown is the error for a name that is not among choices; it suggests the
// nearest one when it is near enough to be a slip of the fingers.
func unknown(kind, name string, choices []string) error {
	hint := ""
	if near := Nearest(name, choices); near != "" {
		hint = fmt.Sprintf(" did you mean %q?", near)
	}
	return fmt.Errorf("unknown %s %q:%s choose from %s", kind, name, hint, strings.Join(choices, ", "))
}

// Nearest returns the choice with the smallest edit distance from name, or ""
// when even that one differs in more than a third of its letters.
func Nearest(name string, choices []string) (near string) {
	best := -1
	for _, c := range choices {
		d := editDistance(strings.ToLower(name), c)
		if d <= max(len(c)/3, 1) && (best < 0 || d < best) {
			best, near = d, c
		}
	}
	return near
}

// editDistance is Levenshtein's, in bytes, with two neighbours exchanged as one
// step (optimal string alignment).
func editDistance(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			if a[i-1] == b[j-1] {
				d[i][j] = d[i-1][j-1]
				continue
			}
			d[i][j] = 1 + min(d[i-1][j-1], d[i-1][j], d[i][j-1])
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}
