package synth

import (
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
)

// smallJob is a relative with a vocabulary of 300 made-up tokens.
func smallJob(t testing.TB, key string, layers, width int) *job {
	t.Helper()
	m, err := modelByKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if m, err = m.resized(layers, width); err != nil {
		t.Fatal(err)
	}
	m.Shape.Vocab, m.Shape.Padding = 300, 0
	v := &vocabulary{file: "made up", bos: 1, eos: 2, addsBOS: true}
	if m.Arch != "llama" {
		v.pre = "gpt-2"
	}
	for id := range m.Shape.Vocab {
		v.tokens, v.kinds, v.scores = append(v.tokens, fmt.Sprintf("<%d>", id)), append(v.kinds, kindNormal), append(v.scores, 0)
	}
	v.kinds[0], v.kinds[1], v.kinds[2] = kindUnknown, kindControl, kindControl
	v.fillQuiet()
	v.kv = []gguf.KV{{Key: "tokenizer.ggml.tokens", Value: v.tokens}}
	return &job{model: m, seed: 1, dtype: F16, vocab: v, tensors: m.arch.tensors(m.Shape, m.Context, v.quiet), hf: true, shardBytes: mostShardBytes}
}

// relatives are the smallest of each architecture that have more than one head
// where heads are rotated, and share keys where the model does.
func relatives() map[string]int {
	return map[string]int{"gpt2": 64, "phi-2": 160, "llama-2-7b-chat": 256, "mistral-7b-instruct": 1024}
}

func writeJob(t testing.TB, j *job) *Result {
	t.Helper()
	st, err := openStore(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer st.close()
	if err := st.write(t.Context(), j, nil, nil); err != nil {
		t.Fatal(err)
	}
	r, err := Open(st.dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestShapesHaveTheParametersOfTheTable: what is written has as many numbers as
// the row says that the real model has.
func TestShapesHaveTheParametersOfTheTable(t *testing.T) {
	for _, row := range plan.Models() {
		m, err := modelByKey(row.Key)
		if err != nil {
			t.Error(err)
			continue
		}
		j := job{tensors: m.arch.tensors(m.Shape, m.Context, nil)}
		if got := j.params(); got != row.Params {
			t.Errorf("%s: the tensors have %d numbers, the table says %d", row.Key, got, row.Params)
		}
		if h := m.Shape; h.Width%h.Heads != 0 || h.Heads%h.KVHeads != 0 || h.RopeDims > h.HeadSize() || (h.RopeDims == 0) != (h.RopeTheta == 0) {
			t.Errorf("%s: no model has the shape %+v", row.Key, h)
		}
	}
}

// TestGoldenOfEachArchitecture is TestGolden for the others.
func TestGoldenOfEachArchitecture(t *testing.T) {
	if Generator != 2 {
		t.Errorf("Generator is %d: put its hashes here", Generator)
	}
	for key, want := range map[string][2]string{
		"phi-2":               {"35e3f1a2b669a11193e2885552b58ef5c0406ecae4ab017b1bbe95cfa44670f2", "8c56815dbbe96c7be778b4411155b24eb19764f93a2a14b89fe8a023a26615bc"},
		"llama-2-7b-chat":     {"3256a2b83ffa234bbc4b5e065bd68bf2bf8a58045811f7ca153b7250502e7dea", "8ca679967680c7662a48549c921971f77c7c903b4cc6a3a9d0e40b697fb2e1b3"},
		"mistral-7b-instruct": {"ab02640e5265c3973bc066573408c44893445a79931f46d6fe11ac44b0c1d5ca", "178a321d0e32824fb04ef46d415f03108435fc78d2cf8562435d381e781d98a3"},
	} {
		r := writeJob(t, smallJob(t, key, 1, relatives()[key]))
		got := [2]string{sha256Of(t, r.GGUF), sha256Of(t, filepath.Join(r.HFDir, safetensorsName))}
		if got != want {
			t.Errorf("%s: the files are\n%q, not\n%q", key, got, want)
		}
	}
}

// transformersName translates a GGUF name by llama.cpp's table of names
// (gguf-py/gguf/tensor_mapping.py) for Phi-2, Llama and Mistral.
func transformersName(arch, name string) string {
	names := [][2]string{
		{"token_embd", "model.embed_tokens"},
		{"blk.", "model.layers."},
		{"attn_norm", "input_layernorm"},
		{"attn_q.", "self_attn.q_proj."},
		{"attn_k.", "self_attn.k_proj."},
		{"attn_v.", "self_attn.v_proj."},
	}
	if arch == "phi2" {
		names = append(names, [][2]string{
			{"output_norm", "model.final_layernorm"},
			{"attn_output", "self_attn.dense"},
			{"ffn_up", "mlp.fc1"},
			{"ffn_down", "mlp.fc2"},
		}...)
	} else {
		names = append(names, [][2]string{
			{"output_norm", "model.norm"},
			{"attn_output", "self_attn.o_proj"},
			{"ffn_norm", "post_attention_layernorm"},
			{"ffn_gate", "mlp.gate_proj"},
			{"ffn_up", "mlp.up_proj"},
			{"ffn_down", "mlp.down_proj"},
		}...)
	}
	for _, p := range names {
		name = strings.Replace(name, p[0], p[1], 1)
	}
	if strings.HasPrefix(name, "output.") {
		name = "lm_head" + strings.TrimPrefix(name, "output")
	}
	return name
}

// TestRotatedHeadsAreInterleaved compares the two files of each architecture
// element by element: rows of Llama's and Mistral's queries and keys stand in
// pairs in GGUF and in halves of a head in safetensors, all others alike.
func TestRotatedHeadsAreInterleaved(t *testing.T) {
	for key, width := range relatives() {
		if key == "gpt2" {
			continue // TestFilesHoldTheSameNumbers
		}
		t.Run(key, func(t *testing.T) {
			j := smallJob(t, key, 2, width)
			r := writeJob(t, j)
			left, right := readGGUF(t, r.GGUF), readSafetensors(t, filepath.Join(r.HFDir, safetensorsName))
			if len(left) != len(right) {
				t.Fatalf("%d tensors in GGUF, %d in safetensors", len(left), len(right))
			}
			interleaved := 0
			for name, l := range left {
				hf := transformersName(j.model.Arch, name)
				r, ok := right[hf]
				if !ok || !slices.Equal(l.shape, r.shape) {
					t.Fatalf("%s has shape %v; %s is there: %v, with shape %v", name, l.shape, hf, ok, r.shape)
				}
				heads := 0
				switch {
				case j.model.Arch == "llama" && strings.HasSuffix(name, "attn_q.weight"):
					heads = j.model.Shape.Heads
				case j.model.Arch == "llama" && strings.HasSuffix(name, "attn_k.weight"):
					heads = j.model.Shape.KVHeads
				}
				want := l.numbers
				if heads > 0 {
					interleaved++
					want = halves(l, heads)
				}
				if !slices.Equal(want, r.numbers) {
					t.Errorf("%s and %s hold other numbers", name, hf)
				}
			}
			if want := 2 * 2; j.model.Arch == "llama" && interleaved != want {
				t.Errorf("%d interleaved tensors, want %d", interleaved, want)
			}
		})
	}
}

// halves puts pairs of rows apart: rows 0, 2, 4 … of a head first.
func halves(a array, heads int) []float32 {
	size := int(a.shape[0]) / heads
	var out []float32
	for h := range heads {
		for _, odd := range []int{0, 1} {
			for i := odd; i < size; i += 2 {
				row := (h*size + i) * int(a.shape[1])
				out = append(out, a.numbers[row:row+int(a.shape[1])]...)
			}
		}
	}
	return out
}

func TestNumbersOfEachArchitectureHaveTheirMoments(t *testing.T) {
	for key, width := range relatives() {
		j := smallJob(t, key, 1, width)
		left := readGGUF(t, writeJob(t, j).GGUF)
		for _, want := range j.tensors {
			numbers := left[want.gguf].numbers
			for _, q := range want.quiet { // the first rows
				if got, std := moments(numbers[:q.to*want.cols]).std, float64(want.std*quietBy); got > 1.3*std || got < 0.7*std {
					t.Errorf("%s %s: rows of tokens without text have a standard deviation of %v, want %v", key, want.gguf, got, std)
				}
				numbers = numbers[q.to*want.cols:]
			}
			got, n := moments(numbers), math.Sqrt(float64(len(numbers)))
			if math.Abs(got.mean-float64(want.mean)) > 6*float64(want.std)/n || math.Abs(got.std/float64(want.std)-1) > 6/n {
				t.Errorf("%s %s: mean %v ± %v, want %v ± %v", key, want.gguf, got.mean, got.std, want.mean, want.std)
			}
		}
	}
}

// TestShards: the files of a model that is too large for one hold the same
// tensors, and the index tells which has which.
func TestShards(t *testing.T) {
	j := smallJob(t, "phi-2", 2, 160)
	whole := readSafetensors(t, filepath.Join(writeJob(t, j).HFDir, safetensorsName))
	j.shardBytes = 400_000
	dir := writeJob(t, j).HFDir
	var index struct {
		Metadata struct {
			Total int64 `json:"total_size"`
		} `json:"metadata"`
		Where map[string]string `json:"weight_map"`
	}
	b, err := os.ReadFile(filepath.Join(dir, safetensorsIndex))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &index); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.safetensors"))
	if err != nil || len(names) < 3 {
		t.Fatalf("shards %q, %v", names, err)
	}
	seen, total := 0, int64(0)
	for i, path := range names {
		if want := fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(names)); filepath.Base(path) != want {
			t.Errorf("%s, want %s", path, want)
		}
		bytes := int64(0)
		for name, a := range readSafetensors(t, path) {
			seen++
			bytes += 2 * int64(len(a.numbers))
			if index.Where[name] != filepath.Base(path) {
				t.Errorf("%s is in %s, the index says %q", name, path, index.Where[name])
			}
			if diff := cmp.Diff(whole[name].shape, a.shape); diff != "" || !slices.Equal(whole[name].numbers, a.numbers) {
				t.Errorf("%s is another in %s: %s", name, path, diff)
			}
		}
		total += bytes
		if bytes > j.shardBytes {
			t.Errorf("%s holds %d bytes, want at most %d", path, bytes, j.shardBytes)
		}
	}
	if seen != len(whole) || len(index.Where) != len(whole) || index.Metadata.Total != total {
		t.Errorf("%d tensors of %d bytes; the index has %d and %d; the whole file %d", seen, total, len(index.Where), index.Metadata.Total, len(whole))
	}
}

// TestConfigsTellTheShape: both files of a relative say the same of it.
func TestConfigsTellTheShape(t *testing.T) {
	for key, want := range map[string]struct {
		class  string
		gguf   map[string]any
		config map[string]any
	}{
		"phi-2": {
			"PhiForCausalLM",
			map[string]any{"phi2.rope.dimension_count": uint32(32), "phi2.feed_forward_length": uint32(640), "tokenizer.ggml.add_bos_token": false},
			map[string]any{"partial_rotary_factor": 0.4, "intermediate_size": 640.0, "layer_norm_eps": 1e-5},
		},
		"llama-2-7b-chat": {
			"LlamaForCausalLM",
			map[string]any{"llama.feed_forward_length": uint32(688), "llama.attention.head_count_kv": uint32(2), "llama.rope.freq_base": float32(10000), "llama.rope.dimension_count": uint32(128)},
			map[string]any{"intermediate_size": 688.0, "num_key_value_heads": 2.0, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 4096.0},
		},
		"mistral-7b-instruct": {
			"MistralForCausalLM",
			map[string]any{"general.architecture": "llama", "llama.feed_forward_length": uint32(3584), "llama.attention.head_count_kv": uint32(2), "llama.context_length": uint32(32768)},
			map[string]any{"model_type": "mistral", "intermediate_size": 3584.0, "num_key_value_heads": 2.0, "sliding_window": 4096.0},
		},
	} {
		r := writeJob(t, smallJob(t, key, 1, relatives()[key]))
		f, err := gguf.ReadFile(r.GGUF)
		if err != nil {
			t.Fatal(err)
		}
		for k, v := range want.gguf {
			if got, _ := f.Value(k); got != v {
				t.Errorf("%s: %s is %v, want %v", key, k, got, v)
			}
		}
		b, err := os.ReadFile(filepath.Join(r.HFDir, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		var config map[string]any
		if err := json.Unmarshal(b, &config); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]any{want.class}, config["architectures"]); diff != "" {
			t.Errorf("%s: %s", key, diff)
		}
		for k, v := range want.config {
			if config[k] != v {
				t.Errorf("%s: config.json has %s %v, want %v", key, k, config[k], v)
			}
		}
	}
}

func TestRelativesKeepTheirProportions(t *testing.T) {
	m, err := modelByKey("mistral-7b-instruct")
	if err != nil {
		t.Fatal(err)
	}
	small, err := m.resized(2, 1024)
	if err != nil {
		t.Fatal(err)
	}
	want := m.Shape
	want.Layers, want.Width, want.Heads, want.KVHeads, want.FFN = 2, 1024, 8, 2, 3584
	if diff := cmp.Diff(want, small.Shape); diff != "" || small.Name != "Mistral 7B Instruct v0.1 cut to 2 layers of width 1024" {
		t.Errorf("%s: %s", small.Name, diff)
	}
	if whole, err := m.resized(0, 0); err != nil || whole.Shape != m.Shape || whole.Name != m.Name {
		t.Errorf("%+v, %v", whole.Model, err)
	}
	if _, err := m.resized(0, 128); err == nil || !strings.Contains(err.Error(), "choose a multiple of 512, its head size 128 times the 4 heads that share a key, up to") {
		t.Errorf("error %v", err)
	}
	for _, row := range plan.Models() {
		m, err := modelByKey(row.Key)
		if err != nil {
			t.Fatal(err)
		}
		step := m.Shape.HeadSize() * m.Shape.Heads / m.Shape.KVHeads
		if m.Shape.FFN*step%m.Shape.Width != 0 {
			t.Errorf("%s: relatives of width %d have a feed-forward of %d/%d elements", row.Key, step, m.Shape.FFN*step, m.Shape.Width)
		}
	}
}

// TestGGUFOnly: the Hugging Face directory is left out, and added when it is
// asked for, without writing the GGUF file again.
func TestGGUFOnly(t *testing.T) {
	s, dir := least(t), t.TempDir()
	s.GGUFOnly = true
	first := write(t, s, dir)
	if names := list(t, dir); strings.Join(names, " ") != "gpt2-synthetic-F16.gguf synth.json" || first.HFDir != "" || len(first.Files) != 1 {
		t.Errorf("the directory holds %q; %+v", names, first)
	}
	if r := write(t, s, dir); !r.Reused {
		t.Errorf("again: %+v", r)
	}
	before, err := os.Stat(first.GGUF)
	if err != nil {
		t.Fatal(err)
	}
	s.GGUFOnly = false
	both := write(t, s, dir)
	after, err := os.Stat(both.GGUF)
	if err != nil {
		t.Fatal(err)
	}
	if both.Reused || both.HFDir == "" || both.CRC32C != first.CRC32C || !os.SameFile(before, after) {
		t.Errorf("with the directory: %+v; the GGUF file is the same: %v", both, os.SameFile(before, after))
	}
	if err := both.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if fresh := write(t, s, t.TempDir()); cmp.Diff(fresh.Files, both.Files) != "" {
		t.Errorf("written at once it is another: %s", cmp.Diff(fresh.Files, both.Files))
	}
	s.GGUFOnly = true
	if r := write(t, s, dir); !r.Reused || r.HFDir == "" {
		t.Errorf("what is there is taken away or not told: %+v", r)
	}
}
