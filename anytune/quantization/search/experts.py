"""What rounding costs in a layer's experts: each has errors of its own, in the slots of its tokens alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from anytune.quantization.search.rounding import Rounding


def expert_costs(
    rounding: Rounding, name: str, x: np.ndarray, drawn: Sequence[np.ndarray], windows: int, chosen: np.ndarray
) -> dict[str, float]:
    """Type -> KL in nats a token of one tensor of experts, as curvature.py has it of a matrix.

    x: [S, in], the slots sorted by expert, in each in the order of tokens; drawn: [S, out] a draw; chosen: int32
    [T, used], the experts of each token.
    """
    tokens, used = chosen.shape
    order = np.argsort(chosen.ravel(), kind="stable")
    window = order // used // (tokens // windows)
    experts, out = rounding.file.tensors[name].shape[:2]
    ends = np.cumsum(np.bincount(chosen.ravel(), minlength=experts))

    def prepare(lo: int, exact: np.ndarray) -> Callable[[np.ndarray], float]:
        expert, first = divmod(lo, out)
        slots = slice(ends[expert - 1] if expert else 0, ends[expert])
        rows, own = x[slots], window[slots]
        begins = np.flatnonzero(np.diff(own, prepend=-1))  # of each window's slots
        parts = [dy[slots, first : first + len(exact)] for dy in drawn]

        def one(difference: np.ndarray) -> float:
            if not len(rows):
                return 0.0
            error = rows @ difference.T
            return sum(float(np.square(np.add.reduceat(dy * error, begins)).sum(dtype=np.float64)) for dy in parts)

        return one

    return {kind: cost / (2 * len(drawn) * tokens) for kind, cost in rounding.sums(name, prepare).items()}
