"""
Training speed on a CPU in bf16: anytune's two CPU engines against transformers + peft in bf16, step by step in turns.

    python bench/train_cpu_bf16.py            # 4x128 and 1x512 tokens, 2 threads, 9 rounds each; needs AVX-512 BF16

LoRA r=16 on all linears, half of the tokens with loss, AdamW included, all on the same GGUF's weights. The peer's model
is bf16 throughout (no autocast), its adapter float32 as peft makes it or bf16 as well, its threads bound to cores or
not: the fastest of these four is the one that counts. `ratio` is the median over rounds of cpu-bf16's tokens/s over
that peer's in the same round.
"""

from __future__ import annotations

from pathlib import Path

import common

options = common.parser(__doc__, rounds=9)
options.add_argument("--shapes", default="4x128,1x512")
options.add_argument("--rank", type=int, default=16)
args = options.parse_args()

before = common.machine()
model = str(common.model_file(args.model))
ENGINES = {
    "cpu-bf16": ["--device", "cpu-bf16"],
    "cpu-bf16 within 1 GiB": ["--device", "cpu-bf16", "--memory", "1GiB"],
    "numpy": ["--device", "numpy"],
}
PEERS = {
    f"transformers+peft{adapter}{place}": (dtype, surroundings)
    for adapter, dtype in (("", "bf16"), (", bf16 adapter", "bf16-all"))
    for place, surroundings in (("", {}), (", bound threads", {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}))
}
FIGURES = ("tokens_per_s", "tokens_per_cpu_s", "seconds")


def measure(shape: str) -> dict:
    shared = [model, "--shape", shape, "--threads", str(args.threads), "--rank", str(args.rank), "--warmup", "4"]
    children = [
        common.Child(name, ["bench/steps.py", *shared, *how], common.environment(args.threads))
        for name, how in ENGINES.items()
    ]
    children += [
        common.Child(
            name,
            ["bench/peers/peft_cpu.py", *shared, "--dtype", dtype],
            common.environment(args.threads, **surroundings),
        )
        for name, (dtype, surroundings) in PEERS.items()
    ]
    rounds = common.take_turns(children, args.rounds)
    sides = {}
    for number, child in enumerate(children):
        mine = [row[number] for row in rounds]
        sides[child.name] = {
            **{name: common.rounded(common.median(r[name] for r in mine), 4) for name in FIGURES},
            "best_tokens_per_s": max(r["tokens_per_s"] for r in mine),
            **child.ready,
            **child.end(),
            "rounds": mine,
        }
    peer = max(PEERS, key=lambda name: sides[name]["tokens_per_s"])

    def ratios(other: str, figure: str, own: str = "cpu-bf16") -> list[float]:
        both = zip(sides[own]["rounds"], sides[other]["rounds"])
        return [common.rounded(a[figure] / b[figure]) for a, b in both]

    speed = ratios(peer, "tokens_per_s")
    return {
        "shape": shape,
        "ratio": common.rounded(common.median(speed)),
        "ratios": speed,
        "ratio_per_cpu_s": common.rounded(common.median(ratios(peer, "tokens_per_cpu_s"))),
        "ratio_within_1_gib": common.rounded(common.median(ratios(peer, "tokens_per_s", "cpu-bf16 within 1 GiB"))),
        "ratio_to_numpy": common.rounded(common.median(ratios("numpy", "tokens_per_s"))),
        "peer": peer,
        **sides,
    }


common.save(
    "train_cpu_bf16",
    args,
    before,
    model=Path(model).stem,
    threads=args.threads,
    rank=args.rank,
    shapes=[measure(shape) for shape in args.shapes.split(",")],
)
