"""Training TinyLlama-1.1B's shape on the hardware cores, planned on every board, and a CPU step of it measured here.

python bench/fpga_plan.py
python bench/fpga_plan.py --keep-cpu      # on a busy machine: the CPU's rate is the last result's, with its date
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import common
import tinyllama

from anytune.cli.fpga_plan import measure
from anytune.fpga.boards import BOARDS
from anytune.fpga.plan import plan
from anytune.gguf import GGUF


def kept() -> dict[str, Any]:
    """The CPU's part of the last result, and when it was measured."""
    last = json.loads((common.RESULTS / "fpga_plan.json").read_text("utf-8"))
    return {"date": last["date"], "commit": last["commit"], **last["cpu"]}


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--tokens", type=int, default=128, help="tokens of a step")
    options.add_argument("--keep-cpu", action="store_true", help="plan anew, keep the CPU's rate of the last result")
    args = options.parse_args()
    before = common.machine()
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        path = Path(name) / "tinyllama.gguf"
        tinyllama.write_model(path)
        with GGUF.open(path) as file:
            found = {board: plan(file, BOARDS[board], tokens=args.tokens, rank=16) for board in BOARDS}
        cpu = kept() if args.keep_cpu else measure(path, args.tokens, 16, args.threads)
    for facts in found.values():
        del facts["tensors"]
    common.save(
        "fpga_plan",
        args,
        before,
        model="TinyLlama-1.1B's shape, Q4_0",
        cpu=cpu,
        boards=found,
        footprint_within_300_MB=all(facts["footprint"]["streamed"] <= 300e6 for facts in found.values()),
    )


if __name__ == "__main__":
    main()
