"""What Hugging Face Transformers makes of a directory, for transformers_test.go.

Standard input is a JSON object: "texts" to tokenize, "rows" of token ids and
"last". Standard output is one: "ids" of each text, without special tokens, and
"whole" with them; and, if there are rows, "logits" after each of the last ids
of each row, computed in float32 on the CPU.
"""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.inference_mode()
def main() -> None:
    folder = sys.argv[1]
    asked = json.load(sys.stdin)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    answer = {
        "ids": [tokenizer.encode(text, add_special_tokens=False) for text in asked["texts"]],
        "whole": [tokenizer.encode(text) for text in asked["texts"]],
    }
    if asked["rows"]:
        model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()
        answer["logits"] = [
            model(input_ids=torch.tensor([ids])).logits[0, -asked["last"] :].tolist() for ids in asked["rows"]
        ]
    json.dump(answer, sys.stdout)


main()
