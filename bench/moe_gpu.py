"""A mixture of experts on one GPU: anytune on Q4_K blocks against transformers + peft in bf16, in one run.

    python bench/moe_gpu.py                  # all of Qwen3-30B-A3B's 48 layers: about three minutes on an H200
    python bench/moe_gpu.py --layers 24

Random weights, LoRA r=16 on attention's linears on both sides, the second half of each example with loss, whole
optimizer steps. Where the peer's memory does not suffice it runs its layers' forward twice. `grouped_tflops` is what
torch's grouped product reaches on this shape's experts, forward and backward, tokens drawn evenly, beside one large
product of the same card.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import common
import experts

LIMIT = 150  # seconds for one contestant
GROUPED = """
import json, torch
def tflops(run, flop, count=20):
    for _ in range(3): run()
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    first.record()
    for _ in range(count): run()
    last.record(); torch.cuda.synchronize()
    return round(count * flop / first.elapsed_time(last) / 1e9, 1)
S, E, D, H = SLOTS, EXPERTS, WIDTH, HIDDEN
draw = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16)
counts = torch.randint(0, E, (S,)).bincount(minlength=E)
offs = counts.cumsum(0).to(torch.int32).cuda()
x, dy, h, w, v = draw(S, D), draw(S, 2 * H), draw(S, H), draw(E, 2 * H, D), draw(E, D, H)
big = draw(8192, 8192)
g = torch._grouped_mm
print(json.dumps({
    "gemm_tflops": tflops(lambda: big @ big, 2 * 8192**3),
    "grouped_tflops": {
        "gate and up": tflops(lambda: g(x, w.transpose(1, 2), offs=offs), 4 * S * D * H),
        "down": tflops(lambda: g(h, v.transpose(1, 2), offs=offs), 2 * S * D * H),
        "gate and up, backward": tflops(lambda: g(dy, w, offs=offs), 4 * S * D * H),
        "down, backward": tflops(lambda: g(x, v, offs=offs), 2 * S * D * H),
    },
    "gpu": torch.cuda.get_device_name(0),
}))
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    options.add_argument("--model", default="qwen3-30b-a3b", choices=experts.SHAPES)
    options.add_argument("--layers", type=int, default=48)
    options.add_argument("--shape", default="8x1024", help="examples x tokens of each")
    options.add_argument("--memory", help="for ours, such as 40GiB")
    options.add_argument("--profile", action="store_true", help="with ours, the time of a step by kernel")
    options.add_argument("--no-peer", action="store_true")
    options.add_argument("--folder", help="where the model file goes; default: a temporary one")
    options.add_argument("--file", type=Path, help="a file that bench/experts.py wrote, of as many layers")
    options.add_argument("--no-save", action="store_true", help="print only; leave bench/results alone")
    args = options.parse_args()
    before, env, rows = common.machine(), common.environment(8), {}
    width, count, used, hidden, *_ = experts.SHAPES[args.model]
    slots, length = used * eval(args.shape.replace("x", "*")), int(args.shape.split("x")[1])
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="anytune-bench-") as place:
        script = Path(place) / "grouped.py"
        numbers = {"SLOTS": slots, "EXPERTS": count, "WIDTH": width, "HIDDEN": hidden}
        text = GROUPED
        for name, number in numbers.items():
            text = text.replace(f" {name}", f" {number}", 1)
        script.write_text(text)
        card = common.run_once([str(script)], env, LIMIT)
        print(card, flush=True)
        if not args.no_peer:
            command = ["bench/peers/peft_experts_gpu.py", "--model", args.model, "--layers", str(args.layers)]
            rows["peft"] = attempt([*command, "--shape", args.shape], env)
            if "failed" in rows["peft"]:
                rows["peft, checkpointing"] = attempt([*command, "--shape", args.shape, "--checkpointing"], env)
        begin, path = time.monotonic(), args.file or Path(place) / "model.gguf"
        if args.file is None:
            experts.write_model(path, args.model, args.layers)
            print(f"file of {path.stat().st_size / 2**30:.1f} GiB in {time.monotonic() - begin:.0f} s", flush=True)
        more = (["--memory", args.memory] if args.memory else []) + (["--profile"] if args.profile else [])
        rows["anytune"] = attempt(["bench/gpu_steps.py", str(path), "--shape", args.shape, "--rounds", "5", *more], env)
    mine, flop = rows["anytune"], experts.gflop_per_token(args.model, args.layers, length)
    if "tokens_per_s" in mine:
        mine |= {"gflop_per_token": round(flop, 3)}
        mine["fraction_of_gemm"] = round(mine["tokens_per_s"] * flop / 1e3 / card["gemm_tflops"], 3)
        for name, row in rows.items():
            if name != "anytune" and "tokens_per_s" in row:
                row["ratio"] = round(mine["tokens_per_s"] / row["tokens_per_s"], 2)
    common.save("moe_gpu", args, before, gpu=card, model=args.model, layers=args.layers, results=rows)


def attempt(command: list[str], env: dict) -> dict:
    try:
        row = common.run_once(command, env, LIMIT)
    except SystemExit as error:
        row = {"failed": str(error)[-800:]}
    print({key: row.get(key) for key in ("tokens_per_s", "peak_gib", "how", "failed")}, flush=True)
    return row


if __name__ == "__main__":
    main()
