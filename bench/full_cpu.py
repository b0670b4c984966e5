"""Full fine-tuning on a CPU: every weight trained, on three engines with each optimizer, and by plain PyTorch.

    python bench/full_cpu.py -m smollm2-135m          # 1x512 tokens, 2 threads, 3 rounds, in turns

Half of the tokens with loss, one micro-batch a step, the optimizer included. anytune's parameters and gradients are
float32 on every engine; cpu-bf16 and "cpu-torch, bf16" take products in bf16. The peer is transformers on the same
GGUF's weights with torch.optim.AdamW, all in float32 or all in bf16 (parameters, gradients and moments too). Figures
are medians over rounds; on a busy machine tokens per second of CPU time say more than tokens per second.
"""

from __future__ import annotations

from pathlib import Path

import common

options = common.parser(__doc__, rounds=3)
options.add_argument("--shape", default="1x512")
options.add_argument("--warmup", type=int, default=1)
args = options.parse_args()

before = common.machine()
model = str(common.model_file(args.model))
ENGINES = {
    "numpy": ("numpy", "auto"),
    "cpu-bf16": ("cpu-bf16", "auto"),
    "cpu-torch": ("cpu-torch", "f32"),
    "cpu-torch, bf16": ("cpu-torch", "bf16"),
}  # device, dtype
PEERS = {"transformers": "fp32", "transformers, bf16": "bf16"}
FIGURES = ("tokens_per_s", "tokens_per_cpu_s", "seconds")
QUIET = {"OMP_WAIT_POLICY": "PASSIVE"}  # torch's idle threads do not spin against those who work
SHARED = [model, "--shape", args.shape, "--threads", str(args.threads), "--warmup", str(args.warmup)]


def measure(optimizer: str) -> dict:
    """All engines with one optimizer, in turns; with adamw the peers, too."""
    children = [
        common.Child(
            name,
            ["bench/full_steps.py", *SHARED, "--device", device, "--dtype", dtype, "--optimizer", optimizer],
            common.environment(args.threads, **QUIET),
        )
        for name, (device, dtype) in ENGINES.items()
    ]
    if optimizer == "adamw":
        children += [
            common.Child(
                name,
                ["bench/peers/peft_cpu.py", *SHARED, "--full", "--dtype", dtype],
                common.environment(args.threads, **QUIET),
            )
            for name, dtype in PEERS.items()
        ]
    rounds = common.take_turns(children, args.rounds)
    sides = {}
    for number, child in enumerate(children):
        mine = [row[number] for row in rounds]
        sides[child.name] = {
            **{name: common.rounded(common.median(r[name] for r in mine), 4) for name in FIGURES},
            **child.ready,
            **child.end(),
            "rounds": mine,
        }
    return {"optimizer": optimizer, **sides}


common.save(
    "full_cpu",
    args,
    before,
    model=Path(model).stem,
    threads=args.threads,
    shape=args.shape,
    optimizers=[measure(kind) for kind in ("adamw", "adamw8bit", "adafactor")],
)
