package main

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/native"
)

// Operations of real graphs belong where their names say, and what an account
// adds up to is the step.
func TestOpsAccount(t *testing.T) {
	watched := native.Watched{EmptyNS: 10, MemoryRate: 1e9, Memory: "copying", FLOPRate: 4e9, Product: "a product"}
	watched.Decode = native.Steps{
		Seen: 4, Steps: 2, Tokens: 2, NS: 20000, SampleNS: 600,
		Ops: []native.Op{
			{Op: "MUL_MAT", Name: "ffn_up-0", Weight: "blk.0.ffn_up.weight", Count: 2, NS: 4020, Read: 3000, Written: 200, Weights: 2800, FLOPs: 2000},
			{Op: "MUL_MAT", Name: "ffn_up-1", Weight: "blk.1.ffn_up.weight", Count: 2, NS: 4020, Read: 3000, Written: 200, Weights: 2800, FLOPs: 2000},
			{Op: "FLASH_ATTN_EXT", Name: "node_9", Count: 2, NS: 1020, Read: 100, Written: 100, FLOPs: 3200},
			{Op: "ADD", Name: "l_out-0", Count: 2, NS: 12, Read: 800, Written: 400},
		},
	}
	whole := native.Watched{Decode: native.Steps{Steps: 3, NS: 24000, SampleNS: 900}}
	var a opsAccount
	a.fill(whole, watched)
	want := []opPart{
		{Kind: "attention", Op: "FLASH_ATTN_EXT", Calls: 1, NS: 500, Read: 50, Written: 50, FLOPs: 1600, Roofline: 0.8, ComputeIs: true},
		{Kind: "FFN up", Op: "MUL_MAT", Calls: 2, NS: 4000, Read: 3000, Written: 200, Weights: 2800, FLOPs: 2000, Roofline: 0.8},
		{Kind: "residual", Op: "ADD", Calls: 1, NS: 0, Short: true, Read: 400, Written: 200},
	}
	d := a.Decode
	if !slices.Equal(d.Parts, want) {
		t.Errorf("parts %+v\nwant %+v", d.Parts, want)
	}
	if d.PartsNS != 4500 || d.SamplingNS != 300 || d.ObservingNS != 20+10+6 || d.ObservedNS != 10300 || d.WholeNS != 8300 {
		t.Errorf("sums %+v", d)
	}
	if sum := d.PartsNS + d.SamplingNS + d.ObservingNS + d.BetweenNS; math.Abs(sum-d.ObservedNS) > 1e-6 {
		t.Errorf("the parts add up to %v of %v", sum, d.ObservedNS)
	}
	watched.Decode.OnDevice = true // then sampling is within the step
	a.fill(whole, watched)
	if d := a.Decode; d.ObservedNS != 10000 || d.WholeNS != 8000 || d.BetweenNS != 10000-4500-300-36 {
		t.Errorf("on the device: %+v", d)
	}
	for _, tc := range []struct {
		op   native.Op
		want string
	}{
		{native.Op{Op: "GET_ROWS", Weight: "token_embd.weight"}, "embedding"},
		{native.Op{Op: "MUL_MAT", Weight: "token_embd.weight"}, "LM head"}, // tied
		{native.Op{Op: "MUL_MAT", Weight: "output.weight"}, "LM head"},
		{native.Op{Op: "MUL", Weight: "output_norm.weight"}, "norms"},
		{native.Op{Op: "MUL", Weight: "blk.7.attn_norm.weight"}, "norms"},
		{native.Op{Op: "MUL", Weight: "blk.7.ffn_norm.weight"}, "norms"},
		{native.Op{Op: "RMS_NORM", Name: "norm-3"}, "norms"},
		{native.Op{Op: "MUL_MAT", Weight: "blk.7.attn_q.weight"}, "attention QKV"},
		{native.Op{Op: "ADD", Weight: "blk.7.attn_qkv.bias"}, "attention QKV"},
		{native.Op{Op: "MUL_MAT", Weight: "blk.7.attn_output.weight"}, "attention out"},
		{native.Op{Op: "MUL_MAT", Weight: "blk.7.ffn_gate.weight"}, "FFN gate"},
		{native.Op{Op: "MUL_MAT", Weight: "blk.7.ffn_gate_inp.weight"}, "experts' choice"},
		{native.Op{Op: "MUL_MAT", Weight: "blk.7.ffn_down.weight"}, "FFN down"},
		{native.Op{Op: "SWIGLU", Name: "ffn_swiglu-2"}, "FFN activation"},
		{native.Op{Op: "MUL_MAT", Name: "kq-2"}, "attention"},
		{native.Op{Op: "SOFT_MAX", Name: "kq_soft_max-2"}, "attention"},
		{native.Op{Op: "SET_ROWS", Name: "cache_k_l2 (view)"}, "KV cache write"},
		{native.Op{Op: "ROPE", Name: "Qcur-2"}, "rope"},
		{native.Op{Op: "ADD", Name: "inpL"}, "embedding"},
		{native.Op{Op: "ADD", Name: "ffn_inp-2"}, "residual"},
	} {
		if got := partOf(tc.op); got != tc.want {
			t.Errorf("%+v belongs to %q, want %q", tc.op, got, tc.want)
		}
	}
}

// The command accounts for real steps of real graphs, of both kinds of model.
func TestOps(t *testing.T) {
	if os.Getenv(native.EnvDir) == "" {
		t.Skipf("%s is not set: `make test` sets it", native.EnvDir)
	}
	if err := native.Available(""); errors.Is(err, native.ErrLeftOut) {
		t.Skip(err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	for model, parts := range map[string][]string{
		"gpt2":            {"embedding", "norms", "attention QKV", "KV cache write", "attention", "attention out", "FFN up", "FFN activation", "FFN down", "residual", "LM head"},
		"llama-2-7b-chat": {"embedding", "norms", "attention QKV", "rope", "KV cache write", "attention", "attention out", "FFN gate", "FFN up", "FFN activation", "FFN down", "residual", "LM head"},
	} {
		args := []string{"ops", "--model", model, "--weights", "synthetic", "--layers", "2", "--width", "256", "--prompt-tokens", "16", "--max-tokens", "4", "--repeat", "2", "--threads", "1"}
		code, stdout, stderr := invoke(t, append(args, "--format", "json")...)
		if code != exitOK {
			t.Fatalf("%s: status %d: %s", model, code, stderr)
		}
		var a opsAccount
		if err := json.Unmarshal([]byte(stdout), &a); err != nil {
			t.Fatal(err)
		}
		if a.Model.Key != model || !a.Model.Synthetic || a.Model.Relative == "" || a.MemoryRate == 0 || a.FLOPRate == 0 || a.EmptyNS == 0 {
			t.Errorf("%s: %+v", model, a)
		}
		for kind, s := range map[string]stepAccount{"prefill": a.Prefill, "decode": a.Decode} {
			tokens := map[string]float64{"prefill": 16, "decode": 1}[kind]
			if s.Steps == 0 || s.Seen < s.Steps || s.WholeNS <= 0 || s.SamplingNS <= 0 || s.Tokens != tokens {
				t.Errorf("%s, %s: %+v", model, kind, s)
			}
			if sum := s.PartsNS + s.SamplingNS + s.ObservingNS + s.BetweenNS; math.Abs(sum-s.ObservedNS) > 1 || s.BetweenNS < 0 {
				t.Errorf("%s, %s: the parts add up to %v of %v, %v of it between operations", model, kind, sum, s.ObservedNS, s.BetweenNS)
			}
			var seen []string
			for _, p := range s.Parts {
				if p.Kind != "other" && !slices.Contains(seen, p.Kind) {
					seen = append(seen, p.Kind)
				}
			}
			if !slices.Equal(seen, parts) {
				t.Errorf("%s, %s: parts %q, want %q", model, kind, seen, parts)
			}
		}
		if model != "gpt2" {
			continue
		}
		code, stdout, stderr = invoke(t, append(args, "--concurrency", "3")...)
		for _, want := range []string{"synthetic weights, a relative", "sequences at once: 3", "prefill: mean of the faster", "decode: mean of the faster", "sampling, on the host", "a step, unobserved", "LM head          MUL_MAT"} {
			if code != exitOK || !strings.Contains(stdout, want) {
				t.Errorf("status %d, no %q in:\n%s%s", code, want, stdout, stderr)
			}
		}
		for line := range strings.Lines(stdout) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > 110 {
				t.Errorf("a line of %d columns: %s", n, line)
			}
		}
	}
}

func TestOpsRefusals(t *testing.T) {
	noEngine := "no engine library at "
	if errors.Is(native.Available(""), native.ErrLeftOut) {
		noEngine = "this nativebench is client-only"
	}
	for want, args := range map[string][]string{
		"--max-tokens is 1; it must be at least 2":     {"--max-tokens", "1"},
		"--prompt-tokens is 0; it must be at least 1":  {"--prompt-tokens", "0"},
		"--concurrency is -1; it must be at least 1":   {"--concurrency", "-1"},
		"--repeat is 0; it must be at least 1":         {"--repeat", "0"},
		"--format csv: choose terminal or json":        {"--format", "csv"},
		`unknown model "gpt3"`:                         {"--model", "gpt3"},
		"there is no flag --mode":                      {"--mode", "sync"},
		"ops takes flags only, but was given \"gpt2\"": {"gpt2"},
		noEngine: {"--engine-dir", t.TempDir()},
	} {
		code, _, stderr := invoke(t, append([]string{"ops"}, args...)...)
		if code != exitUsage || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: status %d, want one line with %q: %s", args, code, want, stderr)
		}
	}
}
