"""One of each kernel, and of what makes a difference to its memory or bindings: to be read, and to be tested."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from ..kernel import Kernel
from . import attention, attention_backward, convolution, decode, delta, delta_backward, delta_gradients, delta_scan
from . import (
    experts,
    gates,
    gemm,
    gemv,
    gradients,
    heads,
    lookup,
    low,
    optimizer,
    rope,
    routing,
    routing_backward,
    rows,
    rules,
    sinks,
)
from .blocks import TYPES


def every() -> Iterator[Kernel]:
    yield from (
        heads.total(),
        rows.rms_norm(False),
        rows.rms_norm(True),
        rows.rms_norm_backward(False),
        rows.rms_norm_backward(True),
        rows.add(),
        rows.cap(),
        rows.scale(False),
        rows.scale(True),
        rows.gather(),
        rows.scatter(),
        rows.fill(),
        rows.copy(),
        rows.dropout(False),
        rows.dropout(True),
        optimizer.loss_rows(False),
        optimizer.loss_rows(True),
        optimizer.loss_rows(True, True),
        optimizer.add_up(),
        optimizer.square_sums(),
        optimizer.clip(),
        optimizer.adamw(),
        low.low(),
        low.both(),
        low.gradients(),
        gemm.split_sum(),
        decode.store(),
        decode.combine(),
        decode.combine(True),
        attention.inner(),
        convolution.silu_backward(),
        convolution.convolve_backward(),
        convolution.weight_gradient(),
        convolution.update_window(),
        delta.units(),
        delta.gates(),
        delta.norm(),
        delta_backward.norm_backward(),
        delta_backward.gates_backward(),
        gradients.outer(),
        gradients.inverse_rms(),
        gradients.links(),
        gradients.scatter(),
        rules.adamw(),
        rules.adamw8bit(),
        rules.row_means(),
        rules.column_means(),
        rules.matrix_updates(),
        rules.vector_updates(),
        rules.clip_updates(),
        rules.apply(),
    )
    for yes in (False, True):
        yield from (convolution.convolve(yes), convolution.convolve_cached(yes), heads.move(yes), heads.product(yes))
    yield from _of_experts()
    yield from map(gradients.column_sums, gradients.VALUES)
    for neox in (True, False):
        for normed in (True, False):
            yield from (rope.qk_norm_rope(normed, neox), rope.qk_norm_rope_backward(normed, neox))
    for sizes in (delta.Sizes(32, 128, 128), delta.Sizes(32, 256, 256), delta.Sizes(4, 8, 3)):
        yield from (delta.cached(sizes), delta_scan.factors(sizes), delta_backward.units_backward(sizes))
        yield from (delta_gradients.products(sizes), delta_gradients.gradients(sizes))
        yield from (delta_scan.scan(sizes, False, True, True), delta_scan.scan(sizes, True, True, False))
        yield delta_backward.scan_backward(sizes, True, True)
    for kind in gates.ACTIVATIONS:
        yield from (gates.glu(kind), gates.glu_backward(kind), gates.glu_backward(kind, over=True))
    for name in TYPES:
        yield from (lookup.embed(name), gemv.gemv(name, 8, True, True))
        yield from (gemm.gemm(name, way, gemm.Tile(), True, True) for way in (True, False))
        yield from (gemm.gemm(name, True, gemm.Tile(), True, True, True), gemm.gemm(name, False, experts=True))
        yield gemv.gemv(name, 1, True, True, True)
    for size in (8, 64, 128, 256):
        yield from (
            attention.attention(size),
            attention.attention(size, True),
            decode.attend(size),
            decode.attend(size, True),
            decode.attend(size, capped=True),
            decode.attend(size, sinks=True),
            *(attention_backward.attention_backward(size, wanted, wanted == "dk") for wanted in ("dq", "dk", "dv")),
        )


def _of_experts() -> Iterator[Kernel]:
    for kind in routing.KINDS:
        yield from (routing.choose(kind, yes, True, yes, yes) for yes in (True, False))
        yield from (routing_backward.backward(kind, yes, yes) for yes in (True, False))
    yield from (
        routing.sort(),
        routing.tiles(),
        routing.loads(),
        routing_backward.scale_gradient(),
        experts.dispatch(),
        experts.combine(),
        experts.weigh(),
        experts.weigh_backward(),
        experts.weigh_bias(),
        experts.weigh_bias_backward(),
        experts.column_sums(False),
        experts.column_sums(True),
        gates.gate_rows(),
        gates.gate_rows_backward(),
        low.low(True),
        low.expert_gradient(),
        gradients.outer(experts=True),
        sinks.sink(),
        sinks.gradient(),
    )


def write(folder: str | Path) -> int:
    """Every kernel as a file of WGSL; returns how many."""
    folder, count = Path(folder), 0
    folder.mkdir(parents=True, exist_ok=True)
    for count, kernel in enumerate(every(), 1):
        name = re.sub(r"[^A-Za-z0-9]+", "-", kernel.name).strip("-").lower()
        (folder / f"{name}.wgsl").write_text(kernel.text(), encoding="utf-8")
    return count
