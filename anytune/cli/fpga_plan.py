"""anytune fpga plan: what training a model on the cores takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.opening import model_path
from anytune.cli.options import json_option, model_option
from anytune.cli.say import print_json
from anytune.errors import UserError

BOARDS = ("ecp5-85", "kv260", "u50", "vcu128")


@click.command(
    "plan",
    cls=Command,
    short_help="Plan cycles, memory and tokens/s on a board.",
    example="""
    anytune fpga plan -m model.gguf --board kv260 --tokens 128
    anytune fpga plan -m model.gguf --board ecp5-85 --mhz 125 --json
""",
)
@model_option
@click.option("--board", type=click.Choice(BOARDS), default="ecp5-85", show_default=True, help="The board.")
@click.option(
    "--tokens", type=click.IntRange(1, 1 << 20), default=128, show_default=True, metavar="N", help="Tokens per step."
)
@click.option(
    "--lora-rank",
    "rank",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    metavar="R",
    help="Rank of the LoRA pairs, on every linear of the layers.",
)
@click.option(
    "--mhz",
    type=click.FloatRange(0.001, 10_000),
    metavar="F",
    help="The engine's clock, instead of the one assumed for the board.",
)
@click.option(
    "--bandwidth",
    type=click.FloatRange(0.001, 1e6),
    metavar="GB/S",
    help="Memory bandwidth in GB/s, instead of the data sheet's.",
)
@click.option("--cpu", is_flag=True, help="Also measure a step on this machine's CPU (--device numpy).")
@click.option("-t", "--threads", type=click.IntRange(1, 1024), metavar="N", help="CPU threads of --cpu.")
@json_option
def plan(
    model: str,
    board: str,
    tokens: int,
    rank: int,
    mhz: float | None,
    bandwidth: float | None,
    cpu: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Plan a LoRA step of a model, and a generated token, on the hardware cores: cycles, memory, tokens/s, energy.

    Cycles and bytes are counted from the schedule that the RTL runs. Clocks are assumed, except for the ECP5, or given;
    energy is an estimated range.
    """
    from anytune.fpga.boards import BOARDS as known
    from anytune.fpga.plan import plan as run
    from anytune.gguf import GGUF

    path = model_path(model)
    with GGUF.open(path) as file:
        found = run(
            file,
            known[board],
            tokens=tokens,
            rank=rank,
            mhz=mhz,
            bandwidth=None if bandwidth is None else bandwidth * 1e9,
        )
    if cpu:
        found["cpu"] = measure(path, tokens, rank, threads)
    if as_json:
        print_json(found)
    else:
        click.echo("\n".join(lines(found)))


def measure(path: Any, tokens: int, rank: int, threads: int | None) -> dict[str, Any]:
    """Tokens a second of a step's forward and backward on the CPU: the better of two, after one to warm up."""
    import time

    import numpy as np

    import anytune
    from anytune.text.packing import MicroBatch

    model = anytune.load(path, device="numpy", threads=threads)
    if tokens > model.config.context:
        raise UserError(f"--cpu cannot run {tokens} tokens: the model's context is {model.config.context}.")
    trainee = model.trainee(anytune.Lora(rank=rank), ubatch=tokens)
    ids = np.random.default_rng(0).integers(0, model.config.vocabulary, tokens).astype(np.int32)
    batch = MicroBatch(ids, np.arange(tokens, dtype=np.int32), np.array([0, tokens], np.int32), np.roll(ids, -1))
    seconds = []
    for step in range(3):
        start = time.perf_counter()
        trainee.accumulate(batch, 1.0, step, 0)
        seconds.append(time.perf_counter() - start)
    return {"tokens_per_second": tokens / min(seconds[1:]), "threads": model.engine.workers.count, "measured": True}


def lines(found: Mapping[str, Any]) -> list[str]:
    """For a person; each figure says where it is from."""
    board, cycles, memory = found["board"], found["cycles"], found["footprint"]
    energy, files = found["energy"], found["files"]
    whose = board["clock"] if found["mhz"] == board["mhz"] else "given"
    other = sorted({t["type"] for t in found["tensors"] if t["type"] != t["stored"]})
    made = [
        f"{found['model']}, {found['tokens']} tokens a step, rank {found['rank']}, on {board['title']} "
        f"({board['chip']})",
        f"engines     {board['engines']} of {board['engine_luts']:,} LUTs and {board['engine_rams']} block RAMs of 18 "
        f"kbit (as routed on the ECP5; how many fit is assumed), {found['mhz']:g} MHz ({whose})",
        f"cycles      {cycles['step']:,} a step: forward {cycles['forward']:,}, again {cycles['forward_again']:,}, "
        f"backward {cycles['backward']:,}, head {cycles['head']:,} (counted)",
        f"streams     {found['stream_bytes'] / 1e6:,.1f} MB a step (counted); memory "
        f"{found['bandwidth'] / 1e9:g} GB/s ({'given' if found['bandwidth'] != board['bandwidth'] else 'data sheet'})",
        f"tokens/s    {found['tokens_per_second']:.2f}: the cells allow {found['cells_tokens_per_second']:.2f}, the "
        f"memory {found['memory_tokens_per_second']:.2f}",
    ]
    one = found["decode"]
    made.append(
        f"one token   {one['cycles']:,} cycles through layers and head as in generation (counted; its products are "
        f"{one['occupancy']:.1%} of what the cells could do): {one['tokens_per_second']:.2f} tokens/s, "
        f"{one['latency_ms']:,.0f} ms; 32 sequences at once {one['sequences_32_tokens_per_second']:.2f} tokens/s"
    )
    if "cpu" in found:
        made.append(
            f"this CPU    {found['cpu']['tokens_per_second']:.1f} tokens/s in float32, "
            f"{found['cpu']['threads']} threads (measured)"
        )
    made += [
        f"memory      {memory['streamed'] / 1e6:,.0f} MB with weights streamed from the file, "
        f"{memory['resident'] / 1e6:,.0f} MB with all of them resident; the board has {board['memory'] / 1e6:,.0f} MB "
        "(counted)",
        "file        "
        + ", ".join(
            f"{kind} {t['bytes'] / 1e6:,.0f} MB ({t['below_f16']:.1%} below F16)"
            for kind, t in files["types"].items()
            if kind in ("Q8_0", "Q4_0", "Q3_K", "Q2_K")
        ),
        f"            75 % below F16 is {files['bits_for_75_percent']:.1f} bits a weight; a file of 300 MB would be "
        f"{files['bits_for_300_MB']:.2f}",
        "energy      estimate: {:.2f} to {:.1f} mJ a token, without ".format(*energy["millijoules_per_token"]["all"])
        + energy["left_out"],
    ]
    if other:
        made.append(f"note        {', '.join(other)} tensors are rounded to Q8_0 for the cores")
    made += ["", "tokens/s by clock and bandwidth:"]
    for mhz in dict.fromkeys(row["mhz"] for row in found["grid"]):
        made.append(
            f"{mhz:7.1f} MHz  "
            + "  ".join(
                f"{row['gigabytes_per_second']:g} GB/s {row['tokens_per_second']:.2f}"
                for row in found["grid"]
                if row["mhz"] == mhz
            )
        )
    return [*made, "", f"board: {board['source']}"]
