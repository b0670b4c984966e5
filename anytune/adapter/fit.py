"""Whether an adapter's pairs are pairs and fit a base; and pairs of several ranks as pairs of one."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from anytune.errors import UserError
from anytune.gguf import GGUF

# what makes keys and values of latents: model/mixers/latent_attention.py
LATENTS = ("attn_k_b.weight", "attn_v_b.weight", "attn_kv_b.weight")
SPREAD = 16  # times as many numbers as an adapter of several ranks may have once they are made equal


def check_shapes(where: str, shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> dict[str, int]:
    """The rank of each tensor's (a, b) shapes. UserError if they are no pairs, or if there are none."""
    ranks = {}
    for name, (a, b) in shapes.items():
        if len(a) not in (2, 3) or a[:-2] != b[:-2] or len(b) != len(a) or a[-2] != b[-1]:
            raise UserError(
                f"{where}: the adapter of {name} has the shapes {a} and {b}, but needs (rank, in) and (out, rank)."
            )
        ranks[name] = a[-2]
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
    rank = max(a.shape[-2] for a, _ in tensors.values())
    if (many := sum(rank * (a.size + b.size) // max(a.shape[-2], 1) for a, b in tensors.values())) > SPREAD * sum(
        a.size + b.size for a, b in tensors.values()
    ):
        raise UserError(
            f"{where}: the ranks of this adapter differ by too much ({many:,} numbers at the highest, {rank})."
        )
    scale = next(scales[name] for name, (a, _) in tensors.items() if a.shape[-2] == rank)
    made = {}
    for name, (a, b) in tensors.items():
        wide, tall = empty_pair(rank, a, b)
        wide[..., : a.shape[-2], :] = a
        tall[..., : b.shape[-1]] = b if scales[name] == scale else np.float32(scales[name] / scale) * b
        made[name] = wide, tall
    return made, rank, scale * rank


def empty_pair(rank: int, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zeros of this rank beside the same matrix as the pair."""
    shapes = (*a.shape[:-2], rank, a.shape[-1]), (*b.shape[:-1], rank)
    return np.zeros(shapes[0], np.float32), np.zeros(shapes[1], np.float32)


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
        if name.endswith(LATENTS):
            raise UserError(
                f"{where} changes {name}, which llama.cpp multiplies by without an adapter, and which decoding here "
                "takes apart: use an adapter without it."
            )
        weight = base.tensors[name].shape
        made = (*a[:-2], b[-2], a[-1])
        if made != tuple(weight):
            raise UserError(
                f"{where}: the adapter of {name} is for a weight of shape {made}, "
                f"and {base.path} has {weight}; use the model that it was trained on."
            )
