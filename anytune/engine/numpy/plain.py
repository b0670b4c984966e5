"""The elementwise kernels in plain NumPy: what each one means, and what runs where Numba is absent.

fast.py has the same functions compiled; tests hold the two side by side. Arrays are float32, 2-D views whose
inner stride is one element; rows are tokens. `groups` splits a row into heads of equal width.
Nothing is returned: results go to the arrays named last. Sums run in float32 as in the compiled kernels.
"""

from __future__ import annotations

import numpy as np

from anytune.engine import optimizers

SILU, GELU = 0, 1
_GELU_C = 0.7978845608028654  # sqrt(2/pi), Hendrycks & Gimpel 2016 (tanh form, the one that Gemma uses)
_GELU_A = 0.044715


def _heads(x: np.ndarray, groups: int) -> np.ndarray:
    """View [T, groups*n] as [T, groups, n] without a copy, whatever the row stride."""
    n = x.shape[1] // groups
    return np.lib.stride_tricks.as_strided(x, (x.shape[0], groups, n), (x.strides[0], n * 4, 4))


def rms_norm(x, gain, eps, groups, y):
    """y = x / sqrt(mean(x²) + eps) * gain, for each head of each row (Zhang & Sennrich 2019)."""
    xs, ys = _heads(x, groups), _heads(y, groups)
    inverse = 1.0 / np.sqrt(np.mean(xs * xs, axis=-1, keepdims=True) + np.float32(eps))
    np.multiply(xs, inverse, out=ys)
    ys *= gain


def rms_norm_backward(dy, x, gain, eps, groups, residual, dx):
    """dx = d(rms_norm)ᵀ dy, plus `residual` (or None). With u = dy*gain, r = 1/rms:
    dx = r*u - x * r³ * mean(u*x)."""
    us, xs, out = _heads(dy, groups) * gain, _heads(x, groups), _heads(dx, groups)
    inverse = 1.0 / np.sqrt(np.mean(xs * xs, axis=-1, keepdims=True) + np.float32(eps))
    inner = np.mean(us * xs, axis=-1, keepdims=True) * inverse**3
    result = us * inverse - xs * inner
    if residual is not None:
        result += _heads(residual, groups)
    out[...] = result


def gain_gradient(dy, x, eps, groups, into):
    """into [n] += d(rms_norm)/d(gain): the sum over rows and heads of dy * x / rms(x)."""
    ds, xs = _heads(dy, groups), _heads(x, groups)
    inverse = 1.0 / np.sqrt(np.mean(xs * xs, axis=-1, keepdims=True) + np.float32(eps))
    into += np.sum(ds * (xs * inverse), axis=(0, 1))


def rope(x, cos, sin, positions, groups, neox, sign, y):
    """Rotate pairs of each head by its position's angles (Su et al. 2021); y may be x.

    cos, sin: [context, pairs]; pairs beyond 2*pairs of a head stay as they are. neox: element i pairs with
    i + pairs (GPT-NeoX order), else 2i with 2i + 1. sign -1 turns back, which is the backward.
    """
    xs, ys = _heads(x, groups), _heads(y, groups)
    pairs = cos.shape[1]
    c, s = cos[positions][:, None, :], sin[positions][:, None, :] * np.float32(sign)
    first = slice(0, pairs) if neox else slice(0, 2 * pairs, 2)
    second = slice(pairs, 2 * pairs) if neox else slice(1, 2 * pairs, 2)
    a, b = xs[..., first].copy(), xs[..., second].copy()
    if y is not x:
        ys[..., 2 * pairs :] = xs[..., 2 * pairs :]
    ys[..., first] = a * c - b * s
    ys[..., second] = a * s + b * c


def _activate(gate, kind):
    """(activation, its derivative) of `gate`."""
    if kind == SILU:
        sigmoid = 1.0 / (1.0 + np.exp(-gate))
        return gate * sigmoid, sigmoid * (1.0 + gate * (1.0 - sigmoid))
    t = np.tanh(np.float32(_GELU_C) * (gate + np.float32(_GELU_A) * gate * gate * gate))
    slope = np.float32(_GELU_C) * (1.0 + np.float32(3 * _GELU_A) * gate * gate)
    return 0.5 * gate * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * gate * (1.0 - t * t) * slope


def glu(gate, up, kind, y):
    """y = act(gate) * up (Shazeer 2020)."""
    with np.errstate(over="ignore"):
        np.multiply(_activate(gate, kind)[0], up, out=y)


def glu_backward(dy, gate, up, kind, dgate, dup):
    """dgate = dy * up * act'(gate), dup = dy * act(gate)."""
    with np.errstate(over="ignore"):
        value, slope = _activate(gate, kind)
    keep = dy * up * slope
    np.multiply(dy, value, out=dup)
    dgate[...] = keep


def add(x, y, z):
    """z = x + y; z may be x or y."""
    np.add(x, y, out=z)


def add_scaled(x, scale, z):
    """z += scale * x."""
    z += np.float32(scale) * x


def scale_by(x, mask, scale, y):
    """y = x * mask * scale for a boolean mask (dropout)."""
    np.multiply(x, mask, out=y)
    y *= np.float32(scale)


def causal_bounds(rows, heads, first_query, first_key, keys, window):
    """For each row (query-major, `heads` rows a query) the half-open range of key columns it may see."""
    position = first_query + np.arange(rows) // heads - first_key
    high = np.minimum(position + 1, keys)
    low = np.zeros_like(high) if window <= 0 else np.maximum(0, position + 1 - window)
    return low, high


def _hidden(scores, heads, first_query, first_key, window):
    """bool like scores: the keys that a row's query does not see."""
    rows, keys = scores.shape
    low, high = causal_bounds(rows, heads, first_query, first_key, keys, window)
    column = np.arange(keys)
    return (column < low[:, None]) | (column >= high[:, None])


def cap(scores, scale, most, slope, wanted):
    """In place: most * tanh(scale * score / most); slope, where it is wanted: its derivative by scale * score."""
    np.tanh(scores * np.float32(scale / most), out=scores)
    if wanted:
        np.subtract(1.0, scores * scores, out=slope)
    scores *= np.float32(most)


def softmax(scores, heads, first_query, first_key, window, scale, log_sum):
    """In place: probabilities of the visible keys of each row, zeros elsewhere; log_sum [rows] gets
    log(sum(exp(scale*score))), which is all that the backward needs to remake them."""
    hidden = _hidden(scores, heads, first_query, first_key, window)
    scores *= np.float32(scale)
    scores[hidden] = -np.inf
    top = scores.max(axis=1, keepdims=True)
    np.exp(scores - top, out=scores)
    total = scores.sum(axis=1, keepdims=True)
    scores /= total
    log_sum[...] = (top + np.log(total))[:, 0]


def softmax_again(scores, heads, first_query, first_key, window, scale, log_sum):
    """In place: the probabilities that softmax gave, from raw scores and its log_sum."""
    hidden = _hidden(scores, heads, first_query, first_key, window)
    np.exp(scores * np.float32(scale) - log_sum[:, None], out=scores, where=~hidden)
    scores[hidden] = 0


def softmax_backward(probabilities, dprobabilities, inner, scale):
    """In place on dprobabilities: scale * p * (dp - inner), inner [rows] = sum(p * dp) = sum(o * do)."""
    dprobabilities -= inner[:, None]
    dprobabilities *= probabilities
    dprobabilities *= np.float32(scale)


def row_dots(x, y, heads, out):
    """out[t, h] = sum of x*y over head h of row t."""
    np.einsum("thn,thn->th", _heads(x, heads), _heads(y, heads), out=out)


def loss_rows(logits, targets, first, top, total, picked):
    """Fold a tile of logits (columns first…) into running row maxima and sums (Milakov & Gimelshein 2018).

    top, total: [rows], float32, start as -inf and 0; picked [rows] gets the target's logit when it is here.
    """
    new = np.maximum(top, logits.max(axis=1))
    with np.errstate(invalid="ignore"):
        keep = np.where(np.isneginf(top), 0, total * np.exp(top - new))
    total[...] = keep + np.exp(logits - new[:, None]).sum(axis=1)
    top[...] = new
    here = np.flatnonzero((targets >= first) & (targets < first + logits.shape[1]))
    picked[here] = logits[here, targets[here] - first]


def loss_rows_backward(logits, targets, first, log_sum, scale):
    """In place: scale * (softmax(logits) - onehot(target)) for a tile of columns from `first`."""
    np.exp(logits - log_sum[:, None], out=logits)
    here = np.flatnonzero((targets >= first) & (targets < first + logits.shape[1]))
    logits[here, targets[here] - first] -= 1.0
    logits *= np.float32(scale)


def encode_moments(x, signed, codes, scale):
    """x [n] as 8-bit codes [n] and the largest magnitude of each block: optimizers.encode."""
    codes[...], scale[...] = optimizers.encode(x, signed)


def sum_squares(x):
    """Sum of squares of a flat array, in float64."""
    return float(np.dot(x.astype(np.float64), x.astype(np.float64)))


def adamw(p, g, m, v, lr, beta1, beta2, eps, decay, clip, correct1, correct2):
    """One AdamW step on flat arrays (Loshchilov & Hutter 2019), gradients scaled by `clip`, then zeroed.

    correct1, correct2: 1 - beta1^t and 1 - beta2^t (Kingma & Ba 2015, bias correction).
    """
    f = np.float32
    g *= f(clip)
    m *= f(beta1)
    m += f(1 - beta1) * g
    v *= f(beta2)
    v += f(1 - beta2) * g * g
    p *= f(1 - lr * decay)
    p -= f(lr / correct1) * m / (np.sqrt(v) * f(correct2**-0.5) + f(eps))
    g[...] = 0
