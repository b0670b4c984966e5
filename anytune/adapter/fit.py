"""Whether an adapter's pairs are pairs and fit a base; and pairs of several ranks as pairs of one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anytune.errors import UserError
from anytune.gguf import GGUF

SPREAD = 16  # times as many numbers as an adapter of several ranks may have once they are made equal


def check_shapes(where: str, shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[str, int]:
    """The rank of each tensor's (a, b) shapes. UserError if they are no pairs, or if there are none."""
    ranks = {}
    for name, (a, b) in shapes.items():
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise UserError(
                f"{where}: the adapter of {name} has the shapes {a} and {b}, and needs (rank, in) and (out, rank)."
            )
        ranks[name] = a[0]
    if not ranks:
        raise UserError(f"{where} has no tensors: there is nothing to use.")
    return ranks


Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


def level(where: str, tensors: Pairs, scales: Mapping[str, float]) -> tuple[Pairs, int, float]:
    """(tensors, rank, alpha) that mean what pairs of several ranks and scales do: the highest rank and its scale for
    all.

    The others are filled up with zeros, which training leaves as they are, and what their scale differs by goes into b.
    scales: {name: what b @ a is multiplied with}. UserError if that would make far more of them than there is.
    """
    rank = max(a.shape[0] for a, _ in tensors.values())
    if (many := sum(rank * (a.shape[1] + b.shape[0]) for a, b in tensors.values())) > SPREAD * sum(
        a.size + b.size for a, b in tensors.values()
    ):
        raise UserError(
            f"{where}: the ranks of this adapter differ by too much ({many:,} numbers at the highest, {rank})."
        )
    scale = next(scales[name] for name, (a, _) in tensors.items() if a.shape[0] == rank)
    made = {}
    for name, (a, b) in tensors.items():
        wide, tall = np.zeros((rank, a.shape[1]), np.float32), np.zeros((b.shape[0], rank), np.float32)
        wide[: a.shape[0]] = a
        tall[:, : b.shape[1]] = b if scales[name] == scale else np.float32(scales[name] / scale) * b
        made[name] = wide, tall
    return made, rank, scale * rank


def check_fit(
    where: str, architecture: str, shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]], base: GGUF
) -> None:
    """UserError unless the (a, b) shapes fit the base's tensors."""
    own = base.metadata.get("general.architecture")
    if architecture != own:
        raise UserError(
            f"{where} is for the architecture {architecture!r}, and {base.path} is {own!r}; use "
            "the model that it was trained on."
        )
    for name, (a, b) in shapes.items():
        if name not in base.tensors:
            raise UserError(
                f"{where} changes {name}, which {base.path} does not have; use the model that it was trained on."
            )
        weight = base.tensors[name].shape
        if len(weight) != 2 or (b[0], a[1]) != weight:
            raise UserError(
                f"{where}: the adapter of {name} is for a weight of shape {(b[0], a[1])}, "
                f"and {base.path} has {weight}; use the model that it was trained on."
            )
