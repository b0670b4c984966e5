"""What each layer mixes in of its own (ffn/beside.py): an embedding that it has of each token, and a projection of that
which all have, through a norm (Gemma 4 E2B and E4B)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .part import Run

if TYPE_CHECKING:
    from .build import Weights

TABLE, PROJECTION, NORM = "per_layer_token_embd.weight", "per_layer_model_proj.weight", "per_layer_proj_norm.weight"
OWN = frozenset((TABLE, PROJECTION, NORM))
HALF = 0.5**0.5  # of the sum of both


def shapes(c) -> dict[str, tuple[int, ...]]:
    """The tensors that a model needs for it."""
    width = c.layers * c.own
    return {TABLE: (c.vocabulary, width), PROJECTION: (width, c.width), NORM: (c.own,)} if c.own else {}


def look_up(weights: Weights, e, x, ids, positions, run: Run) -> list:
    """For each layer [T, own]; x [T, d]: the tokens' common embeddings. [] for a model that has none."""
    c = weights.config
    if not c.own:
        return []
    made = e.head_norm(_projected(weights, e, x), weights.vectors[NORM], c.eps, c.layers, run.still, positions)
    found = e.embed(ids, weights.matrices[TABLE], c.own**0.5)
    return list(e.split(e.scale(e.add(found, made), HALF), *[c.own] * c.layers))


def look_up_backward(weights: Weights, e, x, ids, positions, run: Run, need_dx: bool):
    """The gradient by x, None if it is not needed, of what the layers owe in `run`; adds those of the three tensors."""
    c, table = weights.config, getattr(weights.matrices[TABLE], "gradient", None)
    d = e.scale(e.join(tuple(run.owed_beside.pop(layer) for layer in range(c.layers))), HALF)
    if table is not None:
        e.embed_backward(d, ids, c.own**0.5, table)
    projected = _projected(weights, e, x)
    if NORM in weights.gradients:
        e.gain_gradient(d, projected, c.eps, weights.gradients[NORM])
    d = e.head_norm_backward(d, projected, weights.vectors[NORM], c.eps, c.layers, run.still, positions)
    return e.linear_backward((e.scale(d, c.width**-0.5),), x, weights.projection, need_dx)


def _projected(weights: Weights, e, x):
    """[T, layers * own]"""
    (made,) = e.linear(x, weights.projection)
    return e.scale(made, weights.config.width**-0.5)
