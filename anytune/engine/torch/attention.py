"""Causal attention over packed examples in plain torch, on any device: the meaning of the Triton kernels.

A tile is a run of queries of one example and all keys that any of them may see; the last key is always the last query's
own. All heads of a tile are one batched product, with the query heads of a key head stacked. Scores exist for one tile
only and are made again in the backward from the saved log-sum-exp (Dao et al. 2022, arXiv:2205.14135).

Products whose results are exponentiated or nearly cancel (scores, dout vᵀ) are computed in float32, the others in the
type of the arrays.
"""

from __future__ import annotations

import torch

from anytune.engine.base import Heads

WIDEST = 256  # the largest head that the kernels' tiles fit
SCORES = 1 << 20  # elements of a tile's scores, all heads together: they and their copies should stay in a cache
Tensor = torch.Tensor


def tiles(start: int, end: int, heads: Heads, scores: int):
    """(first key, first query, last query) of each tile of queries low…high of an example start…end."""
    longest = min(end - start, heads.window or end - start)
    step = max(16, scores // (heads.n_heads * max(longest, 1)))
    for low in range(start, end, step):
        yield max(start, low + 1 - heads.window) if heads.window else start, low, min(low + step, end)


def stacked(x: Tensor, heads: Heads) -> Tensor:
    """[n, n_heads*head_dim] -> [keys, group*n, size]."""
    return x.unflatten(1, (heads.n_kv_heads, heads.group, heads.head_dim)).permute(1, 2, 0, 3).flatten(1, 2)


def spread(x: Tensor, heads: Heads) -> Tensor:
    """[keys, group*n, size] -> [n, n_heads*head_dim]."""
    return x.unflatten(1, (heads.group, -1)).permute(2, 0, 1, 3).flatten(1)


def apart(x: Tensor, heads: Heads) -> Tensor:
    """[m, n_kv_heads*head_dim] -> [keys, m, size], a view."""
    return x.unflatten(1, (heads.n_kv_heads, heads.head_dim)).transpose(0, 1)


def scores_of(q: Tensor, k: Tensor, heads: Heads) -> Tensor:
    """q [keys, group*n, size], k [keys, m, size] -> float32 [keys, group*n, m], scaled and capped, -inf where
    nothing is seen."""
    s = torch.bmm(q.float() * heads.scale, k.float().transpose(1, 2))
    if heads.cap:
        s = torch.tanh_(s.div_(heads.cap)).mul_(heads.cap)
    n, m = q.shape[1] // heads.group, k.shape[1]
    view = s.unflatten(1, (heads.group, n))
    ones = torch.ones((n, n), dtype=torch.bool, device=q.device)
    if n > 1:
        view[..., m - n :].masked_fill_(ones.triu(1), -torch.inf)
    if heads.window and m > heads.window:
        view[..., :n].masked_fill_(ones.tril(m - n - heads.window), -torch.inf)
    return s


def attend(q: Tensor, k: Tensor, v: Tensor, heads: Heads) -> tuple[Tensor, Tensor]:
    """One tile: q as stacked() gives it, k, v [keys, m, size] -> (out like q, lse [queries, n])."""
    s = scores_of(q, k, heads)
    p = torch.softmax(s, -1)
    lse = s.amax(-1) - p.amax(-1).log()
    return torch.bmm(p.to(v.dtype), v), lse.view(heads.n_heads, -1)


def attention(q, k, v, first, end, starts, heads: Heads, out: Tensor) -> Tensor:
    """q, out: [T, n_heads*head_dim], k, v: [T, n_kv_heads*head_dim], starts: the examples' boundaries int [n+1] on the
    host.

    Writes out; returns the natural log-sum-exp of the scaled scores, float32 [queries, T]. first and end (int32 [T]:
    the bounds of each token's example) are what the kernels read instead of starts.
    """
    lse = torch.empty((heads.n_heads, q.shape[0]), dtype=torch.float32, device=q.device)
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist()):
        keys, values = apart(k[start:stop].float(), heads), apart(v[start:stop], heads)
        for near, low, high in tiles(start, stop, heads, SCORES):
            see = slice(near - start, high - start)
            got, lse[:, low:high] = attend(stacked(q[low:high], heads), keys[:, see], values[:, see], heads)
            out[low:high] = spread(got, heads)
    return lse


def attention_backward(dout, q, k, v, out, lse, first, end, starts, heads: Heads, dq, dk, dv) -> None:
    """Writes dq, dk and dv; out and lse are what attention gave."""
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist()):
        example = slice(start, stop)
        keys, wide_keys, wide_values = (apart(x, heads) for x in (k[example], k[example].float(), v[example].float()))
        grad_k, grad_v = (
            torch.zeros((heads.n_kv_heads, stop - start, heads.head_dim), device=q.device) for _ in range(2)
        )
        for near, low, high in tiles(start, stop, heads, SCORES):
            see = slice(near - start, high - start)
            query, given, made = (stacked(x[low:high], heads) for x in (q, dout, out))
            p = scores_of(query, wide_keys[:, see], heads)
            bend = (1 - (p / heads.cap).square()).clamp_(min=0) if heads.cap else None  # clamped: -inf is no score
            p = p.sub_(lse[:, low:high].reshape(heads.n_kv_heads, -1, 1)).exp_()
            grad_v[:, see] += torch.bmm(p.to(q.dtype).transpose(1, 2), given)
            ds = torch.bmm(given.float(), wide_values[:, see].transpose(1, 2))
            ds.sub_((given.float() * made).sum(-1, keepdim=True)).mul_(p).mul_(heads.scale)
            if bend is not None:
                ds.mul_(bend)
            ds = ds.to(q.dtype)
            grad_k[:, see] += torch.bmm(ds.transpose(1, 2), query)
            dq[low:high] = spread(torch.bmm(ds, keys[:, see]), heads)
        for grad, place in ((grad_k, dk), (grad_v, dv)):
            place[example] = grad.transpose(0, 1).flatten(1)


def attend_cache(q, keys, values, slots, heads: Heads, out: Tensor, sinks: Tensor | None = None) -> None:
    """New tokens against caches: q, out [T, n_heads*head_dim]; keys, values [slots, context, n_kv_heads*head_dim], the
    new tokens' already in their places; slots: (slot, first row of q, last row, position of the first)."""
    for slot, begin, stop, position in slots:
        shift = position - begin
        for _, low, high in tiles(begin, stop, heads, SCORES):
            near = max(0, low + shift + 1 - heads.window) if heads.window else 0
            k, v = (apart(x[slot, near : high + shift], heads).to(q.dtype) for x in (keys, values))
            made, lse = attend(stacked(q[low:high], heads), k, v, heads)
            out[low:high] = spread(made, heads)
            if sinks is not None:
                share = torch.exp(lse - torch.logaddexp(lse, sinks[:, None]))
                out[low:high] *= share.t().repeat_interleave(heads.head_dim, 1).to(out.dtype)
