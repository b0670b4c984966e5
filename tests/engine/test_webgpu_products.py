"""Products and attention on shapes drawn at random, with every tile, cut sums and bindings that cut everything."""

import numpy as np
import pytest

from anytune.engine import reference as ref
from anytune.engine.base import Heads
from anytune.engine.answers import error
from anytune.gguf import GGUF, write_gguf
from tests.engine.test_conformance import slope_errors, starts_of
from tests.support.webgpu import checked_bindings, need_webgpu

LIMIT = 1e-5


@pytest.fixture(scope="module", params=["128MiB", "8KiB"])
def engine(request):
    need_webgpu()
    from anytune.engine.webgpu.adapters import open_device
    from anytune.engine.webgpu.engine import WebGpuEngine
    from anytune.memory import parse_bytes

    with checked_bindings():
        yield WebGpuEngine(open_device(max_binding=parse_bytes(request.param)))


def up(engine, values):
    return engine.gather(engine.vector(values), engine.integers(np.arange(len(values))))


def tiles():
    from anytune.engine.webgpu.autotune import TILES

    return TILES


@pytest.mark.parametrize("number", range(9))
def test_every_tile_and_cut_sums(engine, tmp_path, number):
    """Every tile once with its sum in slices, once without."""
    slices = 1000 * ((number + (engine.device.max_binding > 8192)) % 2)
    random = np.random.default_rng(number)
    rows, width, tokens = int(random.integers(130, 200)), 160, int(random.integers(1, 90))
    values = random.standard_normal((rows, width)).astype(np.float32)
    write_gguf(tmp_path / "w.gguf", {}, [("w", (rows, width), "Q8_0", values)])
    a, b = (random.standard_normal(s).astype(np.float32) for s in ((5, width), (rows, 5)))
    x, dy = (random.standard_normal((tokens, n)).astype(np.float32) for n in (width, rows))
    bias = random.standard_normal(rows).astype(np.float32)
    assert len(tiles()) == 9
    engine.tuning.choices = {(way, many): (tiles()[number], slices) for way in (True, False) for many in (True, False)}
    try:
        with GGUF.open(tmp_path / "w.gguf") as gguf:
            dense = gguf.float32("w")
            slot = engine.lora_pair(
                engine.vector(a),
                engine.vector(b),
                0.7,
                engine.zeros(a.size).reshape(a.shape),
                engine.zeros(b.size).reshape(b.shape),
            )
            group = engine.group([engine.weight(gguf, "w")], [engine.vector(bias)], [slot])
            xs = up(engine, x)
            got = engine.host(engine.linear(xs, group)[0])
            assert error(got, ref.linear(x, [(dense, bias, (a, b, 0.7))])[0]) < LIMIT
            dx = engine.host(engine.linear_backward((up(engine, dy),), xs, group))
            assert error(dx, dy.astype(np.float64) @ (dense + 0.7 * b.astype(np.float64) @ a)) < LIMIT
            assert error(engine.host(slot.grad_a), 0.7 * (dy.astype(np.float64) @ b).T @ x) < LIMIT
            assert error(engine.host(slot.grad_b), 0.7 * dy.T.astype(np.float64) @ (x @ a.T.astype(np.float64))) < LIMIT
    finally:
        engine.tuning.choices = {}


@pytest.mark.parametrize(
    "ranks, rows",
    [((2, 0, 5), (40, 70, 9)), ((4, 4, 4), (128, 64, 90)), ((0, 0, 0), (64, 64, 33)), ((3, 3, 3), (64, 65, 64))],
)
def test_linears_that_share_an_input(engine, tmp_path, ranks, rows):
    random, width, tokens = np.random.default_rng(sum(rows)), 96, 21
    matrices = [random.standard_normal((n, width)).astype(np.float32) for n in rows]
    write_gguf(tmp_path / "w.gguf", {}, [(f"w{i}", m.shape, "Q4_0", m) for i, m in enumerate(matrices)])
    sizes = [r * width for r in ranks] + [r * n for r, n in zip(ranks, rows)]
    flat = random.standard_normal(sum(sizes) + 1).astype(np.float32)
    values, gradients = engine.vector(flat), engine.zeros(flat.size)
    ends = np.cumsum([0] + sizes).tolist()
    with GGUF.open(tmp_path / "w.gguf") as gguf:
        dense = [gguf.float32(f"w{i}") for i in range(3)]
        slots, pairs = [], []
        for i, (r, n) in enumerate(zip(ranks, rows)):
            if not r:
                slots.append(None)
                pairs.append(None)
                continue
            views = [(ends[i], ends[i + 1], (r, width)), (ends[3 + i], ends[4 + i], (n, r))]
            slots.append(
                engine.lora_pair(
                    *(values[a:b].reshape(s) for a, b, s in views),
                    0.6,
                    *(gradients[a:b].reshape(s) for a, b, s in views),
                )
            )
            pairs.append((*(flat[a:b].reshape(s) for a, b, s in views), 0.6))
        group = engine.group([engine.weight(gguf, f"w{i}") for i in range(3)], None, slots)
        x = random.standard_normal((tokens, width)).astype(np.float32)
        dys = [random.standard_normal((tokens, n)).astype(np.float32) for n in rows]
        xs = up(engine, x)
        for got, want in zip(engine.linear(xs, group), ref.linear(x, [(w, None, p) for w, p in zip(dense, pairs)])):
            assert error(engine.host(got), want) < LIMIT
        few = up(engine, x[:5])
        for got, want in zip(
            engine.linear_decode(few, group), ref.linear(x[:5], [(w, None, p) for w, p in zip(dense, pairs)])
        ):
            assert error(engine.host(got), want) < LIMIT
        for _ in range(2):  # gradients are added, not written
            dx = engine.host(engine.linear_backward(tuple(up(engine, dy) for dy in dys), xs, group))
        whole = [
            w.astype(np.float64) + (0 if p is None else p[2] * p[1].astype(np.float64) @ p[0])
            for w, p in zip(dense, pairs)
        ]
        assert error(dx, sum(dy @ w for dy, w in zip(dys, whole))) < LIMIT
        for slot, pair, dy in zip(slots, pairs, dys):
            if slot is not None:
                assert error(engine.host(slot.grad_a), 2 * 0.6 * (dy.astype(np.float64) @ pair[1]).T @ x) < LIMIT
                assert (
                    error(
                        engine.host(slot.grad_b), 2 * 0.6 * dy.T.astype(np.float64) @ (x @ pair[0].T.astype(np.float64))
                    )
                    < LIMIT
                )
        assert engine.host(gradients)[-1] == 0


@pytest.mark.parametrize("seed", range(6))
def test_attention_on_random_shapes(engine, seed):
    random = np.random.default_rng(seed)
    keys, group = int(random.integers(1, 3)), int(random.integers(1, 4))
    size = (2, 6, 33, 64, 129, 256)[seed]
    tokens = int(random.integers(1, 150 if size < 100 else 80))
    heads = Heads(keys * group, keys, size, int(random.choice([0, 1, 5, 40])), float(size**-0.5))
    starts = starts_of(random, tokens)
    q, k, v, dout = (
        random.standard_normal((tokens, n * size)).astype(np.float32)
        for n in (heads.n_heads, keys, keys, heads.n_heads)
    )
    engine.begin(starts, tokens, (0, 0, 0))
    held = [up(engine, z) for z in (q, k, v, dout)]
    out, lse = engine.attention(*held[:3], heads)
    assert error(engine.host(out), ref.attention(q, k, v, starts, heads)) < LIMIT
    grads = [engine.host(g) for g in engine.attention_backward(held[3], *held[:3], out, lse, heads)]
    assert all(off < LIMIT for off in slope_errors(random, grads, (q, k, v), dout, starts, heads))


def test_examples_do_not_see_each_other(engine):
    """Changing one example's values changes nothing in another's output or gradients, to the bit."""
    random, heads = np.random.default_rng(0), Heads(2, 1, 8, 0, 0.3)
    starts, tokens, results = np.array([0, 9, 20], np.int32), 20, []
    q, k, v, dout = (random.standard_normal((tokens, n * 8)).astype(np.float32) for n in (2, 1, 1, 2))
    for change in (0, 5):
        k[9:], v[9:], q[9:] = k[9:] + change, v[9:] * (1 + change), q[9:] - change
        engine.begin(starts, tokens, (0, 0, 0))
        held = [up(engine, z) for z in (q, k, v, dout)]
        out, lse = engine.attention(*held[:3], heads)
        results.append(
            [engine.host(z)[:9] for z in (out, *engine.attention_backward(held[3], *held[:3], out, lse, heads))]
        )
    for before, after in zip(*results):
        np.testing.assert_array_equal(before, after)


def test_extremes_stay_finite_and_nan_shows(engine):
    gate = np.array([[-1e4, -90.0, 0.0, 90.0, 1e4]], np.float32)
    one = up(engine, np.ones_like(gate))
    for kind in ("silu", "gelu"):
        np.testing.assert_allclose(
            engine.host(engine.glu(up(engine, gate), one, kind)), [[0, 0, 0, 90, 1e4]], atol=1e-6
        )
        assert all(np.isfinite(engine.host(z)).all() for z in engine.glu_backward(one, up(engine, gate), one, kind))
    gate[0, 2] = np.nan
    assert np.isnan(engine.host(engine.glu(up(engine, gate), one, "silu"))[0, 2])


def test_more_than_one_piece_of_staging_memory(engine):
    from anytune.engine.webgpu.device import PIECE

    values = np.arange(PIECE // 4 + 1000, dtype=np.float32)
    np.testing.assert_array_equal(engine.host(engine.vector(values)), values)


def test_more_rows_than_workgroups():
    need_webgpu()
    from anytune.engine.webgpu.device import WORKGROUPS
    from anytune.engine.webgpu.engine import open_engine

    engine = open_engine("webgpu")
    rows = WORKGROUPS + 10
    values = (1.0 + np.arange(2 * rows, dtype=np.float32) % 97).reshape(rows, 2)
    engine.begin(np.array([0, rows], np.int32), 0)
    x = engine.lower(values)
    norm = engine.host(engine.rms_norm(x, engine.vector(np.ones(2)), 0.0))
    np.testing.assert_allclose(norm, values / np.sqrt(np.mean(values**2, 1, keepdims=True)), rtol=1e-5)
    np.testing.assert_array_equal(engine.host(engine.scale(x, 2.0)), 2 * values)
    np.testing.assert_array_equal(engine.host(engine.convolve(x, engine.vector(np.ones((2, 1))), False)), values)
