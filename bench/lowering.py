"""Types that fall while an adapter trains on SmolLM2-135M, off the grid, against the same run on the unrounded model.

python bench/lowering.py                  # 6 stages of 10 steps of 128 tokens, down to 4.3 bits a weight
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
from offgrid import write_f16

import anytune
from anytune.quantization.search.lowering import lower
from anytune.text import build_dataset


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--stages", type=int, default=5)
    options.add_argument("--every", type=int, default=10, help="steps of a stage")
    options.add_argument("--context", type=int, default=128, help="tokens of a step")
    options.add_argument("--to", type=float, default=4.3, help="bits a weight")
    args = options.parse_args()
    before = common.machine()
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        path = write_f16(common.model_file(args.model), Path(name) / "f16.gguf")
        model = anytune.load(path, device="numpy", threads=args.threads)
        data = build_dataset(
            common.ROOT / "examples/email/train.jsonl",
            model.tokenizer,
            model.template,
            context=args.context,
            loss="assistant",
        )
        found = lower(
            model,
            data,
            anytune.Lora(),
            to=args.to,
            stages=args.stages,
            every=args.every,
            lr=5e-4,
            ubatch=args.context,
            threads=args.threads,
        )
    common.save(
        "lowering", args, before, model="SmolLM2-135M off the grid, F16", tokens_a_step=args.context, **found.facts()
    )


if __name__ == "__main__":
    main()
