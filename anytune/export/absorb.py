"""What rounding took, as an adapter: QERA's closed form (Zhang et al. 2024, "QERA: an analytical framework for
quantization error reconstruction").

For a weight W* [out, in] that became W', and inputs with the autocorrelation R = E[x xᵀ] [in, in], the change C of rank
k that makes E|(W' + C)x - W*x|² least is SVD_k((W* - W') R^½) R^-½. With the left singular vectors U_k, which are the
leading eigenvectors of E R Eᵀ (E = W* - W'), that is U_k U_kᵀ E: so neither the root nor its inverse has to be
computed. QERA-approx takes R as diagonal: the mean squares that an importance matrix holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.export.adapters import merged_rows
from anytune.gguf import GGUF
from anytune.memory import available_bytes
from anytune.quantization.collect import collect, squares

if TYPE_CHECKING:
    from anytune.model import Model

ROUNDS, SPARE = 8, 8  # of the subspace iteration; columns beyond the rank that make it converge
WAYS = ("auto", "exact", "approx")


def autocorrelation(x: np.ndarray) -> np.ndarray:
    """float32 [tokens, columns] -> float32 [columns, columns]: the sum of outer products."""
    return x.T @ x


def statistics(
    model: Model,
    adapter: Adapter | None,
    text: str,
    way: str = "auto",
    *,
    context: int | None = None,
    chunks: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, np.ndarray], str]:
    """(weight name -> R [in, in] or its diagonal [in], means over the text's tokens; "exact" or "approx").

    way: "auto" takes the whole R where all of them fit half of the free memory. Raises UserError.
    """
    c = model.config
    need = 4 * c.layers * (2 * c.width**2 + (c.heads * c.head_size) ** 2 + c.hidden**2)
    fits = need < available_bytes() // 2
    if way == "exact" and not fits:
        raise UserError(
            f"QERA-exact would keep {need >> 20} MiB of autocorrelations, more than half of the free memory: use "
            "--qera approx."
        )
    exact = way == "exact" or way == "auto" and fits
    found = collect(
        model,
        text,
        context=context,
        chunks=chunks,
        adapter=adapter,
        measure=autocorrelation if exact else squares,
        experts=False,
        progress=progress,
    )
    seen: dict[int, np.ndarray] = {}  # the weights of a group share one
    return {
        name: seen.setdefault(id(total), total / found.tokens) for name, total in found.sums.items()
    }, "exact" if exact else "approx"


def reconstruct(error: np.ndarray, inputs: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """(a float32 [rank, in], b float32 [out, rank]) whose product b·a is the best of its rank for `error` [out, in].

    inputs: the autocorrelation [in, in] of what the weight is multiplied with, or its diagonal [in].
    """
    out, width = error.shape
    size = min(out, width, rank + SPARE)

    def apply(q: np.ndarray) -> np.ndarray:
        """E R Eᵀ q"""
        back = error.T @ q
        return error @ (inputs[:, None] * back if inputs.ndim == 1 else inputs @ back)

    q = np.random.default_rng(0).standard_normal((out, size)).astype(np.float32)
    for _ in range(ROUNDS):
        q = np.linalg.qr(apply(q))[0]
    values, vectors = np.linalg.eigh((q.T @ apply(q)).astype(np.float64))
    u = (q @ vectors[:, ::-1][:, :rank]).astype(np.float32)
    a, b = np.zeros((rank, width), np.float32), np.zeros((out, rank), np.float32)
    a[: u.shape[1]], b[:, : u.shape[1]] = u.T @ error, u
    return a, b


def residual(
    base: GGUF,
    adapter: Adapter | None,
    merged: GGUF,
    inputs: dict[str, np.ndarray],
    rank: int,
    progress: Callable[[int, int], None] | None = None,
) -> Adapter:
    """The adapter of `merged` that brings it back towards base and adapter. UserError if nothing was lost.

    inputs: from `statistics`; tensors that it does not name are left as they are.
    """
    whole = merged_rows(base, adapter) if adapter is not None else {}
    names = [
        name
        for name in inputs
        if name in merged.tensors and (name in whole or merged.tensors[name].type.name != base.tensors[name].type.name)
    ]
    tensors: dict[str, Any] = {}
    for done, name in enumerate(names, start=1):
        wanted = whole[name](0, base.tensors[name].rows) if name in whole else base.float32(name)
        error = wanted - merged.float32(name)
        if np.abs(error).max() > 0:
            tensors[name] = reconstruct(error, inputs[name], rank)
        if progress is not None:
            progress(done, len(names))
    if not tensors:
        raise UserError("There is nothing to absorb: the merged file's weights are exact.")
    return Adapter(
        tensors,
        rank,
        float(rank),
        False,
        str(merged.metadata.get("general.architecture")),
        merged.metadata.get("general.name"),
        merged.sha256(),
    )
