"""Gradients of low-rank pairs: where they are made, and together with what."""

from __future__ import annotations

import torch

from .weights import Group

Tensor = torch.Tensor
TOGETHER = 4  # groups (a layer's) whose gradients one launch makes, where there are few tokens


def add_gradients(
    e, x: Tensor | None, dy_low: Tensor, dy: Tensor | None, x_low: Tensor, group: Group, norm=None
) -> None:
    """grad_a += s dy_lowᵀ x, grad_b += dyᵀ x_low for every pair of the group; without x or dy only the other one.

    norm: (gain, inverse [T]) of the RMSNorm that x still has to go through, or None.
    """
    if group.gradient_table is not None:
        if x_low.shape[0] > e.f.small_rows:
            e.f.gradients(x, dy_low, dy, x_low, group.gradient_table, e.gradients, group.scale, norm)
            return
        # the last layer's, which has fewer rows behind attention
        if e.pending and e.pending[0][3].shape[0] != x_low.shape[0]:
            flush(e)
        e.pending.append((x, dy_low, dy, x_low, group.gradient_table, group.scale))
        if len(e.pending) == TOGETHER:
            flush(e)
        return
    for pair, low, high, (first, last) in zip(group.pairs, group.bounds, group.bounds[1:], group.spans):
        if pair is not None and pair.grad_a is not None:
            if x is not None:
                pair.grad_a += pair.scale * (dy_low[:, first:last].float().t() @ x.float())
            if dy is not None:
                pair.grad_b += dy[:, low:high].float().t() @ x_low[:, first:last].float()


def flush(e) -> None:
    """Make the gradients whose operands wait."""
    if e.pending:
        e.f.gradients_of_groups(e.pending, e.gradients)
        e.pending.clear()


def gradients_between(e, tokens: int, group: Group, then: Group | None) -> bool:
    """Whether one pass makes what lies between gate, up and down, and the gradients of the pairs that touch it."""
    pairs = () if then is None else (*then.pairs, *group.pairs)
    return (
        tokens > e.f.small_rows
        and len(pairs) == 3
        and then.low is not None
        and all(pair is not None and pair.grad_a is not None and pair.a.shape[0] <= e.f.most for pair in pairs)
    )
