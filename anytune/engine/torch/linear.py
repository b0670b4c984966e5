"""y = W x + b + s B A x for linears that share an input, and its backward, each as one product with the group's matrix.

See weights.py for the matrix. A group that is not held dense is dequantized into the engine's one scratch matrix for
each use, and the low-rank pairs are written beside it.
"""

from __future__ import annotations

import torch

from anytune.engine.composed import Composed

from .arrays import on_nvidia, padding_behind, real, same_buffer
from .gradients import group_gradients
from .pair_gradients import add_gradients, gradients_between
from .plain_low import Block, gradient_table, place_table
from . import fp8
from .slices import Slices
from .weights import Group

Tensor = torch.Tensor


def prepare(e, groups: list[Group], parameters: Tensor, gradients: Tensor) -> None:
    """Lay out matrices for groups and the tables of their pairs."""
    e.release()
    e.gradients = gradients
    arena, blocks = hold_matrices(e, groups, parameters)
    groups = [g for g in groups if isinstance(g, Group)]  # experts find their pairs where they lie
    for group in groups:
        prepare_gradients(e, group, parameters)
    placed = any(group.rank for group in groups if group.dense is not None)
    e.updater.layout(arena, parameters, place_table(blocks, e.device) if placed else None)
    if e.fp8:
        fp8.prepare(e, groups, matrix)


def hold_matrices(e, groups: list[Group], parameters: Tensor) -> tuple[Tensor, list[Block]]:
    """Dense matrices in one arena, one scratch for the others -> (the arena, where each group is in it)."""
    dense, blocks, at = [g for g in groups if g.hold == "dense"], [], 0
    arena = torch.empty(sum(g.size for g in dense), dtype=e.dtype, device=e.device)
    for group in dense:
        group.load(arena[at : at + group.size].view(-1, group.stride))
        for weight, low, high in zip(group.weights, group.bounds, group.bounds[1:]):
            weight.home = group.dense[low:high, : group.in_features]
        blocks.append(group.block(at, parameters))
        at += group.size
    # a vocabulary is too wide for a scratch matrix: loss.py takes the head in pieces (its number is negative)
    loose = [g for g in groups if g.hold != "dense" and g.number >= 0]
    if loose:
        e.scratch = torch.zeros(max(g.size for g in loose), dtype=e.dtype, device=e.device)
    sliced = [w for g in groups for w in g.weights if w.hold == "shard"]
    e.slices = Slices(e, sliced) if sliced else None
    if e.process_group is not None:
        e.process_group.sharded = bool(sliced)
    return arena, blocks


def prepare_gradients(e, group: Group, parameters: Tensor) -> None:
    """Where the gradients of the group's pairs lie, and the pairs themselves if it is not held dense."""
    if group.trains_pairs:
        group.gradient_table = gradient_table(group.parts(e.gradients, True), group.in_features, group.rank, e.device)
        if group.dense is None:
            group.place_table = place_table([group.block(0, parameters)], e.device)


def matrix(e, group: Group) -> Tensor:
    """[width + R, stride] with weights and pairs in place."""
    if group.dense is not None:
        return group.dense
    if len(group.weights) == 1 and group.trains_matrix and e.dtype == torch.float32:
        return group.weights[0].values
    if e.scratch is None or e.scratch.numel() < group.size:
        e.scratch = torch.zeros(group.size, dtype=e.dtype, device=e.device)
    out = e.scratch[: group.size].view(-1, group.stride)
    group.fill(out)
    if group.rank:
        out[:, group.in_features : group.columns].zero_()
        out[group.width :].zero_()
        if group.place_table is not None:
            e.f.place(e.updater.parameters, group.place_table, out)
        else:
            group.put_pairs(out)
    return out


def product(e, a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """out = a · b, operands in the products' dtype, sums in float32.

    float16 operands that lie in float32 are brought into range by a power of two first, so that nothing overflows.
    """
    if a.dtype == b.dtype == out.dtype:
        return torch.mm(a, b, out=out)
    if e.dtype == torch.float16:
        peak = a.abs().amax().clamp(min=1e-30)
        factor = torch.exp2(torch.floor(torch.log2(256.0 / peak)))  # 256: far from 65,504 after a sum, far from 2**-24
        return torch.mul(_mixed(a * factor, b), 1.0 / factor, out=out)
    return out.copy_(_mixed(a, b))


def _mixed(a: Tensor, b: Tensor) -> Tensor:
    """float32 a times a low-precision b -> float32."""
    a = a.to(b.dtype)
    if a.is_cuda or on_nvidia(a):
        return torch.mm(a, b, out_dtype=torch.float32)
    return torch.mm(a.float(), b.float()) if a.device.type == "cpu" else torch.mm(a, b).float()


def linear(e, x: Tensor, group: Group, m: Tensor | None = None) -> tuple[Tensor, ...]:
    """x: [T, in] -> one [T, out] for each linear of the group, columns of one buffer.
    m: its matrix, if it is at hand."""
    x, m = real(x), matrix(e, group) if m is None else m
    y = e.array(x.shape[0], group.width)
    y.ends = True
    inputs = with_low(e, x, group, m) if group.rank else x
    product(e, inputs, m[: group.width, : group.columns].t(), y)
    if group.bias is not None:
        y += group.bias
    parts = group.split(y)
    parts[-1].ends = True
    return parts


def with_low(e, x: Tensor, group: Group, m: Tensor, source: Tensor | None = None) -> Tensor:
    """[x | s x Aᵀ]; source: x after dropout, where the caller has it."""
    if getattr(x, "low_of", None) is group:
        return x.as_strided((x.shape[0], group.columns), x.stride())
    inputs = e.extend(x, group.rank)
    if source is None:
        source = dropped(e, x, group)
    low(e, source, m[group.width :, : group.in_features].t(), inputs[:, group.in_features :])
    if padding_is_own(x, inputs):
        x.low_of = group
    return inputs


def padding_is_own(x: Tensor, inputs: Tensor) -> bool:
    """Whether the low-rank columns were written behind x itself (and not behind a copy)."""
    return same_buffer(x, inputs)


def low(e, x: Tensor, w: Tensor, out: Tensor) -> None:
    """The skinny product out [T, R] = x [T, K] · w [K, R]."""
    if x.dtype == w.dtype == out.dtype:
        e.f.low(x, w, out)
    else:
        product(e, x, w, out)


def dropped(e, x: Tensor, group: Group) -> Tensor:
    """x with dropout's mask and its 1/(1-p), or x itself."""
    if not (group.dropout and e.training):
        return x
    out = e.array(*x.shape, 0)
    e.f.dropout(x, e.key, group.number, group.dropout, out)
    return out


def linear_backward(e, dys: tuple[Tensor, ...], x: Tensor, group: Group, need_dx: bool = True) -> Tensor | None:
    """Adds to the group's gradients; returns dx [T, in], or None if it is not needed."""
    x, dy = real(x), e.joined(tuple(map(real, dys)))
    m = matrix(e, group) if need_dx or group.rank else None
    dx, dy_low = _input_gradient(e, dy, group, m, need_dx)
    if group.trains_matrix or group.trains_bias:
        group_gradients(e, dy, x, group)
    if group.trains_pairs:
        source = dropped(e, x, group)
        add_gradients(e, source, dy_low, dy, with_low(e, x, group, m, source)[:, group.in_features :], group)
    return dx


def _input_gradient(e, dy: Tensor, group: Group, m: Tensor, need_dx: bool) -> tuple[Tensor | None, Tensor | None]:
    """(dx [T, in] or None, dy_i B_i side by side [T, R] or None)."""
    dy_low, wide = None, dy
    if dy.dtype == fp8.F8:  # with its low-rank part behind
        dy_low = e.array(dy.shape[0], group.rank, 0)
        e.f.low_fp8(dy, dy.row_scale, m[: group.width, group.in_features : group.columns], dy_low)
    elif group.rank:
        wide = e.extend(dy, group.rank)
        dy_low = wide[:, group.width :]
        if getattr(dy, "low_of", None) is not group:
            low(e, dy, m[: group.width, group.in_features : group.columns], dy_low)
    if not need_dx:
        return None, dy_low
    masked = group.rank and group.dropout and e.training
    if group.eight is not None and dy.shape[0] > e.f.small_rows:
        # else more launches, for products bound by their weights
        dx = fp8.input_gradient(e, dy, None if masked else dy_low, group, m)
        return (_through_mask(e, dx, dy_low, group, m) if masked else dx), dy_low
    dx = e.array(dy.shape[0], group.in_features)
    dx.ends = True
    if not group.rank:
        product(e, dy, m[: group.width, : group.in_features], dx)
    elif not masked:
        product(e, wide, m[:, : group.in_features], dx)
    else:
        product(e, dy, m[: group.width, : group.in_features], dx)
        _through_mask(e, dx, dy_low, group, m)
    return dx, dy_low


def _through_mask(e, dx: Tensor, dy_low: Tensor, group: Group, m: Tensor) -> Tensor:
    """dx += the low-rank part of the input gradient, which passes dropout's mask on its own."""
    through = e.array(*dx.shape, 0)
    product(e, dy_low, m[group.width :, : group.in_features], through)
    return dx.add_(dropped(e, through, group))


def norm_linear(e, x, gain, eps: float, group: Group) -> tuple[Tensor, ...]:
    m = matrix(e, group)
    return linear(e, e.rms_norm(x, gain, eps, group, m), group, m)


def glu_linear(e, gate, up, activation: str, group: Group) -> tuple[Tensor, ...]:
    m = matrix(e, group)
    if group.eight is not None and e.training and gate.shape[0] > e.f.small_rows:
        group.peak = torch.zeros(gate.shape[0], dtype=torch.float32, device=e.device)
    return linear(e, e.glu(gate, up, activation, group, m), group, m)


def norm_linear_backward(
    e, dys, x, gain, eps: float, group: Group, residual, need_dx: bool = True, then: Group | None = None, into=None
):
    """The norm's result is made again by the kernel of its backward, or by that of the gradients,
    where its input is read anyway."""
    kept = take_low(group)
    if kept is None:  # the forward left no low-rank product: no pairs here, or dropout
        return Composed.norm_linear_backward(e, dys, x, gain, eps, group, residual, need_dx, then, into)
    dy, residual = e.joined(tuple(map(real, dys))), real(residual)
    dh, dy_low = _input_gradient(e, dy, group, matrix(e, group), need_dx)
    x, norm, out = real(x), None, e.array(*x.shape) if need_dx else None
    if not need_dx:
        normed = e.rms_norm(x, gain, eps)
    elif x.shape[0] > e.f.small_rows and group.gradient_table is not None:  # many tokens: a pass over memory less
        out.ends, normed = True, x
        norm = (gain, torch.empty(x.shape[0], dtype=torch.float32, device=e.device))
        e.f.rms_norm_backward(dh, x, gain, eps, residual, out, inverse=norm[1], **riding_back(e, out, then))
    else:
        out.ends, normed = True, e.array(*x.shape, 0)
        e.f.rms_norm_backward(dh, x, gain, eps, residual, out, normed, **riding_back(e, out, then))
    add_gradients(e, normed, dy_low, None if group.has_b else dy, kept, group, norm)
    group.has_b = False
    return out


def glu_linear_backward(e, dy, gate, up, activation: str, group: Group, then: Group | None, need_dx: bool = True):
    """The gated product is made again by the kernel of its backward, where its inputs are read anyway."""
    kept = take_low(group)
    if kept is None or not need_dx:
        return Composed.glu_linear_backward(e, dy, gate, up, activation, group, then, need_dx)
    dy = real(dy)
    da, dy_low = _input_gradient(e, dy, group, matrix(e, group), True)
    width, peak, between = gate.shape[1], group.peak, gradients_between(e, gate.shape[0], group, then)
    group.peak = None
    if between:
        eight = {}
        if peak is not None and then.eight is not None and not then.dropout:
            both, scale, eight["bound"] = fp8.between(e, dy, peak, group, then)
            eight["scale"] = both.row_scale = scale
        else:
            both = e.array(gate.shape[0], 2 * width)
        dgate, dup = both[:, :width], both[:, width : 2 * width]
        dup.ends, dup.row_scale = True, eight.get("scale")
        pairs = (group.pairs[0].grad_a, *(pair.grad_b for pair in then.pairs))
        e.f.glu_gradients(da, gate, up, activation, dgate, dup, dy_low, then.low, *pairs, group.scale, **eight)
        then.has_b = True
        add_gradients(e, None, dy_low, dy, kept, group)
        return dgate, dup
    both = e.array(gate.shape[0], 2 * width)
    both.ends = True
    dgate, dup = both[:, :width], both[:, width:]
    dup.ends = True
    again, riding = e.array(*gate.shape, 0), riding_back(e, both, then)
    dup.low_of = getattr(both, "low_of", None)
    e.f.glu_backward(da, gate, up, activation, dgate, dup, again, **riding)
    add_gradients(e, again, dy_low, dy, kept, group)
    return dgate, dup


def take_low(group: Group) -> Tensor | None:
    """The forward's low-rank product, if it left one; its backward uses it up."""
    kept, group.low = group.low, None
    return kept


def riding_back(e, out: Tensor, then: Group | None) -> dict:
    """What makes the kernel that writes `out`, a group's dy, also write dy B behind it."""
    if then is None or not then.rank or then.dense is None or padding_behind(out) < then.rank:
        return {}
    out.low_of = then
    return {
        "b": then.dense[: then.width, then.in_features : then.columns],
        "low": e.extend(out, then.rank)[:, then.width :],
    }
