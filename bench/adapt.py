"""Adapters without gradients: what they keep of their teachers, beside the plain ways, on examples that are held out.

    python bench/adapt.py prompt        # a five-shot context as an adapter: closed form, fewer data, steps, AdamW
    python bench/adapt.py adapter       # an adapter from activations alone
    python bench/adapt.py compress      # ranks 1 to 16 of an adapter beside its truncated SVD
    python bench/adapt.py repair        # Q2_K at rank 32, e-mails and text, beside QERA
    python bench/adapt.py merge         # two adapters as one, beside linear merge, TIES and the sum of both ranks
    python bench/adapt.py rounding      # what rounding takes from a merged file, by type
    python bench/adapt.py absorb        # the same as a second adapter: `export merge --absorb`, fitted and by QERA

Each is a file of bench/adaptations, for SmolLM2-135M (or -m) on examples/email. It writes bench/results/adapt_PART.json
as its figures come, and continues it. What it needs (adapters trained for 40 and 25 steps, a Q2_K file) is made in
--folder once.
"""

from __future__ import annotations

import importlib

import common

PARTS = ("prompt", "adapter", "compress", "repair", "merge", "rounding", "absorb")


def main() -> None:
    options = common.parser(__doc__)
    options.add_argument("part", choices=PARTS)
    options.add_argument("--device", default="numpy")
    options.add_argument("--dtype", default="auto", help="of a GPU's matrix products")
    options.add_argument("--folder", default=str(common.ROOT / "runs" / "bench-adapt"), help="where what is made stays")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--suffix", default="", help="of the result's name, such as _gemma3")
    options.add_argument("--again", action="store_true", help="from the start, instead of what is missing")
    args = options.parse_args()
    from adaptations.shared import Bench  # after the options: --help needs none of it

    importlib.import_module(f"adaptations.{args.part}").run(Bench(args))


if __name__ == "__main__":
    main()
