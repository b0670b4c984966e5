"""Training TinyLlama-1.1B's shape on the hardware cores, planned on every board, and a CPU step of it measured here.

    python bench/fpga_plan.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
import tinyllama

from anytune.cli.fpga_plan import measure
from anytune.fpga.boards import BOARDS
from anytune.fpga.plan import plan
from anytune.gguf import GGUF


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--tokens", type=int, default=128, help="tokens of a step")
    args = options.parse_args()
    before = common.machine()
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        path = Path(name) / "tinyllama.gguf"
        tinyllama.write_model(path)
        with GGUF.open(path) as file:
            found = {board: plan(file, BOARDS[board], tokens=args.tokens, rank=16) for board in BOARDS}
        cpu = measure(path, args.tokens, 16, args.threads)
    for facts in found.values():
        del facts["tensors"]
    common.save("fpga_plan", args, before, model="TinyLlama-1.1B's shape, Q4_0", cpu=cpu, boards=found,
                footprint_within_300_MB=all(facts["footprint"]["streamed"] <= 300e6 for facts in found.values()))


if __name__ == "__main__":
    main()
