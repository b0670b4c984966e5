"""anytune quantize search on SmolLM2-135M, off the grid: predicted against measured KL, and models of one type.

python bench/search.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import common
from offgrid import texts, write_f16

import anytune
from anytune.quantization.search import search

BUDGETS = ("4.0bpw", "4.5bpw")
KEPT = (
    "budget",
    "bits_per_weight",
    "file_bytes",
    "kl_predicted",
    "kl_measured",
    "kl_held_out",
    "ratio",
    "factors",
    "uniform",
    "best_uniform",
)


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Without the single tensors' costs; whether the claims hold."""
    types: dict[str, int] = {}
    for tensor in found["tensors"]:
        if "costs" in tensor:
            types[tensor["to"]] = types.get(tensor["to"], 0) + 1
    fitting = [u["kl"] for u in found["uniform"] if u["fits"]]
    return {key: found[key] for key in KEPT} | {
        "types": types,
        "within_20_percent": 0.8 <= found["ratio"] <= 1.2,
        "better_than_uniform": not fitting or found["kl_measured"]["mean"] < min(fitting),
        "uniform_fit": len(fitting),
    }


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("--budgets", nargs="+", default=list(BUDGETS))
    args = options.parse_args()
    before, results = common.machine(), []
    with tempfile.TemporaryDirectory(prefix="anytune-bench-") as name:
        path = write_f16(common.model_file(args.model), Path(name) / "f16.gguf")
        text = "".join(reversed(texts()))
        for budget in args.budgets:
            model = anytune.load(path, device="numpy", threads=args.threads)
            results.append(summary(search(model, text, budget, target=Path(name) / "out.gguf", threads=args.threads)))
            print(results[-1], flush=True)
    common.save("search", args, before, model="SmolLM2-135M off the grid, F16", results=results)


if __name__ == "__main__":
    main()
