"""The kernels of plain.py compiled by Numba, one row range a call; same names, same meaning.

Each compiled function takes addresses and row strides, because Numba cannot know that a strided view's inner
stride is one element, and without that nothing vectorises. The wrappers below turn views into addresses.
"""

from __future__ import annotations

import numpy as np

from anytune.engine import optimizers

from . import compiled as c
from .layout import address as _at
from .plain import GELU, SILU, causal_bounds, scale_by  # noqa: F401 (one vocabulary for both)


def _row(x: np.ndarray) -> int:
    """Row stride in elements."""
    return x.strides[0] // 4


def rms_norm(x, gain, eps, groups, y):
    rows, width = x.shape
    c.rms_norm(_at(x), _row(x), _at(gain), eps, rows, groups, width // groups, _at(y), _row(y))


def rms_norm_backward(dy, x, gain, eps, groups, residual, dx):
    rows, width = x.shape
    has = residual is not None
    c.rms_norm_backward(
        _at(dy),
        _row(dy),
        _at(x),
        _row(x),
        _at(gain),
        eps,
        rows,
        groups,
        width // groups,
        has,
        _at(residual) if has else 0,
        _row(residual) if has else 0,
        _at(dx),
        _row(dx),
    )


def gain_gradient(dy, x, eps, groups, into):
    rows, width = x.shape
    c.gain_gradient(_at(dy), _row(dy), _at(x), _row(x), eps, rows, groups, width // groups, _at(into))


def rope(x, cos, sin, positions, groups, neox, sign, y):
    rows, width = x.shape
    c.rope(
        _at(x),
        _row(x),
        _at(cos),
        _at(sin),
        cos.shape[0],
        cos.shape[1],
        _at(positions),
        rows,
        groups,
        width // groups,
        bool(neox),
        float(sign),
        _at(y),
        _row(y),
    )


def glu(gate, up, kind, y):
    rows, width = gate.shape
    c.glu(_at(gate), _row(gate), _at(up), _row(up), rows, width, kind == GELU, _at(y), _row(y))


def glu_backward(dy, gate, up, kind, dgate, dup):
    rows, width = gate.shape
    c.glu_backward(
        _at(dy),
        _row(dy),
        _at(gate),
        _row(gate),
        _at(up),
        _row(up),
        rows,
        width,
        kind == GELU,
        _at(dgate),
        _row(dgate),
        _at(dup),
        _row(dup),
    )


def add(x, y, z):
    c.add(_at(x), _row(x), _at(y), _row(y), x.shape[0], x.shape[1], _at(z), _row(z))


def add_scaled(x, scale, z):
    c.add_scaled(_at(x), _row(x), x.shape[0], x.shape[1], float(scale), _at(z), _row(z))


def cap(scores, scale, most, slope, wanted):
    rows, columns = scores.shape
    c.cap(_at(scores), _row(scores), rows, columns, float(scale), float(most), _at(slope), _row(slope), int(wanted))


def softmax(scores, heads, first_query, first_key, window, scale, log_sum):
    rows, keys = scores.shape
    c.softmax(_at(scores), _row(scores), rows, keys, heads, first_query, first_key, window, scale, _at(log_sum))


def softmax_again(scores, heads, first_query, first_key, window, scale, log_sum):
    rows, keys = scores.shape
    c.softmax_again(_at(scores), _row(scores), rows, keys, heads, first_query, first_key, window, scale, _at(log_sum))


def softmax_backward(probabilities, dprobabilities, inner, scale):
    rows, keys = probabilities.shape
    c.softmax_backward(
        _at(probabilities),
        _row(probabilities),
        _at(dprobabilities),
        _row(dprobabilities),
        rows,
        keys,
        _at(inner),
        scale,
    )


def row_dots(x, y, heads, out):
    rows, width = x.shape
    c.row_dots(_at(x), _row(x), _at(y), _row(y), rows, heads, width // heads, _at(out), _row(out))


def loss_rows(logits, targets, first, top, total, picked):
    rows, columns = logits.shape
    c.loss_rows(_at(logits), _row(logits), rows, columns, _at(targets), first, _at(top), _at(total), _at(picked))


def loss_rows_backward(logits, targets, first, log_sum, scale):
    rows, columns = logits.shape
    c.loss_rows_backward(_at(logits), _row(logits), rows, columns, _at(targets), first, _at(log_sum), scale)


def encode_moments(x, signed, codes, scale):
    c.encode_moments(
        _at(x), x.size, optimizers.first_guess(signed), optimizers.middles(signed), optimizers.BLOCK, codes, scale
    )


def sum_squares(x):
    return c.sum_squares(_at(x), x.size)


def adamw(p, g, m, v, lr, beta1, beta2, eps, decay, clip, correct1, correct2):
    c.adamw(
        _at(p),
        _at(g),
        _at(m),
        _at(v),
        p.size,
        float(lr),
        beta1,
        beta2,
        eps,
        float(decay),
        float(clip),
        correct1,
        correct2,
    )
