"""Formats and the twin: against the gguf package, float64, Numba's form against NumPy's, and the schedule played."""

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.fpga import formats, products, schedule
from anytune.fpga.twin import F, Twin, flushed, mx
from tests.fpga.samples import awkward_blocks, awkward_gradients, awkward_rounded

PLAIN, COMPILED = Twin(compiled=False), Twin(compiled=True, threads=2)


@pytest.mark.parametrize("name", formats.FORMATS)
def test_planes_add_up_to_the_weights_of_the_file(name):
    rng = np.random.default_rng(0)
    data = awkward_blocks(rng, 40, 256, name)
    mine = formats.matrix(data, name)
    want = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[name])
    assert mine.rows == 40 and mine.shape == (64, 256)
    assert (
        np.array_equal(mine.float64().astype(F), want.astype(F))
        if name in ("Q4_0", "Q8_0")
        else np.allclose(mine.float64(), want, rtol=1e-6, atol=1e-6 * np.abs(want).max())
    )
    assert mine.codes.min() >= -8 and mine.codes.max() <= 15


def test_activations_are_rounded_to_the_files_own_bytes():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((33, 96)) * np.exp(rng.standard_normal((33, 96)) * 3)).astype(F)
    assert np.array_equal(formats.q8_0(x).bytes(), gguf.quants.quantize(x, gguf.GGMLQuantizationType.Q8_0))
    again = formats.matrix(formats.q8_0(x).bytes(), "Q8_0")
    assert np.array_equal(again.codes[:, :33], formats.q8_0(x).matrix().codes)


def test_what_the_engine_cannot_read_is_said():
    with pytest.raises(UserError, match="not Q6_K"):
        formats.matrix(np.zeros((32, 210), np.uint8), "Q6_K")
    nan = np.full((32, 18), 255, np.uint8)
    with pytest.raises(UserError, match="damaged"):
        formats.matrix(nan, "Q4_0")
    w = formats.stored(np.ones((32, 32)))
    with pytest.raises(ValueError, match="bfloat16"):
        PLAIN.columns([(np.full((2, 32), 1.001, F), w)])
    with pytest.raises(ValueError, match="fit"):
        PLAIN.rows([(formats.q8_0(np.ones((2, 64), F)), w)])


def play(direction, terms):
    """The schedule square by square, one tile of 32 at a time: the slowest form, in integers and float64."""
    shapes = [schedule.Shape.of(w) for _, w in terms]
    tokens = len(terms[0][0].q if direction == "rows" else terms[0][0])
    total = None
    for part in schedule.parts(direction, shapes):
        out = np.zeros((tokens, 32 * shapes[0].groups(direction)), F)
        for t in range(0, tokens, 32):
            for square in schedule.squares(direction, shapes, part):
                left, w = terms[square["term"]]
                n, k = (slice(32 * int(i), 32 * int(i) + 32) for i in (square["row"], square["column"]))
                p, b = square["plane"], square["column"]
                codes = w.codes[p][n, k].astype(np.int64) if p < len(w.codes) else np.ones((32, 32), np.int64)
                d = w.scales[p][n, b].astype(np.float64)
                if direction == "rows":
                    where = n
                    value = (left.q[t : t + 32, k].astype(np.int64) @ codes.T) * (
                        left.scale[t : t + 32, b, None].astype(np.float64) * d * w.factors[p]
                    )
                else:
                    where = k
                    zq, zs = mx(left[t : t + 32, n].T.astype(np.float64) * d[:, None])
                    value = (zq.T @ codes) * zs[:, None] * w.factors[p]
                before = np.zeros_like(out[t : t + 32, where]) if square["first"] else out[t : t + 32, where]
                out[t : t + 32, where] = flushed((before + flushed(value)).astype(np.float64))
        total = out if total is None else total + out
    return total


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.sampled_from(formats.FORMATS), st.integers(1, 3), st.integers(1, 70))
def test_both_forms_follow_the_schedule(seed, name, n, tokens):
    rng = np.random.default_rng(seed)
    w = formats.matrix(awkward_blocks(rng, 32 * n, 256, name), name)
    extra = formats.stored(rng.standard_normal((32 * n, 32)))
    down = formats.stored(rng.standard_normal((32, 256)))
    rows = [(awkward_rounded(rng, tokens, 256), w), (awkward_rounded(rng, tokens, 32), extra)]
    columns = [(awkward_gradients(rng, tokens, 32 * n), w), (awkward_gradients(rng, tokens, 32), down)]
    for direction, terms in (("rows", rows), ("columns", columns)):
        want = play(direction, terms)
        for twin in (PLAIN, COMPILED):
            got = getattr(twin, direction)(terms)
            assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


def test_long_sums_are_cut_into_parts(monkeypatch):
    monkeypatch.setattr(schedule, "TILE", 4)
    rng = np.random.default_rng(2)
    w, a = formats.stored(rng.standard_normal((160, 192))), formats.stored(rng.standard_normal((32, 192)))
    x = formats.q8_0(rng.standard_normal((5, 192)).astype(F))
    y, v = formats.bf16(rng.standard_normal((5, 160)).astype(F)), formats.bf16(rng.standard_normal((5, 32)).astype(F))
    assert len(schedule.parts("columns", [schedule.Shape.of(w), schedule.Shape.of(a)])) == 3
    for twin in (PLAIN, COMPILED):
        assert np.array_equal(twin.rows([(x, w)]), play("rows", [(x, w)]))
        assert np.array_equal(twin.columns([(y, w), (v, a)]), play("columns", [(y, w), (v, a)]))


def test_a_linear_with_a_pair_and_its_gradients_are_those_of_float64():
    rng = np.random.default_rng(3)
    n, k, rank, tokens = 80, 96, 5, 37
    raw = gguf.quants.quantize(rng.standard_normal((n, k)).astype(F), gguf.GGMLQuantizationType.Q4_0)
    w = formats.matrix(raw, "Q4_0")
    a, b = rng.standard_normal((rank, k)).astype(F) / 10, rng.standard_normal((n, rank)).astype(F)
    pair, x = products.Pair(a, b, 0.5), rng.standard_normal((tokens, k)).astype(F)
    (y,), saved = products.forward(COMPILED, x, [w], [pair])
    dy = rng.standard_normal((tokens, n)).astype(F) * F(1e-6)
    dx, [(da, db)] = products.backward(COMPILED, [dy], saved, [w], [pair])
    u, v, wide = 0.5 * x @ a.T, 0.5 * dy @ b, w.float64()
    for got, want in ((y, x @ wide.T + u @ b.T), (dx, dy @ wide + v @ a), (da, v.T @ x), (db, dy.T @ u)):
        assert got.shape == want.shape
        assert np.linalg.norm(got - want) < 0.025 * np.linalg.norm(want)
    assert products.backward(COMPILED, [dy], saved, [w], [pair], need_dx=False)[0] is None


def test_a_second_term_has_what_the_first_left():
    rng = np.random.default_rng(5)
    x = (rng.standard_normal((40, 96)) * np.exp(rng.standard_normal((40, 96)) * 2)).astype(F)
    x[3, :32], x[4] = 1e-30, 0
    one, two = (
        sum(r.q.reshape(40, -1, 32) * r.scale[..., None].astype(np.float64) for r in products.rounded(x, n)).reshape(
            x.shape
        )
        for n in (1, 2)
    )
    assert np.abs(two - x).max() < np.abs(one - x).max() / 100
    assert products.terms_of("blk.7.ffn_down.weight") == 2 and products.terms_of("blk.7.ffn_up.weight") == 1
    w = formats.stored(rng.standard_normal((32, 96)))
    errors = [np.abs(products.forward(COMPILED, x, [w], [None], n)[0][0] - x @ w.float64().T).max() for n in (1, 2)]
    assert errors[1] < errors[0] / 50


@pytest.mark.parametrize("terms", [1, 2])
def test_the_listed_products_are_those_that_are_made(terms):
    made = []

    class Spy:
        def rows(self, terms):
            made.append(("rows", [schedule.Shape.of(w) for _, w in terms], len(terms[0][0].q)))
            return COMPILED.rows(terms)

        def columns(self, terms):
            made.append(("columns", [schedule.Shape.of(w) for _, w in terms], len(terms[0][0])))
            return COMPILED.columns(terms)

    rng = np.random.default_rng(4)
    ws = [formats.stored(rng.standard_normal((n, 64))) for n in (96, 64)]
    pairs = [products.Pair(rng.standard_normal((8, 64)), rng.standard_normal((96, 8)), 1), None]
    outs, saved = products.forward(Spy(), rng.standard_normal((32, 64)).astype(F), ws, pairs, terms)
    products.backward(Spy(), outs, saved, ws, pairs)
    ahead, back = products.listed(
        [(schedule.Shape.of(w), 0 if p is None else p.rank) for w, p in zip(ws, pairs)], terms=terms
    )
    assert [(d, s, 32) for _, d, s, _ in ahead + back] == made
