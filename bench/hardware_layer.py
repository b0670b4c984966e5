"""The RTL in Verilator on a layer of SmolLM2: every product of a step of 128 tokens, and a token's pass forward.

    python bench/hardware_layer.py

Every sum is compared with the twin's, every count of cycles with the planner's. All matrices in Q4_0.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import common
from fpga_sim import quantized

from anytune.fpga import layer


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--tokens", type=int, default=128)
    args = options.parse_args()
    before = common.machine()
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        model = str(quantized(common.model_file(args.model), Path(name), "Q4_0"))
        step = layer.simulate(model, 0, args.tokens, 16, threads=args.threads, say=print)
        one = layer.simulate(model, 0, 1, 16, threads=args.threads, backward=False, say=print)
    common.save(
        "hardware_layer",
        args,
        before,
        type="Q4_0",
        step=step,
        one_token=one,
        holds=all(not run["wrong"] and run["cycles"] == run["planned_cycles"] for run in (step, one)),
    )


if __name__ == "__main__":
    main()
