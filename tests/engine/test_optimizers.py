"""Optimizers of whole weights: 8-bit codes, what they cost in accuracy, every engine's against the reference."""

import numpy as np
import pytest

from anytune.engine import optimizers as rules
from anytune.engine.optimizers import BLOCK, Rule
from tests.support import full


@pytest.mark.parametrize("signed", [True, False])
def test_codes_are_256_values_over_seven_decades(signed):
    table = rules.codes(signed)
    assert len(np.unique(table)) == 256 and np.all(np.diff(table) > 0) and table[-1] == 1 and 0 in table
    assert np.sort(np.abs(table))[1] < 1e-6
    if signed:
        assert table.min() > -1


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("size", [1, BLOCK, 3 * BLOCK + 17])
def test_encoding_takes_the_nearest_code(signed, size):
    rng = np.random.default_rng(size)
    x = (rng.standard_normal(size) * 10.0 ** rng.uniform(-8, 2, size)).astype(np.float32)
    x = x if signed else np.abs(x)
    packed, scale = rules.encode(x, signed)
    got, table = rules.decode(packed, scale, signed), rules.codes(signed)
    for low in range(0, size, BLOCK):
        unit = x[low : low + BLOCK] / scale[low // BLOCK]
        best = np.abs(unit[:, None] - table).min(1)
        np.testing.assert_allclose(np.abs(got[low : low + BLOCK] / scale[low // BLOCK] - unit), best, atol=1e-6)


def test_zeros_stay_zeros():
    packed, scale = rules.encode(np.zeros(300, np.float32), True)
    assert not rules.decode(packed, scale, True).any()
    state = rules.start("adamw8bit", (64, 128))
    assert not any(m.any() for m in rules.moments(state))


@pytest.mark.parametrize("kind", rules.KINDS)
@pytest.mark.parametrize("shape", [(70, 300), (33,), (5000,), (4, 1)])
def test_the_engine_does_what_the_reference_does(engine, kind, shape):
    rng, size = np.random.default_rng(len(shape)), int(np.prod(shape))
    p = rng.standard_normal(size).astype(np.float32)
    own, state, mine = p.copy(), rules.start(kind, shape), engine.optimizer_state(kind, shape)
    for step in range(1, 5):
        g = (rng.standard_normal(size) * 10.0 ** rng.uniform(-5, 0, size)).astype(np.float32)
        given, rule = g.copy(), Rule(0.5, 1e-2, step, 0.9, 0.99, 1e-8, 0.1)
        rules.reference(kind, p, g, state, shape, rule)
        engine.optimize(kind, own, given, mine, shape, rule)
        assert not given.any()
    moved = np.abs(own - p)
    assert np.quantile(moved, 0.99) < 1e-5  # a code on an edge may fall to either side
    assert moved.max() < (1e-5 if kind != "adamw8bit" else 1e-2)


def test_norm(engine):
    full.check_norm(engine)


def test_eight_bits_follow_the_path_of_thirty_two():
    """On a quadratic with curvatures over four decades both come as near."""
    rng, ends = np.random.default_rng(0), {}
    curvature = 10.0 ** rng.uniform(-4, 0, 8192).astype(np.float32)
    for kind in ("adamw", "adamw8bit"):
        p, state = np.ones(8192, np.float32), rules.start(kind, (8192,))
        for step in range(1, 301):
            g = curvature * p + 1e-4 * np.random.default_rng(step).standard_normal(8192).astype(np.float32)
            rules.reference(kind, p, g, state, (8192,), Rule(1, 1e-2 * (1 - step / 301), step, 0.9, 0.99, 1e-8, 0.0))
        ends[kind] = float(np.sum(curvature * p * p))
    assert ends["adamw8bit"] < 1.2 * ends["adamw"] + 1e-4 * curvature.sum()


def test_states_are_as_small_as_promised():
    shape = (4096, 4096)
    per_weight = {
        kind: sum(np.prod(s) * np.dtype(of).itemsize for s, of in rules.state_shapes(kind, shape).values())
        / np.prod(shape)
        for kind in rules.KINDS
    }
    assert per_weight["adamw"] == 8 and per_weight["adamw8bit"] < 2.1 and per_weight["adafactor"] < 0.01
