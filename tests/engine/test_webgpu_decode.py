"""Attention over long caches: keys cut into runs, whose parts are put together again."""

import numpy as np
import pytest

from anytune.engine.base import Heads
from anytune.engine.answers import error
from tests.support.webgpu import need_webgpu


@pytest.fixture(scope="module")
def engine():
    need_webgpu()
    from anytune.engine.devices import engine_for

    return engine_for("webgpu", max_binding=256 << 10)


def reference(q, keys, values, position, heads):
    """float64, one new token each: q [n, queries * size], keys, values [n, context, keys * size]."""
    out, size = np.zeros(q.shape), heads.head_dim
    for t, last in enumerate(position):
        begin = max(0, last + 1 - heads.window) if heads.window else 0
        for h in range(heads.n_heads):
            of, at = (slice(i * size, (i + 1) * size) for i in (h, h // heads.group))
            scores = keys[t, begin : last + 1, at].astype(np.float64) @ q[t, of] * heads.scale
            weights = np.exp(scores - scores.max())
            out[t, of] = weights @ values[t, begin : last + 1, at] / weights.sum()
    return out


@pytest.mark.parametrize(
    "size, context, window, runs",
    [(16, 1000, 0, 16), (16, 1000, 300, 5), (10, 1000, 700, 11), (64, 257, 0, 5), (64, 64, 0, 1), (16, 1000, 64, 1)],
)
def test_runs_of_keys_together_are_all_keys(engine, size, context, window, runs):
    """Positions in the first run, at its end, in the last; bindings that cut rows and slots."""
    from anytune.engine.webgpu import decode

    random, heads = np.random.default_rng(size), Heads(4, 2, size, window, 0.4)
    places = [p for p in (0, 63, 64, 255, 256, context - 1) if p < context]
    n = len(places)
    assert decode.runs(engine, heads, n, context)[0] == runs
    caches = [decode.cache(engine, n, context, 2 * size) for _ in range(2)]
    held = [random.standard_normal((n, context, 2 * size)).astype(np.float32) for _ in caches]
    order = engine.integers(np.arange(n))
    where = decode.Places(order, engine.integers(np.array(places)))
    for cache, values in zip(caches, held):
        new, before = values[np.arange(n), places], values.copy()
        before[np.arange(n), places] = 1e3
        engine.load(cache.array, before.reshape(-1))
        decode.store(engine, cache, where, engine.gather(engine.vector(new), order))
    q = (3 * random.standard_normal((n, 4 * size))).astype(np.float32)
    got = decode.attend_cache(engine, engine.gather(engine.vector(q), order), *caches, where, heads)
    assert error(engine.host(got), reference(q, *held, places, heads)) < 1e-5


def test_runs_are_few_and_cover_all_keys(engine):
    from anytune.engine.webgpu import decode

    for context in (1, 64, 256, 257, 5000, 131_072):
        for window in (0, 100, 512, 4096):
            for size in (8, 128, 256):
                heads = Heads(32, 8, size, window, 1.0)
                count, span = decode.runs(engine, heads, 1, context)
                assert 1 <= count <= decode.RUNS and count * span >= min(context, window or context)
                assert count == 1 or 4 * 32 * count * (size + 2) <= engine.device.max_binding
    assert decode.runs(engine, Heads(32, 8, 64, 0, 1.0), 100, 5000) == (1, 5000)  # many rows fill a device
