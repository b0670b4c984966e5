"""Every operation of every engine against float64, on shapes drawn at random: grouped heads, windows, several
examples in one stream, sizes that are a multiple of nothing."""

import numpy as np
import pytest

from anytune.engine import reference as ref
from anytune.engine.base import Heads
from anytune.engine.answers import error
from anytune.engine.check import known_answers
from anytune.gguf import GGUF, write_gguf

LIMIT = 2e-5  # float32 sums of a few hundred terms


def close(got, want, limit=LIMIT):
    found = error(got, want)
    assert found <= limit, f"relative error {found:.2e}"


def starts_of(random, tokens):
    cuts = random.choice(np.arange(1, tokens), size=min(3, tokens - 1), replace=False) if tokens > 1 else []
    return np.array([0, *sorted(cuts), tokens], np.int32)


def slope_errors(random, gradients, inputs, dout, starts, heads):
    """How far attention's gradients by each of its inputs are from the reference's slopes in a random direction."""
    for index, gradient in enumerate(gradients):
        direction = random.standard_normal(inputs[index].shape)

        def moved(t, index=index, direction=direction):
            parts = [z.astype(np.float64) for z in inputs]
            parts[index] = parts[index] + t * direction
            return float(np.sum(ref.attention(*parts, starts, heads) * dout))

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        # a gradient may be nothing but rounding (a window of one key has none in q): measure against dout too
        scale = (np.linalg.norm(gradient) + 0.1 * np.linalg.norm(dout)) * np.linalg.norm(direction)
        yield abs(float(np.sum(gradient * direction)) - slope) / scale


def test_known_answers(engine):
    wrong = [
        a for a in known_answers(engine, ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")) if not a.ok
    ]
    assert not wrong


@pytest.mark.parametrize("seed", range(8))
def test_attention_on_random_shapes(engine, seed):
    random = np.random.default_rng(seed)
    keys, group = int(random.integers(1, 4)), int(random.integers(1, 5))
    tokens, size = int(random.integers(1, 70)), int(random.choice([2, 6, 16, 33]))
    window = int(random.choice([0, 1, 5, 100]))
    heads = Heads(keys * group, keys, size, window, float(random.uniform(0.1, 1)))
    starts = starts_of(random, tokens)
    q, k, v, dout = (
        random.standard_normal((tokens, n * size)).astype(np.float32)
        for n in (heads.n_heads, keys, keys, heads.n_heads)
    )
    engine.begin(starts, tokens + int(random.integers(0, 9)), (0, 0, 0))
    out, lse = engine.attention(q, k, v, heads)
    close(out, ref.attention(q, k, v, starts, heads))
    grads = engine.attention_backward(dout, q, k, v, out, lse, heads)
    assert all(off < LIMIT for off in slope_errors(random, grads, (q, k, v), dout, starts, heads))


def test_examples_do_not_see_each_other(engine):
    """Changing one example's values changes nothing in another's output or gradients, to the bit."""
    random, heads = np.random.default_rng(0), Heads(2, 1, 8, 0, 0.3)
    starts, tokens = np.array([0, 9, 20], np.int32), 20
    q, k, v, dout = (random.standard_normal((tokens, n * 8)).astype(np.float32) for n in (2, 1, 1, 2))
    results = []
    for change in (0, 5):
        k[9:], v[9:], q[9:] = k[9:] + change, v[9:] * (1 + change), q[9:] - change
        engine.begin(starts, tokens, (0, 0, 0))
        out, lse = engine.attention(q, k, v, heads)
        results.append([np.array(z[:9]) for z in (out, *engine.attention_backward(dout, q, k, v, out, lse, heads))])
    for before, after in zip(*results):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("block, width", [("F32", 36), ("F16", 40), ("Q8_0", 96), ("Q4_1", 64), ("Q5_0", 160)])
@pytest.mark.parametrize("hold", ["blocks", "stream", "float32"])
def test_linear_on_random_shapes(engine, tmp_path, block, width, hold):
    random = np.random.default_rng(width)
    rows = [int(random.integers(1, 90)) for _ in range(3)]
    path = tmp_path / "w.gguf"
    write_gguf(
        path,
        {"general.architecture": "test"},
        [
            (f"w{i}", (n, width), block, random.standard_normal((n, width)).astype(np.float32))
            for i, n in enumerate(rows)
        ],
    )
    tokens, ranks = int(random.integers(1, 50)), (2, 0, 5)
    with GGUF.open(path) as gguf:
        dense = [gguf.float32(f"w{i}") for i in range(3)]
        pairs = [
            (
                random.standard_normal((r, width)).astype(np.float32),
                random.standard_normal((n, r)).astype(np.float32),
                0.7,
            )
            if r
            else None
            for r, n in zip(ranks, rows)
        ]
        grads = [tuple(np.zeros_like(z) for z in p[:2]) if p else (None, None) for p in pairs]
        for padding in (0, 7):
            engine.row_padding = padding
            engine.begin(np.array([0, tokens], np.int32), tokens, (0, 0, 0))
            group = engine.group(
                [engine.weight(gguf, f"w{i}", hold) for i in range(3)],
                None,
                [engine.lora_pair(*p, *g) if p else None for p, g in zip(pairs, grads)],
            )
            x = engine.array(tokens, width)
            x[...] = random.standard_normal((tokens, width))
            kept = np.array(x)
            parts = [(w, None, p) for w, p in zip(dense, pairs)]
            for got, want in zip(engine.linear(x, group), ref.linear(kept, parts)):
                close(got, want)
            dys = [random.standard_normal((tokens, n)).astype(np.float32) for n in rows]
            for pair in grads:
                for grad in pair:
                    if grad is not None:
                        grad[...] = 0.25  # gradients are added, not written
            dx = engine.linear_backward(tuple(dys), x, group)
            close(
                dx,
                sum(
                    ref.linear(dy, [(w.T, None, (p[1].T, p[0].T, p[2]) if p else None)])[0]
                    for dy, w, p in zip(dys, dense, pairs)
                ),
            )
            for dy, pair, (grad_a, grad_b) in zip(dys, pairs, grads):
                if pair:
                    close(grad_a - 0.25, pair[2] * (dy.astype(np.float64) @ pair[1]).T @ kept, 1e-4)
                    close(grad_b - 0.25, pair[2] * dy.T.astype(np.float64) @ (kept @ pair[0].T), 1e-4)
            assert engine.linear_backward(tuple(dys), x, group, need_dx=False) is None
            np.testing.assert_array_equal(x, kept)


def test_joined_gradients_are_not_overwritten(engine, tmp_path):
    """The low-rank columns of a backward must never land in a neighbour's: dq alone, with dk behind it."""
    random = np.random.default_rng(5)
    path = tmp_path / "w.gguf"
    write_gguf(path, {}, [("w", (32, 32), "F32", random.standard_normal((32, 32)).astype(np.float32))])
    with GGUF.open(path) as gguf:
        engine.row_padding = 4
        engine.begin(np.array([0, 6], np.int32), 6, (0, 0, 0))
        pair = [random.standard_normal((4, 32)).astype(np.float32), np.ones((32, 4), np.float32)]
        group = engine.group(
            [engine.weight(gguf, "w", "blocks")],
            None,
            [engine.lora_pair(*pair, 1.0, np.zeros((4, 32), np.float32), np.zeros((32, 4), np.float32))],
        )
        both = engine.array(6, 64)
        both[...] = random.standard_normal((6, 64))
        before = np.array(both)
        engine.linear_backward((both[:, :32],), both[:, 32:], group)
        np.testing.assert_array_equal(both, before)


@pytest.mark.parametrize("rows, vocab, rank", [(1, 33, 0), (7, 200, 0), (130, 64, 3)])
def test_cross_entropy_with_all_gradients(engine, tmp_path, rows, vocab, rank):
    random = np.random.default_rng(rows)
    path = tmp_path / "w.gguf"
    write_gguf(path, {}, [("w", (vocab, 32), "Q8_0", random.standard_normal((vocab, 32)).astype(np.float32))])
    h = 3 * random.standard_normal((rows, 32)).astype(np.float32)
    targets = random.integers(0, vocab, rows).astype(np.int32)
    with GGUF.open(path) as gguf:
        dense, slot, weight = gguf.float32("w").astype(np.float64), None, None
        if rank:
            a, b = (random.standard_normal(s).astype(np.float32) for s in ((rank, 32), (vocab, rank)))
            slot = engine.lora_pair(a, b, 0.5, np.zeros_like(a), np.zeros_like(b))
            weight = dense + 0.5 * b.astype(np.float64) @ a
        group = engine.group([engine.weight(gguf, "w", "blocks")], None, [slot])
        weight = dense if weight is None else weight
        loss, dh = engine.cross_entropy(h, group, targets, 0.25, True)
        assert loss == pytest.approx(ref.cross_entropy(h, weight, targets), rel=1e-5)
        assert engine.cross_entropy(h, group, targets, 0.25, False) == (pytest.approx(loss, rel=1e-6), None)
        logits = h.astype(np.float64) @ weight.T
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(rows), targets] -= 1
        close(dh, 0.25 * p @ weight)
        if rank:
            close(slot.grad_b, 0.25 * 0.5 * p.T @ (h @ a.T), 1e-4)
            close(slot.grad_a, 0.25 * 0.5 * (p @ b).T @ h, 1e-4)


def test_extremes_stay_finite_and_nan_shows(engine):
    gate = np.array([[-1e4, -90.0, 0.0, 90.0, 1e4]], np.float32)
    up = np.ones_like(gate)
    for kind in ("silu", "gelu"):
        np.testing.assert_allclose(engine.glu(gate, up, kind), [[0, 0, 0, 90, 1e4]], atol=1e-6)
        assert all(np.isfinite(z).all() for z in engine.glu_backward(up, gate, up, kind))
    gate[0, 2] = np.nan
    assert np.isnan(engine.glu(gate, up, "silu")[0, 2])
    held = [np.array(z, np.float32) for z in ([1, 2], [1, np.nan], [0, 0], [0, 0])]
    assert np.isnan(engine.adamw(*held, 1, (1e-2, 1e-2), 1, 0.9, 0.999, 1e-8, 0.0, 1.0))
    assert held[0].tolist() == [1, 2] and not held[2].any()


def test_dropout_is_a_mask_of_the_step(engine, tmp_path):
    """Kept inputs are scaled by 1/(1-p); the mask is the same in forward and all gradients, another at each step."""
    path = tmp_path / "w.gguf"
    write_gguf(path, {}, [("w", (8, 64), "F32", np.zeros((8, 64), np.float32))])
    with GGUF.open(path) as gguf:
        a, b = np.eye(8, 64, dtype=np.float32), np.eye(8, dtype=np.float32)
        da, db = np.zeros_like(a), np.zeros_like(b)
        slot = engine.lora_pair(a, b, 1.0, da, db)
        group = engine.group([engine.weight(gguf, "w", "blocks")], None, [slot], dropout=0.5, number=3)
        x, seen = np.ones((40, 64), np.float32), []
        engine.training = True
        for key in ((1, 1, 0), (1, 1, 0), (1, 2, 0)):
            engine.begin(np.array([0, 40], np.int32), 40, key)
            y = np.array(engine.linear(x, group)[0])
            assert set(np.unique(y)) <= {0.0, 2.0}
            dx = engine.linear_backward((np.ones((40, 8), np.float32),), x, group)
            np.testing.assert_array_equal(dx[:, :8], y)  # the derivative of kept inputs, and of no others
            for gradient in (da[:, :8], db):
                np.testing.assert_array_equal(gradient, np.tile(y.sum(0), (8, 1)))
            da[...] = db[...] = 0
            seen.append(y)
        np.testing.assert_array_equal(seen[0], seen[1])
        assert (seen[0] != seen[2]).any() and 0.3 < (seen[0] > 0).mean() < 0.7
        engine.training = False
        assert (np.asarray(engine.linear(x, group)[0]) == 1).all()
