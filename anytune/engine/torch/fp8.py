"""--dtype fp8: input gradients through frozen weights as products of 8-bit floats (e4m3), a scale for each row.

The forward, and so the loss, is the served model's as before; gradients of pairs and what lies between operations stay
as they are. Each frozen matrix is rounded once, with a scale for each input feature. Its factor s·A, which changes at
every step, is rounded with those scales beside it, and dy B beside dy with dy's: the low-rank part costs no pass of its
own here either.

Only groups of several linears do so, and the linear behind a gated product: three quarters and more of that arithmetic
(what attention's output passes back is most easily spoilt, and the least of it).
"""

from __future__ import annotations

import torch

from .plain_fp8 import F8, TOP, rounded, scales
from .weights import Group

Tensor = torch.Tensor
PHASES = 8  # scales that are tried for a column
MULTIPLE = 16  # what the product's sides must be multiples of
TOLD = "; gradients through frozen weights in fp8: the loss is unchanged, gradient directions deviate by a few percent"
SAFETY = 2.0  # over the bound that frozen weights alone give (see between)


class Eight:
    """A group's matrix [in, width + R] in e4m3 where it is held, its scales float32 [in], and the largest Euclidean
    norm of what an input feature is multiplied by."""

    def __init__(self, group: Group, matrix: Tensor):
        w = matrix[: group.width, : group.in_features]
        self.scales = best_scales(w)
        self.norm = float(torch.linalg.vector_norm(w, dim=0, dtype=torch.float32).max())
        self.held: Tensor | None = None


def best_scales(w: Tensor) -> Tensor:
    """float32 [in]: of eight scales within a factor of two the one that rounds each column of w best, which for blocks
    of few levels is a gain."""
    base, best, least = scales(torch.maximum(w.amax(0), -w.amin(0))), None, None
    for step in range(PHASES):
        tried = base * 2 ** (step / PHASES)
        off = torch.zeros_like(base)
        for rows in w.split(1 << 12):
            off += (rounded(rows.float() / tried).float() * tried - rows).square_().sum(0)
        if least is None:
            best, least = tried, off
        else:
            best, least = torch.where(off < least, tried, best), torch.minimum(off, least)
    return best


def takes(group: Group) -> bool:
    """Whether the group's input gradient is made in fp8."""
    sides = (group.width, group.in_features)
    return (
        group.number >= 0
        and not group.trains_matrix
        and all(n % MULTIPLE == 0 for n in sides)
        and (len(group.weights) > 1 or group.in_features > group.width)
    )


def size(group: Group) -> int:
    """Bytes of its matrix."""
    return group.in_features * (group.width + group.rank)


def prepare(e, groups: list[Group], matrix) -> None:
    """Round what is held dense, and find the scales of all. matrix(e, group): its weights and pairs."""
    chosen = [g for g in groups if takes(g)]
    dense = [g for g in chosen if g.dense is not None]
    arena = torch.empty(sum(map(size, dense)), dtype=F8, device=e.device)
    loose = [g for g in chosen if g.dense is None]
    e.scratch_fp8 = torch.empty(max(map(size, loose), default=0), dtype=F8, device=e.device)
    at = 0
    for group in chosen:
        whole = matrix(e, group)
        group.eight = e.eight(group, whole)
        if group.dense is not None:
            group.eight.held = arena[at : at + size(group)].view(group.in_features, -1)
            e.f.turn(whole[: group.width, : group.in_features], group.eight.scales, group.eight.held[:, : group.width])
            at += size(group)


def rounded_matrix(e, group: Group, m: Tensor) -> Tensor:
    """[in, width + R] with the pairs of now: in place, or in the scratch matrix."""
    eight, low = group.eight, m[group.width : group.width + group.rank, : group.in_features]
    if eight.held is None:
        out = e.scratch_fp8[: size(group)].view(group.in_features, -1)
        e.f.turn(m[: group.width + group.rank, : group.in_features], eight.scales, out)
        return out
    if group.rank:
        e.f.turn(low, eight.scales, eight.held[:, group.width :])
    return eight.held


def input_gradient(e, dy: Tensor, dy_low: Tensor | None, group: Group, m: Tensor) -> Tensor:
    """dx [T, in]. dy [T, width]: as it is, or as between() rounded it, with dy_low in the columns behind. In training
    with dropout dy_low is left out: it passes the mask on its own."""
    if dy.dtype == F8:
        scale, low = dy.row_scale, dy.as_strided((dy.shape[0], group.width + group.rank), dy.stride())
    else:
        rank = 0 if dy_low is None else group.rank
        low = torch.empty((dy.shape[0], group.width + rank), dtype=F8, device=e.device)
        scale = torch.empty(dy.shape[0], dtype=torch.float32, device=e.device)
        dy.row_norms = torch.empty_like(scale)
        e.f.quantize(dy, dy_low, low, scale, dy.row_norms)
    w = rounded_matrix(e, group, m)[:, : low.shape[1]]
    return e.f.product_fp8(low, scale, w, group.eight.scales, e.act)


def between(e, dy: Tensor, peak: Tensor, group: Group, then: Group) -> tuple[Tensor, Tensor, tuple]:
    """Room for [dgate | dup | low-rank part] of `then` in e4m3, the scale of each row, and what a kernel makes that
    scale of before it has seen the whole row: (norm of each row of dy, the largest factor that the gated product
    multiplies with in each row, a number).

    By Cauchy and Schwarz no element of dy W is larger than a row's norm times the largest norm of a column of W. The
    bound is loose, by 2⁷ as a rule, which leaves an 8-bit float as exact: the next 2⁸ below are normal numbers.
    """
    tokens = peak.shape[0]
    both = torch.empty((tokens, then.width + then.rank), dtype=F8, device=e.device)
    scale = torch.empty(tokens, dtype=torch.float32, device=e.device)
    norms = getattr(dy, "row_norms", None)
    if norms is None:
        norms = torch.linalg.vector_norm(dy, dim=1, dtype=torch.float32)
    return both, scale, (norms, peak, SAFETY * group.eight.norm / TOP)


def check(e) -> float:
    """The relative error of a product in fp8 on this device, from random operands: 0.04 is what the format explains."""
    random = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=random).to(e.device) for shape in ((48, 64), (32, 64)))
    parts = []
    for x in (a, b):
        rounded_x, scale = torch.empty(x.shape, dtype=F8, device=e.device), torch.empty(len(x), device=e.device)
        e.f.quantize(x, None, rounded_x, scale)
        parts += [rounded_x, scale]
    made, want = e.f.product_fp8(*parts, e.act).double().cpu(), a.double().cpu() @ b.double().cpu().t()
    return float((made - want).norm() / want.norm())
