"""The fused elementwise operations in plain torch: what each one means, and what runs where Triton does not.

kernels/ has the same functions with the same signatures; tests hold the two side by side. Arrays are 2-D views of
bfloat16, float16 or float32 whose inner stride is one element, rows are tokens; statistics and sums are float32, and
each result is rounded once. Results go to the arrays named `out` and the like. Nothing is read back to the host, so all
of it can be recorded in a CUDA graph. The rest of the twins: plain_low.py, plain_optimizer.py.
"""

from __future__ import annotations

import math

import torch

from . import plain_low
from .plain_fp8 import LEAST, rounded

Tensor = torch.Tensor
GELU_C = math.sqrt(2 / math.pi)  # Hendrycks & Gimpel 2016, tanh form
GELU_A = 0.044715
MASK = 0xFFFFFFFF
STEEPEST = 1.13  # silu's slope is 1.0998 at most, gelu's 1.1290


def _inverse(x: Tensor, eps: float) -> Tensor:
    """1 / sqrt(mean x² + eps) over the last axis."""
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rms_norm(x, gain, eps, out, add=None, total=None, a=None, low=None, *, keep=None):
    """out [T, n] = s / sqrt(mean s² + eps) * gain (Zhang & Sennrich 2019), s = x, or x + add, kept in `total`.

    gain float32 [n]; s is rounded to total's dtype before it is used. With a [R, n]: low [T, R] = out · aᵀ, and again
    in `keep`, if given. Of the arrays that are written only `total` may lie over an input (x or add).
    """
    s = x.float()
    if add is not None:
        total.copy_(s + add.float())
        s = total.float()
    out.copy_(s * _inverse(s, eps) * gain)
    if a is not None:
        plain_low.low(out, a.t(), low, keep=keep)


def _norm_backward(u, x, eps):
    """The gradient of x * r, r = 1/sqrt(mean x² + eps), for u = dy * gain: r*u - x * r³ * mean(u*x)."""
    r = _inverse(x, eps)
    return u * r - x * ((u * x).mean(-1, keepdim=True) * r * r * r)


def rms_norm_backward(dy, x, gain, eps, residual, out, normed=None, *, inverse=None, b=None, low=None):
    """out = d(rms_norm)ᵀ dy, plus `residual` (or None); normed, if given, gets the forward's result again,
    inverse (float32 [T]) what x was multiplied by for it.

    With b [n, R] of any strides: low [T, R] = out · b. out may be dy, x or residual, of any of the dtypes.
    """
    xs = x.float()
    dx = _norm_backward(dy.float() * gain, xs, eps)
    again = xs * _inverse(xs, eps) * gain
    out.copy_(dx if residual is None else dx + residual.float())
    if normed is not None:
        normed.copy_(again)
    if inverse is not None:
        inverse.copy_(_inverse(xs, eps)[:, 0])
    if b is not None:
        plain_low.low(out, b, low)


def _pairs(z: Tensor, pairs: int, neox: bool) -> tuple[Tensor, Tensor]:
    """Views of the first and second elements of each rotated pair of z [T, heads, size]."""
    if neox:
        return z[..., :pairs], z[..., pairs : 2 * pairs]
    return z[..., 0 : 2 * pairs : 2], z[..., 1 : 2 * pairs : 2]


def _turn(z: Tensor, cos, sin, positions, neox: bool, sign: int) -> Tensor:
    """Rotate z float32 [T, heads, size], in place."""
    at = positions.long()
    c, s = cos[at][:, None], sign * sin[at][:, None]
    a, b = _pairs(z, cos.shape[1], neox)
    first, second = a * c - b * s, a * s + b * c
    a.copy_(first)
    b.copy_(second)
    return z


def qk_norm_rope(q, k, q_gain, k_gain, eps, cos, sin, positions, heads, n_kv_heads, neox, out_q, out_k):
    """Norm of each head (gains float32 [size], or None) and rope (Su et al. 2021) for queries and keys.

    q [T, heads*size], k [T, n_kv_heads*size]; cos, sin float32 [context, pairs]; positions int32 [T]. neox: element i
    pairs with i + pairs (GPT-NeoX order), else 2i with 2i + 1; elements from 2*pairs on are not turned. Outputs may lie
    over inputs.
    """
    for x, gain, count, out in ((q, q_gain, heads, out_q), (k, k_gain, n_kv_heads, out_k)):
        z = x.unflatten(1, (count, -1)).float()
        z = z.clone() if gain is None else z * _inverse(z, eps) * gain
        out.copy_(_turn(z, cos, sin, positions, neox, 1).flatten(1))


def qk_norm_rope_backward(dq, dk, q, k, q_gain, k_gain, eps, cos, sin, positions, heads, n_kv_heads, neox):
    """qk_norm_rope's backward, in place over dq and dk; q and k are its inputs, used only with gains."""
    for dy, x, gain, count in ((dq, q, q_gain, heads), (dk, k, k_gain, n_kv_heads)):
        u = _turn(dy.unflatten(1, (count, -1)).float().clone(), cos, sin, positions, neox, -1)
        if gain is not None:
            u = _norm_backward(u * gain, x.unflatten(1, (count, -1)).float(), eps)
        dy.copy_(u.flatten(1))


def _activate(gate: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """(activation, its derivative). Both are x σ(z): z = x is silu; z = 2 √(2/π) (x + 0.044715 x³) is gelu's tanh form,
    since (1 + tanh y)/2 = σ(2y)."""
    if activation == "silu":
        z, slope = gate, 1.0
    else:
        z = 2 * GELU_C * (gate + GELU_A * gate**3)
        slope = 2 * GELU_C * (1 + 3 * GELU_A * gate**2)
    s = torch.sigmoid(z)
    return gate * s, s + gate * s * (1 - s) * slope


def glu(gate, up, activation, out, a=None, low=None, *, keep=None, peak=None):
    """out [T, n] = act(gate) * up (Shazeer 2020), activation silu or gelu (tanh form); with a [R, n] also
    low [T, R] = out · aᵀ, and again in `keep`, if given. peak float32 [T], if given (zeros): the largest factor of each
    row that the backward multiplies with, |act(gate)| or STEEPEST |up|."""
    value, u = _activate(gate.float(), activation)[0], up.float()
    out.copy_(value * u)
    if peak is not None:
        torch.maximum(value.abs().amax(1), u.abs().amax(1) * STEEPEST, out=peak)
    if a is not None:
        plain_low.low(out, a.t(), low, keep=keep)


def glu_backward(dy, gate, up, activation, dgate, dup, out=None, *, b=None, low=None):
    """dgate = dy * up * act'(gate), dup = dy * act(gate); out, if given, gets the forward's result again.

    With b [2n, R] of any strides: low [T, R] = [dgate | dup] · b. Outputs may lie over inputs.
    """
    value, slope = _activate(gate.float(), activation)
    d, u = dy.float(), up.float()
    again, results = value * u, (d * u * slope, d * value)  # all of it before anything is overwritten
    dgate.copy_(results[0])
    dup.copy_(results[1])
    if out is not None:
        out.copy_(again)
    if b is not None:
        plain_low.low_of_pair(dgate, dup, b, low)


def gated(x, gate, out):
    """out [T, n] = x * σ(gate)."""
    out.copy_(x.float() * torch.sigmoid(gate.float()))


def gated_backward(dy, x, gate, dx, dgate):
    """dx = dy * σ(gate), dgate = dy * x * σ'(gate)."""
    s, d = torch.sigmoid(gate.float()), dy.float()
    dx.copy_(d * s)
    dgate.copy_(d * x.float() * s * (1 - s))


def glu_gradients(
    dy, gate, up, activation, dgate, dup, low_dy, low_x, grad_a, grad_gate, grad_up, factor, *, bound=None, scale=None
):
    """glu_backward, and the gradients (float32, added to) of the pairs whose wide side it is.

    Of the linear behind: grad_a [r, n] += factor * low_dyᵀ (act(gate) * up), low_dy [T, r] being its dy B. Of those
    before: grad_gate [n, r'] += dgateᵀ low_x[:, :r'], grad_up [n, r"] += dupᵀ low_x[:, r':r' + r"], low_x being s x Aᵀ
    side by side.

    With bound (norms float32 [T], peaks float32 [T], number) dgate and dup are written in e4m3, and in scale float32
    [T] what they are to be multiplied by: norm * peak * number of the row, as fp8.between() has it.
    """
    again, first = torch.empty_like(dy), grad_gate.shape[1]
    eighths = (dgate, dup)
    if bound is not None:
        scale.copy_((bound[0] * bound[1] * bound[2]).clamp(min=LEAST))
        dgate, dup = torch.empty_like(again), torch.empty_like(again)
    glu_backward(dy, gate, up, activation, dgate, dup, again)
    if bound is not None:
        for out, x in zip(eighths, (dgate, dup)):
            out.copy_(rounded(x.float() / scale[:, None]))
    grad_a.add_(plain_low.product(low_dy[:, : grad_a.shape[0]].t(), again), alpha=factor)
    grad_gate.add_(plain_low.product(dgate.t(), low_x[:, :first]))
    grad_up.add_(plain_low.product(dup.t(), low_x[:, first : first + grad_up.shape[1]]))


def loss_rows(logits, targets, scale, losses, gradient, cap=0.0):
    """losses float32 [C] = logsumexp(logits) - logits[target]; gradient: logits become scale * (softmax - onehot).
    cap: of logits, 0: none.

    logits [C, V]; targets int32 [C], -1 for a row that does not count (loss and gradient 0); scale float32 [1].
    """
    counts, x, at = targets >= 0, logits.float(), targets.clamp(min=0).long()[:, None]
    x = cap * torch.tanh(x / cap) if cap else x
    log_sum = torch.logsumexp(x, 1, keepdim=True)
    losses.copy_(torch.where(counts, (log_sum - x.gather(1, at))[:, 0], 0.0))
    if gradient:
        p = torch.exp(x - log_sum)
        p.scatter_add_(1, at, torch.full_like(log_sum, -1.0))
        if cap:
            p *= 1 - (x / cap).square()
        logits.copy_(torch.where(counts[:, None], p * scale, 0.0))


def _mix(h: Tensor) -> Tensor:
    """murmur3's 32-bit finalizer (Appleby 2011) on int64 values below 2³²;
    int64 products wrap, which keeps their low bits."""
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & MASK
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & MASK
    return h ^ (h >> 16)


def keep_mask(key: Tensor, number: int, p: float, rows: int, columns: int) -> Tensor:
    """bool [rows, columns]: what dropout keeps. Counter-based: a hash of key, number and the element's index, no state.

    The stream's numbers are folded into two 32-bit words; an element's index is mixed once with each, so that the
    streams are not each other's permutations by a plain shift.
    """
    seed, step, micro = (key.long() & MASK).unbind()
    one = _mix(_mix(seed ^ 0x9E3779B9) ^ step)
    two = _mix(_mix(one ^ micro) ^ (number & MASK))
    index = torch.arange(rows * columns, dtype=torch.int64, device=key.device) & MASK
    h = _mix((_mix(index ^ two) + one) & MASK)
    return ((h >> 8) >= threshold(p)).view(rows, columns)


def threshold(p: float) -> int:
    """Elements whose 24-bit number lies below it are dropped."""
    return round(p * (1 << 24))


def dropout(x, key, number, p, out):
    """out = x * keep / (1 - p); key int32 [3] on the device (seed, step, micro), number tells the groups apart."""
    keep = keep_mask(key, number, p, *x.shape)
    out.copy_(torch.where(keep, x.float() * (1.0 / (1.0 - p)), 0.0))
