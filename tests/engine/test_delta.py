"""The gated delta net, the convolution before it and heads in halves, against float64 and its finite differences."""

import functools
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from anytune.engine import reference as ref
from anytune.engine.base import DeltaHeads
from anytune.engine.answers import error
from anytune.engine.numpy.delta import delta, delta_backward
from anytune.engine.numpy.dry import dry
from anytune.engine.numpy.engine import NumpyEngine
from anytune.engine.numpy.workers import Workers
from tests.support.require import need
from tests.support.triton import DEVICE
from tests.support.webgpu import need_webgpu

need("torch")
PLACES = ["cpu-torch", *(["cuda"] if DEVICE == "cuda" else [])]
WEBGPU = {"webgpu": None, "webgpu, small bindings": 8 << 10}

# with an eps that keeps results near 0 from being blown up by their norm: float32 is to be compared
SHAPES = [DeltaHeads(1, 1, 4, 4, 1e-2), DeltaHeads(2, 6, 5, 3, 1e-2), DeltaHeads(3, 3, 8, 16, 1e-2)]


@pytest.fixture(params=["numpy", "numpy, 3 threads", *PLACES, *WEBGPU])
def engine(request):
    if request.param.startswith("numpy"):
        made = NumpyEngine(3 if "3" in request.param else 1)
    else:
        from anytune.engine.devices import engine_for

        if request.param in WEBGPU:
            need_webgpu()
            yield on_webgpu(WEBGPU[request.param])
            return
        made = engine_for(request.param, dtype="f32")
    yield made
    made.close()


@functools.cache
def on_webgpu(max_binding: int | None):
    """One for all tests: its kernels are compiled once."""
    from anytune.engine.devices import engine_for

    return engine_for("webgpu", max_binding=max_binding)


def drawn(random, tokens, heads):
    """(x, beta, alpha), (a, bias, gain), dy in float32."""
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    weights = (-np.exp(draw(heads.values)), draw(heads.values), 1 + 0.3 * draw(heads.value_size))
    return (
        (draw(tokens, heads.width), draw(tokens, heads.values), draw(tokens, heads.values)),
        weights,
        draw(tokens, heads.inner),
    )


def starts_of(random, tokens):
    cuts = random.choice(np.arange(1, tokens), size=min(4, tokens - 1), replace=False) if tokens > 1 else []
    return np.array([0, *sorted(cuts), tokens], np.int32)


def slope(function, parts, at, direction, delta=1e-5):
    """d/dt of function(parts) in float64, part number `at` moving along direction."""

    def moved(t):
        wide = [z.astype(np.float64) for z in parts]
        wide[at] = wide[at] + t * direction
        return function(*wide)

    return (moved(delta) - moved(-delta)) / (2 * delta)


def agrees(gradient, function, parts, at, random, limit, delta=1e-5):
    gradient = np.asarray(gradient, np.float64)
    direction = random.standard_normal(gradient.shape)
    direction += gradient * (np.linalg.norm(direction) / (np.linalg.norm(gradient) + 1e-30))
    wanted = slope(function, parts, at, direction, delta)
    size = max(np.linalg.norm(gradient), 1e-2)  # of a gradient that should be nothing only roundings are left
    off = abs(np.sum(gradient * direction) - wanted) / (size * np.linalg.norm(direction) + 1e-30)
    assert off < limit, f"part {at}: {off:.1e}"


class Float64:
    """What the operations ask of the NumPy engine, in float64."""

    capacity = 0
    each = staticmethod(iter)

    def __init__(self, starts):
        self.workers, self.first = Workers(2), np.repeat(starts[:-1], np.diff(starts))

    def array(self, *shape):
        return np.full(shape, np.nan)

    def flat(self, size):
        return np.full(size, np.nan)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_are_exact(seed):
    """In float64, where a slip in a small term shows."""
    random, heads = np.random.default_rng(seed), replace(SHAPES[seed], eps=1e-4)
    tokens = 100 if seed else 1
    starts = starts_of(random, tokens)
    inputs, weights, dy = drawn(random, tokens, heads)
    wide, held = [z.astype(np.float64) for z in inputs], [z.astype(np.float64) for z in weights]
    e, into = Float64(starts), [np.zeros(w.shape) for w in weights]
    y, kept = delta(e, *wide, held, heads)
    assert error(y, ref.delta(*inputs, *weights, starts, heads)) < 1e-7
    grads = delta_backward(e, dy.astype(np.float64), *wide, held, heads, kept, into)
    for at, gradient in enumerate((*grads, *into)):
        agrees(
            gradient,
            lambda *parts: float(np.sum(ref.delta(*parts, starts, heads) * dy)),
            (*inputs, *weights),
            at,
            random,
            1e-6,
            1e-6,
        )


@pytest.mark.parametrize("seed", range(3))
def test_delta_on_random_shapes(engine, seed):
    random, heads = np.random.default_rng(seed), SHAPES[seed % len(SHAPES)]
    tokens = int(random.integers(60, 150)) if seed else 1
    starts = starts_of(random, tokens)
    inputs, weights, dy = drawn(random, tokens, heads)
    engine.begin(starts, tokens + int(random.integers(0, 9)), (0, 0, 0))
    y, kept = engine.delta(*map(engine.lower, inputs), [engine.vector(w) for w in weights], heads)
    assert error(engine.host(y), ref.delta(*inputs, *weights, starts, heads)) < 1e-4
    into = tuple(engine.zeros(w.size) for w in weights)
    grads = engine.delta_backward(
        engine.lower(dy), *map(engine.lower, inputs), [engine.vector(w) for w in weights], heads, kept, into
    )

    def function(*parts):
        return float(np.sum(ref.delta(*parts, starts, heads) * dy))

    for at, gradient in enumerate((*grads, *into)):
        agrees(engine.host(gradient), function, (*inputs, *weights), at, random, 3e-5)  # 6e-6 is the most on a CPU


@pytest.mark.parametrize("lengths", [(1,), (70, 1, 5), (3, 64, 64, 130)])
def test_delta_continues_from_its_state(engine, lengths):
    """Fed in pieces it gives what it gives as a whole; a sequence that begins anew forgets what was there."""
    random, heads = np.random.default_rng(1), SHAPES[1]
    inputs, weights, _ = drawn(random, sum(lengths), heads)
    weights = [engine.vector(w) for w in weights]
    engine.begin(np.array([0, sum(lengths)], np.int32), 0, (0, 0, 0))
    whole = engine.host(engine.delta(*map(engine.lower, inputs), weights, heads)[0])
    cache = engine.state(3, heads.values * heads.key_size * heads.value_size)
    for _ in range(2):
        at = 0
        for n in lengths:
            part = [engine.lower(z[at : at + n]) for z in inputs]
            got = engine.delta_cached(*part, weights, heads, cache, engine.places([(2, 0, n, at)]))
            assert error(engine.host(got), whole[at : at + n]) < 1e-4
            at += n


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("silu", [False, True])
def test_convolution_on_random_shapes(engine, seed, silu):
    random = np.random.default_rng(seed)
    tokens, width, kernel = int(random.integers(1, 80)), int(random.integers(1, 40)), int(random.integers(2, 6))
    starts = starts_of(random, tokens)
    x, dy = (random.standard_normal((tokens, width)).astype(np.float32) for _ in range(2))
    weight = random.standard_normal((width, kernel)).astype(np.float32)
    engine.begin(starts, tokens, (0, 0, 0))
    held, into = engine.vector(weight), engine.zeros(weight.size).reshape(weight.shape)
    y = engine.host(engine.convolve(engine.lower(x), held, silu))
    assert error(y, ref.convolve(x, weight, starts, silu)) < 2e-5
    dx = engine.convolve_backward(engine.lower(dy), engine.lower(x), held, silu, into)

    def function(*parts):
        return float(np.sum(ref.convolve(*parts, starts, silu) * dy))

    for at, gradient in enumerate((dx, into)):
        agrees(engine.host(gradient), function, (x, weight), at, random, 2e-5)
    whole = ref.convolve(x, weight, np.array([0, tokens]), silu)
    cache, at = engine.state(2, (kernel - 1) * width), 0
    while at < tokens:
        n = min(tokens - at, int(random.integers(1, 9)))
        got = engine.convolve_cached(engine.lower(x[at : at + n]), held, silu, cache, engine.places([(1, 0, n, at)]))
        assert error(engine.host(got), whole[at : at + n]) < 2e-5
        at += n


def test_heads_in_halves(engine):
    x = np.arange(2 * 12, dtype=np.float32).reshape(2, 12)
    engine.begin(np.array([0, 2], np.int32), 2, (0, 0, 0))
    first, second = engine.split_heads(engine.lower(x), 3)
    np.testing.assert_array_equal(engine.host(first)[0], [0, 1, 4, 5, 8, 9])
    np.testing.assert_array_equal(engine.host(second)[0], [2, 3, 6, 7, 10, 11])
    np.testing.assert_array_equal(engine.host(engine.join_heads(first, second, 3)), x)


@pytest.mark.parametrize("activation", ["sigmoid", "silu"])
def test_gates(engine, activation):
    random = np.random.default_rng(0)
    x, gate, dy = (3 * random.standard_normal((9, 10)).astype(np.float32) for _ in range(3))
    engine.begin(np.array([0, 9], np.int32), 9, (0, 0, 0))

    def gated(x, gate):
        return x / (1 + np.exp(-gate)) * (gate if activation == "silu" else 1)

    assert error(engine.host(engine.gated(engine.lower(x), engine.lower(gate), activation)), gated(x, gate)) < 1e-6
    grads = engine.gated_backward(engine.lower(dy), engine.lower(x), engine.lower(gate), activation)
    for at, gradient in enumerate(grads):
        agrees(engine.host(gradient), lambda *parts: float(np.sum(gated(*parts) * dy)), (x, gate), at, random, 1e-5)


def test_examples_do_not_reach_each_other(engine):
    """Changing one example changes nothing in another's result or gradients, to the bit."""
    random, heads = np.random.default_rng(3), SHAPES[1]
    inputs, weights, dy = drawn(random, 90, heads)
    weight = random.standard_normal((heads.width, 4)).astype(np.float32)
    engine.begin(np.array([0, 40, 90], np.int32), 90, (0, 0, 0))
    held, found = [engine.vector(w) for w in weights], []
    for change in (1, 3):
        for z in (*inputs, dy):
            z[40:] *= change
        x = engine.convolve(engine.lower(inputs[0]), engine.vector(weight), True)
        rest = [engine.lower(z) for z in inputs[1:]]
        y, kept = engine.delta(x, *rest, held, heads)
        grads = engine.delta_backward(engine.lower(dy), x, *rest, held, heads, kept)
        dx = engine.convolve_backward(grads[0], engine.lower(inputs[0]), engine.vector(weight), True)
        found.append([np.array(engine.host(z)[:40]) for z in (x, y, *grads, dx)])
    for before, after in zip(*found):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("heads", [DeltaHeads(4, 8, 64, 64, 1e-6), DeltaHeads(2, 4, 16, 16, 1e-6)])
def test_memory_is_what_the_dry_run_says(heads):
    random, engine, starts = np.random.default_rng(0), NumpyEngine(1), np.array([0, 100, 256], np.int32)
    inputs, weights, dy = drawn(random, 256, heads)
    engine.begin(starts, 256, (0, 0, 0))
    inputs, weights, dy = [engine.lower(z) for z in inputs], [engine.vector(w) for w in weights], engine.lower(dy)
    kept = engine.delta(*inputs, weights, heads)[1]
    engine.delta_backward(dy, *inputs, weights, heads, kept)  # its arrays are in the pool from now on
    tracemalloc.start()
    engine.delta_backward(dy, *inputs, weights, heads, kept)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    counted = dry(engine, engine.sizes, 256)
    counted.begin(starts, 256, (0, 0, 0))
    inputs, weights, dy = ([counted.memory.known(z.shape) for z in some] for some in (inputs, weights, [dy]))
    kept = counted.delta(*inputs, weights, heads)[1]
    ledger = counted.ledger.mark()
    counted.delta_backward(dy[0], *inputs, weights, heads, kept)
    assert ledger.high["jobs"] == pytest.approx(peak, rel=0.1 if heads.key_size == 64 else 0.4)  # little beside Python
