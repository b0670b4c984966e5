"""What goes row by row: the embedding, sums, norms, rope and gated products, and rows that are picked and put back."""

from __future__ import annotations

import torch
from anytune.engine.base import Heads
from .arrays import Sum, own, padding_behind, real
from .weights import Group, Weight

Tensor = torch.Tensor


def embed(e, ids: Tensor, table: Weight, scale: float) -> Tensor:
    x = own(e.array(ids.shape[0], table.in_features))
    table.gather(ids, x, scale)
    return x


def gather(e, x, rows: Tensor) -> Tensor:
    x = real(x)
    out = own(e.array(rows.shape[0], x.shape[1]))
    # a padded row's number is past the end: it takes any row, and its target says that it does not count
    out.copy_(x.index_select(0, rows.clamp(max=x.shape[0] - 1)))
    return out


def scatter(e, y: Tensor, rows: Tensor, tokens: int) -> Tensor:
    """As a gather, since it runs the same way every time: row t is y's row place[t], or zero."""
    count = rows.shape[0]
    place = torch.full((tokens + 1,), count, dtype=torch.int64, device=e.device)
    place.index_copy_(0, rows.clamp(max=tokens).long(), torch.arange(count, device=e.device))
    place = place[:tokens]
    out = own(e.array(tokens, y.shape[1]))
    torch.mul(real(y).index_select(0, place.clamp(max=count - 1)), (place < count).unsqueeze(1).to(y.dtype), out=out)
    return out


def add(e, x, y):
    """Waits for the norm that follows, so that sum and norm are one pass over memory; see Sum."""
    return Sum(e, x, y)


def scale(e, x, factor: float | Tensor) -> Tensor:
    return torch.mul(real(x), factor, out=own(e.array(*x.shape)))


def rms_norm(e, x, gain, eps: float, into: Group | None = None, m: Tensor | None = None) -> Tensor:
    """into: a group that reads the result, m: its matrix;
    its low-rank product is then made on the way, if it can be."""
    tokens, width = x.shape
    out = own(e.array(tokens, width))
    low = e._riding(out, into, m)
    if isinstance(x, Sum) and x.value is None:
        a, b = real(x.x), real(x.y)
        total = own(e.array(tokens, width))
        e.f.rms_norm(a, gain, eps, out, add=b, total=total, **low)
        x.settle(total)
    else:
        e.f.rms_norm(real(x), gain, eps, out, **low)
    return out


def rms_norm_backward(e, dy, x, gain, eps: float, residual=None) -> Tensor:
    out = own(e.array(*x.shape))
    e.f.rms_norm_backward(real(dy), real(x), gain, eps, real(residual), out)
    return out


def qk_norm_rope(e, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool):
    out_q, out_k = (q, k)
    if gains is not None:
        both = e.array(q.shape[0], q.shape[1] + k.shape[1], 0)
        out_q, out_k = both[:, : q.shape[1]], both[:, q.shape[1] :]
    e.f.qk_norm_rope(
        q, k, *(gains or (None, None)), eps, *table, positions, heads.n_heads, heads.n_kv_heads, neox, out_q, out_k
    )
    return out_q, out_k


def qk_norm_rope_backward(
    e, dq, dk, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool, into=(None, None)
):
    if into[0] is not None or into[1] is not None:
        turned = [x.clone() for x in (dq, dk)]  # back by their angles: what the norms' results are
        e.f.qk_norm_rope_backward(
            *turned, q, k, None, None, eps, *table, positions, heads.n_heads, heads.n_kv_heads, neox
        )
        for dx, x, gradient in zip(turned, (q, k), into):
            if gradient is not None:
                e.gain_gradient(dx, x, eps, gradient)
    e.f.qk_norm_rope_backward(
        dq, dk, q, k, *(gains or (None, None)), eps, *table, positions, heads.n_heads, heads.n_kv_heads, neox
    )
    return dq, dk


def glu(e, gate, up, activation: str, into: Group | None = None, m: Tensor | None = None) -> Tensor:
    """into, m: as in rms_norm."""
    out = own(e.array(*gate.shape))
    e.f.glu(gate, up, activation, out, peak=getattr(into, "peak", None), **e._riding(out, into, m))
    return out


def _riding(e, out: Tensor, into: Group | None, m: Tensor | None) -> dict:
    """What makes the kernel that writes `out` also write the low-rank product of its readers: behind it, for the
    product with the group's matrix, and once more apart, for the gradients."""
    if (
        into is None
        or not into.rank
        or (into.dropout and e.training)
        or padding_behind(out) < into.rank
        or e.act != e.dtype
    ):
        return {}
    out.low_of = into
    found = {"a": m[into.width :, : into.in_features], "low": e.extend(out, into.rank)[:, into.in_features :]}
    if into.trains_pairs and e.training:
        into.low = found["keep"] = torch.empty((out.shape[0], into.rank), dtype=e.act, device=e.device)
    return found


def glu_backward(e, dy, gate, up, activation: str):
    width = gate.shape[1]
    both = e.array(gate.shape[0], 2 * width)
    dgate, dup = both[:, :width], own(both[:, width:])
    e.f.glu_backward(dy, gate, up, activation, dgate, dup)
    return dgate, dup
