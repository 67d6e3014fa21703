#!/usr/bin/env python3
"""What Hugging Face Transformers says of a model: greedy continuations of token ids, and logits after them.

Reads one JSON object from standard input:

  {"prompts": [[id, ...], ...], "new_tokens": N,   continue each greedily by N tokens; end tokens are tokens like others
   "sequences": [[id, ...], ...], "last": K}       the logits after each of the last K ids of each

Prints {"greedy": [[id, ...], ...], "vocab": V, "rows": R, "transformers": …, "torch": …} and writes the logits, R rows of V
little-endian float32, to the file --out. Computes in float32 on the CPU unless --dtype says otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig


@torch.inference_mode()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--model", required=True, help="directory of a Hugging Face model")
    p.add_argument("--out", required=True, help="file for the logits")
    p.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"])
    p.add_argument("--threads", type=int, default=0, help="CPU threads of PyTorch; 0: its own choice")
    args = p.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    asked = json.load(sys.stdin)
    kind = {"torch_dtype" if int(transformers.__version__.split(".")[0]) < 5 else "dtype": getattr(torch, args.dtype)}
    model = AutoModelForCausalLM.from_pretrained(args.model, **kind).eval()
    model.generation_config = GenerationConfig()  # nothing from the model's own settings

    greedy: list[list[int]] = []
    if prompts := asked.get("prompts"):
        # All in one batch, padded at the left: the mask takes the padding out of attention and positions.
        width = max(len(ids) for ids in prompts)
        ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        how = GenerationConfig(max_new_tokens=asked["new_tokens"], do_sample=False, pad_token_id=0, use_cache=True)
        greedy = model.generate(input_ids=ids, attention_mask=mask, generation_config=how)[:, width:].tolist()
    rows = 0
    with open(args.out, "wb") as out:
        for ids in asked.get("sequences", []):
            found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -asked["last"] :].float().contiguous()
            out.write(found.numpy().astype("<f4").tobytes())
            rows += found.shape[0]
    answer = {
        "greedy": greedy,
        "vocab": model.config.vocab_size,
        "rows": rows,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
