"""The gated delta net and convolutions on WebGPU beyond what every engine is tested for: runs and segments of chunks,
wide heads, several sequences at once, and buffers full of NaN."""

import numpy as np
import pytest

from anytune.engine.answers import error
from anytune.engine.base import DeltaHeads
from anytune.engine.numpy.engine import NumpyEngine
from anytune.errors import UserError
from tests.engine.test_delta import drawn
from tests.support.webgpu import need_webgpu


@pytest.fixture(scope="module")
def engine():
    need_webgpu()
    from anytune.engine.devices import engine_for

    return engine_for("webgpu")


def lengths_of(tokens, *ends):
    return np.array([0, *ends, tokens], np.int32)


def run(e, inputs, weights, dy, starts, heads, capacity=0):
    """[y, dx, dbeta, dalpha, and what is added for the weights]."""
    e.begin(starts, capacity, (0, 0, 0))
    held, parts = [e.vector(w) for w in weights], [e.lower(z) for z in inputs]
    y, kept = e.delta(*parts, held, heads)
    into = tuple(e.zeros(w.size) for w in weights)
    grads = e.delta_backward(e.lower(dy), *parts, held, heads, kept, into)
    return [e.host(z) for z in (y, *grads, *into)]


# one example over many segments, many short ones, boundaries at those of chunks and segments
STREAMS = [
    (DeltaHeads(1, 2, 4, 4, 1e-2), lengths_of(1100)),
    (DeltaHeads(2, 4, 8, 6, 1e-2), lengths_of(1130, 1, 31, 32, 96, 511, 512, 513, 1024, 1100)),
    (DeltaHeads(1, 2, 128, 128, 1e-2), lengths_of(70, 40)),
    (DeltaHeads(1, 1, 33, 130, 1e-2), lengths_of(65, 33, 34)),
    (DeltaHeads(1, 1, 200, 20, 1e-2), lengths_of(40)),
]


@pytest.mark.parametrize("heads, starts", STREAMS, ids=lambda z: f"{z[-1]}" if isinstance(z, np.ndarray) else None)
def test_long_streams_are_the_numpy_engines(engine, heads, starts):
    random = np.random.default_rng(len(starts))
    inputs, weights, dy = drawn(random, int(starts[-1]), heads)
    want = run(NumpyEngine(1), inputs, weights, dy, starts, heads)
    for got, value in zip(run(engine, inputs, weights, dy, starts, heads), want):
        assert error(got, value) < 1e-4


def test_runs_change_no_bit(engine, monkeypatch):
    """States that go through memory from run to run are those of a walk in one piece, in both directions."""
    from anytune.engine.webgpu import delta

    random, (heads, starts) = np.random.default_rng(0), STREAMS[1]
    inputs, weights, dy = drawn(random, int(starts[-1]), heads)
    whole = run(engine, inputs, weights, dy, starts, heads)
    for chunks in (1, 3, 17):
        monkeypatch.setattr(delta, "STATES", chunks * heads.values * 64)
        assert delta.Runs.of(engine, heads, 64).most == chunks
        for got, want in zip(run(engine, inputs, weights, dy, starts, heads, 1200)[:4], whole):
            np.testing.assert_array_equal(got, want)


def test_nothing_is_read_that_was_not_written(engine):
    """With every free buffer full of NaN the results are the same bits."""
    random, (heads, starts) = np.random.default_rng(1), STREAMS[1]
    starts = np.array([0, 1, 40, 77], np.int32)
    inputs, weights, dy = drawn(random, 77, heads)
    weight = random.standard_normal((heads.width, 4)).astype(np.float32)

    def all_of():
        found = run(engine, inputs, weights, dy, starts, heads, 90)
        x, held = engine.lower(inputs[0]), engine.vector(weight)
        found += [engine.convolve(x, held, True), engine.convolve_backward(engine.lower(inputs[0]), x, held, True)]
        found += [engine.join_heads(*engine.split_heads(x, 4), 4)]
        return [z if isinstance(z, np.ndarray) else engine.host(z) for z in found]

    want = all_of()
    released = [buffer for free in engine.pool._free.values() for buffer in free]
    assert released
    for buffer in released:
        engine.device.write(buffer.raw, 0, np.full(buffer.size // 4, np.nan, np.float32))
    for got, value in zip(all_of(), want):
        np.testing.assert_array_equal(got, value)


def test_strong_decay_and_extreme_gates_stay_finite(engine):
    """Where decays vanish within a chunk the walk is cut there; what remains is the token's own."""
    heads, random = DeltaHeads(1, 2, 4, 4, 1e-2), np.random.default_rng(2)
    inputs, weights, dy = drawn(random, 90, heads)
    inputs[1][::3] = -200
    inputs[2][...] = np.where(random.random(inputs[2].shape) < 0.3, 90, -90)
    starts = np.array([0, 90], np.int32)
    want = run(NumpyEngine(1), inputs, weights, dy, starts, heads)
    got = run(engine, inputs, weights, dy, starts, heads)
    assert all(np.isfinite(z).all() for z in got)
    for one, two in zip(got[:4], want):  # gradients of the decays' weights are roundings times 90
        assert np.abs(one - two).max() <= 1e-4 * max(1.0, np.abs(two).max())


def test_spans_of_several_sequences(engine):
    """New tokens of three slots at once: long, single, and one that begins anew over an old state."""
    random, heads = np.random.default_rng(3), DeltaHeads(2, 4, 8, 6, 1e-2)
    inputs, weights, _ = drawn(random, 60, heads)
    weight = random.standard_normal((heads.width, 3)).astype(np.float32)
    rounds = [
        [(2, 0, 20, 0), (0, 20, 21, 0)],
        [(0, 0, 1, 1), (2, 1, 2, 20), (1, 2, 40, 0)],
        [(2, 0, 3, 0), (1, 3, 5, 38)],
    ]
    found = []
    for e in (NumpyEngine(1), engine):
        e.begin(np.array([0, 60], np.int32), 0, (0, 0, 0))
        cache, window = e.state(3, heads.inner * heads.key_size), e.state(3, 2 * heads.width)
        results, held = [], [e.vector(w) for w in weights]
        for spans in rounds:
            parts, where = [e.lower(z[: spans[-1][2]]) for z in inputs], e.places(spans)
            results.append(e.host(e.delta_cached(*parts, held, heads, cache, where)))
            results.append(e.host(e.convolve_cached(parts[0], e.vector(weight), False, window, where)))
        found.append(results)
    for want, got in zip(*found):
        assert error(got, want) < 1e-4


def test_states_that_a_device_cannot_bind_are_refused(monkeypatch, engine):
    from anytune.engine.webgpu.delta import Runs

    monkeypatch.setattr(engine.device, "max_binding", 64 << 10)
    assert Runs.of(engine, DeltaHeads(2, 4, 32, 32, 1e-6), 256).most >= 1
    for call in (
        lambda: Runs.of(engine, DeltaHeads(2, 4, 128, 128, 1e-6), 256),
        lambda: engine.state(1, 4 * 128 * 128),
    ):
        with pytest.raises(UserError, match="binds .*at once.*--device"):
            call()
