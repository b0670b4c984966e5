"""Models' shapes on the hardware cores, planned on every board: TinyLlama-1.1B with a CPU step of it measured here,
Mistral-7B, Phi-3-mini. All in Q4_0.

python bench/fpga_plan.py
python bench/fpga_plan.py --keep-cpu      # on a busy machine: the CPU's rate is the last result's, with its date
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import common
import shapes
import tinyllama

from anytune.cli.fpga_plan import measure
from anytune.fpga.boards import BOARDS
from anytune.fpga.plan import plan
from anytune.gguf import GGUF


def kept() -> dict[str, Any]:
    """The CPU's part of the last result, and when it was measured."""
    last = json.loads((common.RESULTS / "fpga_plan.json").read_text("utf-8"))
    return {"date": last["date"], "commit": last["commit"], **last["cpu"]}  # of an earlier result, its own date


def planned(name: str, folder: Path, tokens: int) -> dict[str, Any]:
    """Every board's plan, without the list of tensors."""
    with GGUF.open(shapes.write(name, folder / f"{name}.gguf")) as file:
        found = {board: plan(file, BOARDS[board], tokens=tokens, rank=16) for board in BOARDS}
    for facts in found.values():
        del facts["tensors"]
    return found


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--tokens", type=int, default=128, help="tokens of a step")
    options.add_argument("--keep-cpu", action="store_true", help="plan anew, keep the CPU's rate of the last result")
    args = options.parse_args()
    before = common.machine()
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        found = {shape: planned(shape, Path(name), args.tokens) for shape in shapes.SHAPES}
        if args.keep_cpu:
            cpu = kept()
        else:
            path = Path(name) / "tinyllama.gguf"
            tinyllama.write_model(path)
            cpu = measure(path, args.tokens, 16, args.threads)
    tiny = found["TinyLlama-1.1B"]
    common.save(
        "fpga_plan",
        args,
        before,
        type="Q4_0",
        cpu={"model": "TinyLlama-1.1B", **cpu},
        models=found,
        footprint_within_300_MB=all(facts["footprint"]["streamed"] <= 300e6 for facts in tiny.values()),
    )


if __name__ == "__main__":
    main()
