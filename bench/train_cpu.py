"""Training speed on a CPU: anytune's NumPy engine against transformers + peft, in one run, step by step in turns.

    python bench/train_cpu.py                 # 4x128 and 1x512 tokens, 2 threads, 7 rounds each

LoRA r=16 on all linears, half of the tokens with loss, AdamW included; the peer in float32 on the same weights,
dequantized, with its threads bound to cores and without (which is better depends on how quiet the machine is): the
better of the two is the one that counts. `ratio` is the median over rounds of anytune's tokens/s over the peer's in the
same round.
"""

from __future__ import annotations

from pathlib import Path

import common

options = common.parser(__doc__)
options.add_argument("--shapes", default="4x128,1x512")
options.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "autocast"], help="of the peer")
options.add_argument("--into", default="train_cpu", help="bench/results/INTO.json")
options.add_argument("--rank", type=int, default=16)
args = options.parse_args()

before = common.machine()
model = str(common.model_file(args.model))
PEER = "transformers+peft"
FIGURES = ("tokens_per_s", "tokens_per_cpu_s", "seconds")


def measure(shape: str) -> dict:
    shared = ["--shape", shape, "--threads", str(args.threads), "--rank", str(args.rank)]
    peer = ["bench/peers/peft_cpu.py", model, *shared, "--dtype", args.dtype]
    bound = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
    children = [
        common.Child("anytune", ["bench/steps.py", model, *shared], common.environment(args.threads)),
        common.Child(PEER, peer, common.environment(args.threads)),
        common.Child(PEER + ", bound threads", peer, common.environment(args.threads, **bound)),
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
    better = max((1, 2), key=lambda number: sides[children[number].name]["tokens_per_s"])

    def ratios(figure: str) -> list[float]:
        return [common.rounded(row[0][figure] / row[better][figure]) for row in rounds]

    speed, cpu = ratios("tokens_per_s"), ratios("tokens_per_cpu_s")
    return {
        "shape": shape,
        "ratio": common.rounded(common.median(speed)),
        "ratios": speed,
        "ratio_per_cpu_s": common.rounded(common.median(cpu)),
        "peer": children[better].name,
        **sides,
    }


common.save(
    "train_cpu",
    args,
    before,
    into=args.into,
    model=Path(model).stem,
    threads=args.threads,
    rank=args.rank,
    peer_dtype=args.dtype,
    shapes=[measure(shape) for shape in args.shapes.split(",")],
)
