#!/usr/bin/env python3
"""What Hugging Face Transformers says of a model: logits after sequences of token ids, and greedy continuations.

Reads one JSON object from standard input:

  {"greedy": [[id, ...], ...], "new_tokens": N,   continue each greedily by N tokens (end tokens are tokens like others)
   "logits": [[id, ...], ...], "last": K}         the logits after each of the last K ids of each

Prints {"greedy": [[id, ...], ...], "vocab": V, "rows": R, "transformers": …, "torch": …} and writes the logits, R rows of V
little-endian float32, to the file --out. Computes in float32 on the CPU unless --dtype says otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM


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

    def greedy(ids: list[int], n: int) -> list[int]:
        made: list[int] = []
        now, cache = torch.tensor([ids]), None
        for _ in range(n):
            out = model(input_ids=now, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            made.append(int(out.logits[0, -1].float().argmax()))
            now = torch.tensor([made[-1:]])
        return made

    answer = {"greedy": [greedy(ids, asked["new_tokens"]) for ids in asked.get("greedy", [])]}
    rows = 0
    with open(args.out, "wb") as out:
        for ids in asked.get("logits", []):
            found = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -asked["last"] :].float().contiguous()
            out.write(found.numpy().astype("<f4").tobytes())
            rows += found.shape[0]
    answer |= {
        "vocab": model.config.vocab_size,
        "rows": rows,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
    }
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
