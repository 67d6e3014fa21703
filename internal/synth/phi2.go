package synth

import (
	"fmt"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
)

// phi2Tensors lists the weights of Phi-2: rotary positions in a part of each
// head, one LayerNorm before attention and feed-forward side by side, GELU,
// biases throughout, an output matrix of its own. Names and shapes are those of
// llama.cpp's converter and of Transformers' PhiForCausalLM, whose heads are
// rotated in halves by both engines.
//
// The standard deviations serve what gpt2Tensors and llamaTensors say of theirs.
func phi2Tensors(s plan.Shape, _ int, quiet []span) []tensor {
	const (
		logitStd = 4.4
		token    = 0.2
		attend   = 2.2
		hidden   = 1.4
		attnOut  = 0.5
		ffnOut   = 1.0
		gain     = 0.1
		bias     = 0.1
	)
	width, ff := int64(s.Width), int64(s.FFN)
	output := linear("output.weight", "lm_head.weight", width, int64(s.Vocab), logitStd)
	output.quiet = quiet
	all := []tensor{
		{gguf: "token_embd.weight", hf: "model.embed_tokens.weight", rows: int64(s.Vocab), cols: width, std: token},
		vector("output_norm.weight", "model.final_layernorm.weight", width, 1, gain),
		vector("output_norm.bias", "model.final_layernorm.bias", width, 0, bias),
		output,
		vector("output.bias", "lm_head.bias", int64(s.Vocab), 0, bias),
	}
	for i := range s.Layers {
		g, h := fmt.Sprintf("blk.%d.", i), fmt.Sprintf("model.layers.%d.", i)
		all = append(all,
			vector(g+"attn_norm.weight", h+"input_layernorm.weight", width, 1, gain),
			vector(g+"attn_norm.bias", h+"input_layernorm.bias", width, 0, bias),
		)
		for _, m := range []struct {
			gguf, hf string
			in, out  int64
			std      float64
		}{
			{"attn_q", "self_attn.q_proj", width, width, attend},
			{"attn_k", "self_attn.k_proj", width, width, attend},
			{"attn_v", "self_attn.v_proj", width, width, attend},
			{"attn_output", "self_attn.dense", width, width, attnOut},
			{"ffn_up", "mlp.fc1", width, ff, hidden},
			{"ffn_down", "mlp.fc2", ff, width, ffnOut},
		} {
			all = append(all,
				linear(g+m.gguf+".weight", h+m.hf+".weight", m.in, m.out, m.std),
				vector(g+m.gguf+".bias", h+m.hf+".bias", m.out, 0, bias),
			)
		}
	}
	return all
}

// phi2Metadata gives the keys that llama.cpp's converter writes for Phi-2, and
// the base of its rotary frequencies.
func phi2Metadata(m plan.Model) []gguf.KV {
	s := m.Shape
	return []gguf.KV{
		{Key: "phi2.context_length", Value: uint32(m.Context)},
		{Key: "phi2.embedding_length", Value: uint32(s.Width)},
		{Key: "phi2.feed_forward_length", Value: uint32(s.FFN)},
		{Key: "phi2.block_count", Value: uint32(s.Layers)},
		{Key: "phi2.attention.head_count", Value: uint32(s.Heads)},
		{Key: "phi2.attention.head_count_kv", Value: uint32(s.KVHeads)},
		{Key: "phi2.attention.layer_norm_epsilon", Value: float32(s.Epsilon)},
		{Key: "phi2.rope.dimension_count", Value: uint32(s.RopeDims)},
		{Key: "phi2.rope.freq_base", Value: float32(s.RopeTheta)},
		{Key: "tokenizer.ggml.add_bos_token", Value: false},
	}
}

// phi2Config gives the keys of the checkpoint's config.json.
func phi2Config(m plan.Model) map[string]any {
	s := m.Shape
	return map[string]any{
		"architectures":           []string{"PhiForCausalLM"},
		"model_type":              "phi",
		"attention_dropout":       0.0,
		"embd_pdrop":              0.0,
		"hidden_act":              "gelu_new",
		"hidden_size":             s.Width,
		"initializer_range":       0.02,
		"intermediate_size":       s.FFN,
		"layer_norm_eps":          s.Epsilon,
		"max_position_embeddings": m.Context,
		"num_attention_heads":     s.Heads,
		"num_hidden_layers":       s.Layers,
		"num_key_value_heads":     s.KVHeads,
		"partial_rotary_factor":   float64(s.RopeDims) / float64(s.HeadSize()),
		"qk_layernorm":            false,
		"resid_pdrop":             0.1,
		"rope_scaling":            nil,
		"rope_theta":              s.RopeTheta,
		"tie_word_embeddings":     false,
		"use_cache":               true,
	}
}
