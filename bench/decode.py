"""Decoding speed against llama.cpp's on the same file: greedy, same prompt, 1 and 2 threads, answers in turns.

python bench/decode.py
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import common

PROMPT = (
    "<|im_start|>user\nWrite a letter to a friend about a walk along a canal, in as much detail as you can."
    "<|im_end|>\n<|im_start|>assistant\n"
)
options = common.parser(__doc__, rounds=5)
options.add_argument("-n", "--tokens", type=int, default=64)
args = options.parse_args()
before = common.machine()
model = str(common.model_file(args.model))


def prompt_ids() -> list[int]:
    import anytune

    return anytune.load(model, threads=1).tokenize(PROMPT, special=True)


def measure(threads: int, prompt: list[int]) -> dict:
    job = json.dumps({"model": model, "threads": threads, "prompt": prompt, "tokens": args.tokens})
    children = [
        common.Child("anytune", ["bench/decode_ours.py", job], common.environment(threads)),
        common.Child("llama.cpp", ["bench/peers/llamacpp_decode.py", job], common.environment(threads)),
    ]
    rounds = common.take_turns(children, args.rounds)
    # 8-bit activations in llama.cpp may turn a close call: how far the texts agree is told, not judged.
    agree = min(len(os.path.commonprefix([a["text"], b["text"]])) / max(1, len(b["text"])) for a, b in rounds)
    sides = {}
    for number, child in enumerate(children):
        mine = [{k: v for k, v in row[number].items() if k != "text"} for row in rounds]
        sides[child.name] = {
            "tokens_per_s": common.rounded(common.median(r["tokens_per_s"] for r in mine)),
            "prompt_tokens_per_s": common.rounded(common.median(r["prompt_tokens_per_s"] for r in mine)),
            **child.end(),
            "rounds": mine,
        }
    return {
        "threads": threads,
        "ratio": common.rounded(common.median(a["tokens_per_s"] / b["tokens_per_s"] for a, b in rounds)),
        "text_agrees": round(agree, 2),
        "text": rounds[0][0]["text"],
        **sides,
    }


prompt = prompt_ids()
common.save(
    "decode",
    args,
    before,
    model=Path(model).stem,
    tokens=args.tokens,
    prompt_tokens=len(prompt),
    threads=[measure(threads, prompt) for threads in range(1, args.threads + 1)],
)
