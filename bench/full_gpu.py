"""Full fine-tuning on one GPU: optimizers alone, and whole steps, beside torch.optim, bitsandbytes and transformers.

    python bench/full_gpu.py                    # about two minutes on an H200
    python bench/full_gpu.py --model qwen3-0.6b --shape 4x1024

The optimizers work on the seven matrices of each layer of Qwen3-1.7B's shape, 1.41 billion weights with float32 values
and gradients: ours with clipping and zeroing in the same pass, torch's fused AdamW and bitsandbytes' 8-bit AdamW with
zero_grad. Whole steps train every weight in bf16 products with float32 masters: ours from a Q8_0 file, transformers
under autocast. Each contestant runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import common
import qwen3

OPTIMIZERS = ("anytune adamw", "anytune adamw8bit", "torch adamw", "bitsandbytes adamw8bit")
LIMIT = 120  # seconds for one contestant


def clock(turn, rounds: int = 7, each: int = 3) -> float:
    """Median seconds of turn(), after three that do not count."""
    import torch

    times = []
    for number in range(rounds + 3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(each):
            turn()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - begin) / each)
    return statistics.median(times[3:])


def matrices(shape: str) -> list[tuple[int, int]]:
    width, hidden, layers, heads, keys, size = qwen3.SHAPES[shape]
    layer = [(heads * size, width), (keys * size, width), (keys * size, width), (width, heads * size)]
    return layers * (layer + [(hidden, width), (hidden, width), (width, hidden)])


def optimizer(name: str, shape: str) -> dict:
    """One step over all matrices. Run in a process of its own."""
    import torch

    who, kind = name.split()
    values = [torch.randn(size, device="cuda") for size in matrices(shape)]
    slopes = [torch.randn_like(p) * 1e-3 for p in values]
    if who == "anytune":
        turn = _ours(kind, values, slopes)
    else:
        for p, g in zip(values, slopes):
            p.requires_grad_().grad = g
        if who == "torch":
            made = torch.optim.AdamW(values, lr=1e-5, fused=True)
        else:
            import bitsandbytes

            made = bitsandbytes.optim.AdamW8bit(values, lr=1e-5)

        def turn():
            made.step()
            made.zero_grad(set_to_none=False)

    weights, seconds = sum(p.numel() for p in values), clock(turn)
    return {"optimizer": name, "weights": weights, "ms": round(1e3 * seconds, 3),
            "bytes_a_weight": round(torch.cuda.max_memory_allocated() / weights, 2)}  # fmt: skip


def _ours(kind: str, values: list, slopes: list):
    from anytune.engine import optimizers as rules
    from anytune.engine.devices import engine_for

    e, shapes = engine_for("cuda"), [tuple(p.shape) for p in values]
    flat = [(p.view(-1), g.view(-1)) for p, g in zip(values, slopes)]
    states = [e.optimizer_state(kind, shape) for shape in shapes]
    rule = rules.Rule(0.9, 1e-5, 10, 0.9, 0.999, 1e-8, 0.0)

    def turn():
        for (p, g), state, shape in zip(flat, states, shapes):
            e.optimize(kind, p, g, state, shape, rule)

    return turn


def training(name: str, path: str, model: str, shape: str) -> dict:
    """Whole steps. Run in a process of its own."""
    import torch

    who, kind = name.split()
    examples, length = map(int, shape.split("x"))
    turn = (_our_step if who == "anytune" else _their_step)(kind, path, model, examples, length)
    seconds = clock(turn, rounds=5, each=2)
    return {"trainer": name, "shape": shape, "tokens_per_s": round(examples * length / seconds, 1),
            "ms_per_step": round(1e3 * seconds, 2),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2)}  # fmt: skip


def _our_step(kind: str, path: str, model: str, examples: int, length: int):
    import numpy as np

    import anytune
    from anytune.text.packing import MicroBatch

    made = anytune.load(path, device="cuda")
    trainee = made.full_trainee(anytune.Full(optimizer=kind), ubatch=examples * length, context=length)
    ids = np.random.default_rng(1).integers(0, made.config.vocabulary, (examples, length))
    batch = MicroBatch.of([(row, np.arange(length) >= length // 2) for row in ids])
    step = 0

    def turn():
        nonlocal step
        step += 1
        trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0)
        trainee.update(1e-5, step)

    return turn


def _their_step(kind: str, path: str, model: str, examples: int, length: int):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    width, hidden, layers, heads, keys, size = qwen3.SHAPES[model]
    config = Qwen3Config(vocab_size=151_936, hidden_size=width, intermediate_size=hidden, num_hidden_layers=layers,
                         num_attention_heads=heads, num_key_value_heads=keys, head_dim=size, tie_word_embeddings=True,
                         rope_theta=1e6)  # fmt: skip
    with torch.device("cuda"):
        net = Qwen3ForCausalLM._from_config(config, attn_implementation="sdpa")
    net.config.use_cache = False
    if kind == "adamw":
        rule = torch.optim.AdamW(net.parameters(), lr=1e-5, fused=True)
    else:
        import bitsandbytes

        rule = bitsandbytes.optim.AdamW8bit(net.parameters(), lr=1e-5)
    ids = torch.randint(0, 151_936, (examples, length), device="cuda")
    labels = ids.clone()
    labels[:, : length // 2] = -100

    def turn():
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = net(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        rule.step()
        rule.zero_grad()

    return turn


def main() -> None:
    options = common.saving(__doc__)
    options.add_argument("--model", default="qwen3-1.7b", choices=list(qwen3.SHAPES))
    options.add_argument("--shape", default="4x1024", help="examples x tokens of each")
    options.add_argument("--only", choices=["optimizers", "steps"])
    options.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.measure:
        name, path = args.measure
        row = training(name, path, args.model, args.shape) if path != "-" else optimizer(name, args.model)
        print(json.dumps(row), flush=True)
        return
    before, env, rows = common.machine(), common.environment(8), {"optimizers": [], "steps": []}
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as folder:
        path = Path(folder) / "model.gguf"
        if args.only != "optimizers":
            qwen3.write_model(path, args.model, "Q8_0")
        trainers = [f"{who} {kind}" for who in ("anytune", "transformers") for kind in ("adamw", "adamw8bit")]
        for part, names, given in (("optimizers", OPTIMIZERS, "-"), ("steps", trainers, str(path))):
            for name in names if args.only in (None, part) else ():
                command = ["bench/full_gpu.py", "--measure", name, given, "--model", args.model, "--shape", args.shape]
                try:
                    rows[part].append(common.run_once(command, env, LIMIT))
                except SystemExit as error:
                    rows[part].append({"who": name, "failed": str(error)[-300:]})
                print(rows[part][-1], flush=True)
                told = f"{args.model} shape, vocabulary 151,936, random weights"
                common.save("full_gpu", args, before, quiet=True, model=told, **rows)


if __name__ == "__main__":
    main()
