"""The compiled kernels beside their plain twins, on strided views, heads and windows; and the exponential."""

import numpy as np
import pytest

from anytune.engine.numpy import compiled, fast, plain
from anytune.simd import exponential

RANDOM = np.random.default_rng(7)


def view(rows, columns):
    """A strided view as the engine makes them: spare columns behind each row."""
    return RANDOM.standard_normal((rows, columns + 5)).astype(np.float32)[:, :columns]


def vector(n):
    return RANDOM.standard_normal(n).astype(np.float32)


POSITIONS = RANDOM.integers(0, 50, 23).astype(np.int32)
TABLE = RANDOM.standard_normal((2, 50, 5)).astype(np.float32)
TARGETS = RANDOM.integers(0, 80, 23).astype(np.int32)
CASES = {
    "rms_norm": ([view(23, 36), vector(12), 1e-5, 3], [view(23, 36)]),
    "rms_norm_backward": ([view(23, 36), view(23, 36), vector(36), 1e-5, 1, view(23, 36)], [view(23, 36)]),
    "rms_norm_backward, alone": ([view(23, 36), view(23, 36), vector(36), 1e-5, 1, None], [view(23, 36)]),
    "rope, neox": ([view(23, 36), *TABLE, POSITIONS, 3, True, 1.0], [view(23, 36)]),
    "rope, neighbours": ([view(23, 36), *TABLE, POSITIONS, 3, False, -1.0], [view(23, 36)]),
    "glu, silu": ([view(23, 37), view(23, 37), plain.SILU], [view(23, 37)]),
    "glu, gelu": ([view(23, 37), view(23, 37), plain.GELU], [view(23, 37)]),
    "glu_backward, silu": ([view(23, 37), view(23, 37), view(23, 37), plain.SILU], [view(23, 37), view(23, 37)]),
    "glu_backward, gelu": ([view(23, 37), view(23, 37), view(23, 37), plain.GELU], [view(23, 37), view(23, 37)]),
    "add": ([view(23, 37), view(23, 37)], [view(23, 37)]),
    "add_scaled": ([view(23, 37), 0.3], [view(23, 37)]),
    "softmax_backward": ([view(24, 17)], [view(24, 17)], [vector(24), 0.4]),
    "row_dots": ([view(23, 36), view(23, 36), 4], [view(23, 4)]),
}


@pytest.mark.parametrize("name", CASES)
def test_compiled_equals_plain(name):
    before, outputs, *after = CASES[name]
    one, two = [o.copy() for o in outputs], [o.copy() for o in outputs]
    for kernels, out in ((plain, one), (fast, two)):
        getattr(kernels, name.split(",")[0])(*before, *out, *(after[0] if after else []))
    for a, b in zip(one, two):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("window", [0, 1, 4, 90])
@pytest.mark.parametrize("heads, query, key", [(1, 0, 0), (3, 5, 2)])
def test_softmax_and_its_repetition(window, heads, query, key):
    key = max(key, query + 1 - window) if window else key
    scores, results = 4 * view(8 * heads, 17 if not window else query + 8 - key), []
    for kernels in (plain, fast):
        p, sums = scores.copy(), np.empty(len(scores), np.float32)
        kernels.softmax(p, heads, query, key, window, 0.4, sums)
        again = scores.copy()
        kernels.softmax_again(again, heads, query, key, window, 0.4, sums)
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(again, p, rtol=1e-4, atol=1e-6)
        results.append((p, sums))
    np.testing.assert_allclose(*[r[0] for r in results], rtol=2e-5, atol=1e-6)
    np.testing.assert_allclose(*[r[1] for r in results], rtol=2e-5, atol=1e-5)


def test_loss_rows_fold_tiles():
    logits, results = 10 * view(23, 80), []
    for kernels in (plain, fast):
        top, total = np.full(23, -np.inf, np.float32), np.zeros(23, np.float32)
        picked = np.full(23, -np.inf, np.float32)
        for low, high in ((0, 33), (33, 34), (34, 80)):
            kernels.loss_rows(logits[:, low:high], TARGETS, low, top, total, picked)
        np.testing.assert_array_equal(picked, logits[np.arange(23), TARGETS])
        sums = top + np.log(total)
        np.testing.assert_allclose(sums, np.logaddexp.reduce(logits.astype(np.float64), axis=1), rtol=1e-5)
        gradient = logits.copy()
        kernels.loss_rows_backward(gradient[:, 33:], TARGETS, 33, sums, 0.5)
        results.append(gradient)
    np.testing.assert_allclose(*results, rtol=2e-4, atol=1e-6)


def test_exponential_is_within_two_ulp():
    from numba import njit

    exp = exponential.exp

    @njit
    def each(x, y):
        for i in range(x.size):
            y[i] = exp(x[i])

    x = np.concatenate([np.linspace(-87.3, 88.3, 200_001), RANDOM.uniform(-1, 1, 50_000)]).astype(np.float32)
    y = np.empty_like(x)
    each(x, y)
    want = np.exp(x.astype(np.float64))
    assert np.max(np.abs(y - want) / np.spacing(want.astype(np.float32))) <= 2.5
    edge = np.array([-np.inf, -1e30, -88, 89, 1e30, np.nan], np.float32)
    out = np.empty_like(edge)
    each(edge, out)
    assert (out[:3] == 0).all() and np.isfinite(out[3:5]).all() and (out[3:5] > 1e38).all() and np.isnan(out[5])


def test_norm_and_adamw_do_not_depend_on_the_split():
    p, g, m = vector(1000), vector(1000), vector(1000)
    v = np.abs(vector(1000))
    whole, pieces = [z.copy() for z in (p, g, m, v)], [z.copy() for z in (p, g, m, v)]
    rest = (1e-2, 0.9, 0.99, 1e-8, 0.1, 0.5, 0.1, 0.01)
    fast.adamw(*whole, *rest)
    for low, high in ((0, 13), (13, 700), (700, 1000)):
        fast.adamw(*(z[low:high] for z in pieces), *rest)
    for a, b in zip(whole, pieces):
        np.testing.assert_array_equal(a, b)


def test_positions_outside_the_table_are_refused():
    with pytest.raises(IndexError):
        compiled.rope(0, 4, 0, 0, 2, 2, np.array([5], np.int32).ctypes.data, 1, 1, 4, True, 1.0, 0, 4)
