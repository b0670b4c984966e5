"""The operations in float64, straight from their formulas: what every engine is held against.

Slow, dense and short on purpose. Arrays are NumPy float64; a linear is (W, bias or None, (A, B, scale) or None).
"""

from __future__ import annotations

import numpy as np

D = np.float64


def rms_norm(x, gain, eps, heads=1):
    z = x.reshape(len(x), heads, -1).astype(D)
    return (z / np.sqrt((z**2).mean(-1, keepdims=True) + eps) * gain).reshape(x.shape)


def rope(x, cos, sin, positions, heads, neox, sign=1.0):
    z, n = x.reshape(len(x), heads, -1).astype(D).copy(), cos.shape[1]
    first = np.arange(n) if neox else 2 * np.arange(n)
    second = first + n if neox else first + 1
    c, s = cos[positions][:, None].astype(D), sign * sin[positions][:, None].astype(D)
    a, b = z[..., first].copy(), z[..., second].copy()
    z[..., first], z[..., second] = a * c - b * s, a * s + b * c
    return z.reshape(x.shape)


def activation(x, kind):
    x = x.astype(D)
    if kind == "silu":
        return x / (1 + np.exp(-x))
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def glu(gate, up, kind):
    return activation(gate, kind) * up


def linear(x, parts):
    out = []
    for weight, bias, pair in parts:
        y = x.astype(D) @ weight.T.astype(D)
        if bias is not None:
            y = y + bias
        if pair is not None:
            a, b, scale = pair
            y = y + scale * (x.astype(D) @ a.T.astype(D)) @ b.T.astype(D)
        out.append(y)
    return out


def visible(starts, tokens, window):
    """bool [T, T]: which key each query may see: its example's, not later, inside the window."""
    example = np.searchsorted(np.asarray(starts), np.arange(tokens), side="right")
    gap = np.arange(tokens)[:, None] - np.arange(tokens)[None, :]
    return (example[:, None] == example[None, :]) & (gap >= 0) & ((gap < window) if window else True)


def attention(q, k, v, starts, heads):
    tokens = len(q)
    q, k, v = (z.astype(D).reshape(tokens, -1, heads.head_dim) for z in (q, k, v))
    see, out = visible(starts, tokens, heads.window), np.empty_like(q)
    for h in range(heads.n_heads):
        scores = np.where(see, capped(q[:, h] @ k[:, h // heads.group].T * heads.scale, heads.cap), -np.inf)
        p = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = p / p.sum(1, keepdims=True) @ v[:, h // heads.group]
    return out.reshape(tokens, -1)


def capped(x, cap):
    return cap * np.tanh(x / cap) if cap else x


def cross_entropy(h, weight, targets, cap=0.0):
    """Sum of the losses, in nats."""
    logits = capped(h.astype(D) @ weight.T.astype(D), cap)
    top = logits.max(1, keepdims=True)
    return float((np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(h)), targets]).sum())


def adamw(p, g, m, v, lr, step, beta1, beta2, eps, decay, clip):
    """-> (p, m, v) after one step."""
    g = g.astype(D) * clip
    m = beta1 * m.astype(D) + (1 - beta1) * g
    v = beta2 * v.astype(D) + (1 - beta2) * g * g
    update = (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
    return p.astype(D) * (1 - lr * decay) - lr * update, m, v


def gradient(function, x, dy, delta=1e-6):
    """The gradient of sum(function(x) * dy) at x by central differences, in float64."""
    x = x.astype(D)
    out = np.empty_like(x)
    for place in np.ndindex(x.shape):
        keep = x[place]
        x[place] = keep + delta
        up = np.sum(function(x) * dy)
        x[place] = keep - delta
        down = np.sum(function(x) * dy)
        x[place] = keep
        out[place] = (up - down) / (2 * delta)
    return out


def convolve(x, weight, starts, silu):
    """x [T, n], weight [n, kernel], whose last column meets the token itself."""
    y, kernel = np.zeros(x.shape, D), weight.shape[1]
    for low, high in zip(starts, starts[1:]):
        for t in range(low, high):
            for back in range(min(kernel, t - low + 1)):
                y[t] += x[t - back].astype(D) * weight[:, kernel - 1 - back]
    return activation(y, "silu") if silu else y


def delta(x, beta, alpha, a, bias, gain, starts, heads):
    """The gated delta net, token by token (numpy/chunk.py has the formula)."""
    width, size, reads = heads.keys * heads.key_size, heads.value_size, np.arange(heads.values) % heads.keys
    strength = 1 / (1 + np.exp(-beta.astype(D)))
    decay = np.exp(a * np.log1p(np.exp(alpha.astype(D) + bias)))
    out = np.zeros((len(x), heads.values, size), D)

    def unit(z):
        z = z.reshape(len(x), heads.keys, -1).astype(D)
        return (z / np.maximum(np.sqrt((z**2).sum(-1, keepdims=True)), heads.eps))[:, reads]

    q, k, v = unit(x[:, :width]), unit(x[:, width : 2 * width]), x[:, 2 * width :].reshape(len(x), -1, size)
    for low, high in zip(starts, starts[1:]):
        state = np.zeros((heads.values, heads.key_size, size), D)
        for t in range(low, high):
            state *= decay[t, :, None, None]
            write = strength[t, :, None] * (v[t] - (k[t, :, None] @ state)[:, 0])
            state += k[t, :, :, None] * write[:, None]
            out[t] = (q[t, :, None] @ state)[:, 0] / np.sqrt(heads.key_size)
    return rms_norm(out.reshape(-1, size), gain, heads.eps).reshape(len(x), -1)
