package convert

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
)

// Inspect tells of a Hugging Face directory what is told of the GGUF file that
// Convert makes of it in F16, but for Arch, which is config.json's model_type. It
// reads no weights. Params and TensorBytes are 0 where the weights are not
// safetensors.
func Inspect(path string) (gguf.Summary, error) {
	d, err := readDirectory(path)
	if err != nil {
		return gguf.Summary{}, err
	}
	// Names of GPT-2's config.json come second.
	var c struct {
		Type     string `json:"model_type"`
		Layers   int    `json:"num_hidden_layers"`
		Layers2  int    `json:"n_layer"`
		Width    int    `json:"hidden_size"`
		Width2   int    `json:"n_embd"`
		Heads    int    `json:"num_attention_heads"`
		Heads2   int    `json:"n_head"`
		KVHeads  int    `json:"num_key_value_heads"`
		HeadSize int    `json:"head_dim"`
		Context  int    `json:"max_position_embeddings"`
		Context2 int    `json:"n_positions"`
		Inner    int    `json:"intermediate_size"`
		Inner2   int    `json:"n_inner"`
		Vocab    int    `json:"vocab_size"`
	}
	if err := d.readJSON("config.json", &c); err != nil {
		return gguf.Summary{}, err
	}
	s := gguf.Summary{
		Arch: c.Type, Name: d.name, DType: "F16",
		Context: cmp.Or(c.Context, c.Context2), Layers: cmp.Or(c.Layers, c.Layers2), Width: cmp.Or(c.Width, c.Width2),
		Heads: cmp.Or(c.Heads, c.Heads2), Vocab: c.Vocab,
		Params: d.params, TensorBytes: 2*d.matrices + 4*d.singles,
		Synthetic: d.synthetic, Seed: d.seed,
	}
	s.FFN = cmp.Or(c.Inner, c.Inner2, 4*s.Width)
	var missing []string
	for _, need := range []struct {
		name string
		n    int
	}{{"layers", s.Layers}, {"width", s.Width}, {"attention heads", s.Heads}, {"context", s.Context}} {
		if need.n <= 0 {
			missing = append(missing, need.name)
		}
	}
	if len(missing) > 0 {
		return s, fmt.Errorf("%s: its config.json does not state the number of %s in the way that text models do", path, strings.Join(missing, ", "))
	}
	kvHeads, headSize := cmp.Or(c.KVHeads, s.Heads), cmp.Or(c.HeadSize, s.Width/s.Heads)
	s.KVPerToken = 2 * int64(s.Layers) * int64(kvHeads) * int64(headSize)
	return s, nil
}
