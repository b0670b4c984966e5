"""Attention sinks (Xiao et al. 2023, as gpt-oss has them): a score of each query head that no value stands behind."""

from __future__ import annotations

from anytune.engine.base import Heads

from .arrays import Array, row_cuts
from .attention import inner_products
from .kernels import sinks as _kernels


def sink(e, out: Array, lse: Array, sinks: Array, heads: Heads) -> tuple[Array, Array]:
    tokens = out.rows
    result, lse_with_sink = e.array(*out.shape), e.flat(lse.size, heads.n_heads * e.buffer_rows(tokens))
    for a, b in row_cuts(e.device.max_binding, out, result):
        held = sinks.bind()
        e.commands.run(
            _kernels.sink(),
            [out.bind(a, b), lse, held, result.bind(a, b), lse_with_sink],
            (heads.head_dim, out.stride, result.stride, a, tokens, held.shift),
            (heads.n_heads, b - a),
        )
    return result, lse_with_sink


def sink_gradient(e, dout: Array, out: Array, lse: Array, sinks: Array, heads: Heads, into: Array) -> None:
    inner, held, target = inner_products(e, dout, out, heads), sinks.bind(), into.bind()
    e.commands.run(
        _kernels.gradient(), [inner, lse, held, target], (out.rows, held.shift, target.shift), (heads.n_heads,)
    )
