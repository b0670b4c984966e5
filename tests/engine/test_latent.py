"""Latent attention's operations against their meaning in float64, and groups of experts."""

from dataclasses import replace

import numpy as np
import pytest

from anytune.engine.answers import error
from anytune.engine.base import Heads, LatentHeads, Router
from anytune.gguf import GGUF, write_gguf
from tests.engine.test_experts import choices, engine  # noqa: F401
from tests.support.require import need

need("torch")
SHAPES = [LatentHeads(3, 32, 10, 6, 16), LatentHeads(2, 32, 8, 4, 5), LatentHeads(1, 32, 4, 2, 9)]
TOKENS = 7


def begun(engine):
    engine.begin(np.array([0, TOKENS], np.int32), TOKENS, (0, 0, 0))
    return np.random.default_rng(0)


def spread(q, kv, shared, s):
    """(q, k, v) [T, heads, size] of latent_heads()."""
    q, kv = q.reshape(TOKENS, s.heads, -1), kv.reshape(TOKENS, s.heads, -1)
    every = np.repeat(shared[:, None], s.heads, 1)
    made = [q[..., s.nope :], q[..., : s.nope]], [every, kv[..., : s.nope]], [kv[..., s.nope :]]
    joined = [np.concatenate(parts, 2) for parts in made]
    return [np.pad(x, ((0, 0), (0, 0), (0, s.size - x.shape[2]))).reshape(TOKENS, -1) for x in joined]


@pytest.mark.parametrize("s", SHAPES)
def test_heads_and_their_backward(engine, s):  # noqa: F811
    random, widths = begun(engine), (s.heads * s.keys, s.heads * (s.nope + s.value), s.rope)
    given = [random.standard_normal((TOKENS, n)).astype(np.float32) for n in widths]
    got = engine.latent_heads(*map(engine.lower, given), s)
    for found, right in zip(got, spread(*given, s), strict=True):
        np.testing.assert_array_equal(engine.host(found), right)
    gradients = [random.standard_normal(x.shape).astype(np.float32) for x in map(engine.host, got)]
    back = list(map(engine.host, engine.latent_heads_backward(*map(engine.lower, gradients), s)))
    for number, one in enumerate(given):  # it is linear: its backward is its transpose
        directions = [random.standard_normal(x.shape) if i == number else 0 * x for i, x in enumerate(given)]
        moved = sum(float(np.sum(a * b)) for a, b in zip(spread(*directions, s), gradients))
        assert moved == pytest.approx(float(np.sum(directions[number] * back[number])), rel=1e-5), one.shape


def test_heads_are_cut_and_filled(engine):  # noqa: F811
    x = begun(engine).standard_normal((TOKENS, 3 * 5)).astype(np.float32)
    heads = x.reshape(TOKENS, 3, 5)
    cut, filled = (engine.host(engine.resize_heads(engine.lower(x), 3, size)) for size in (2, 8))
    np.testing.assert_array_equal(cut.reshape(TOKENS, 3, 2), heads[..., :2])
    np.testing.assert_array_equal(filled.reshape(TOKENS, 3, 8), np.pad(heads, ((0, 0), (0, 0), (0, 3))))
    first, rest = engine.split_heads(engine.lower(x), 3, 2)
    np.testing.assert_array_equal(engine.host(first).reshape(TOKENS, 3, 2), heads[..., :2])
    np.testing.assert_array_equal(engine.host(engine.join_heads(first, rest, 3)), x)


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "of halves"])
def test_products_of_heads(engine, tmp_path, kind):  # noqa: F811
    random, s = begun(engine), SHAPES[0]
    k, v = (random.standard_normal(n).astype(np.float32) for n in ((3, s.rank, s.nope), (3, s.value, s.rank)))
    whole = np.concatenate([k.swapaxes(1, 2), v], 1).reshape(-1, s.rank)
    if kind == "of halves":
        matrix = engine.trained(engine.latent_matrix(*map(engine.vector, (k, v))), None)
    else:
        write_gguf(tmp_path / "m.gguf", {"general.architecture": "llama"}, [("w", whole.shape, kind, whole)])
        gguf = GGUF.open(tmp_path / "m.gguf")
        whole, matrix = gguf.float32("w"), engine.weight(gguf, "w")
    parts = whole.reshape(3, -1, s.rank).astype(np.float64)
    for low, high, back in ((0, s.nope, True), (s.nope, s.nope + s.value, False)):
        part = parts[:, low:high] if back else parts[:, low:high].swapaxes(1, 2)
        x = random.standard_normal((TOKENS, 3 * part.shape[1])).astype(np.float32)
        right = np.einsum("thn,hnm->thm", x.reshape(TOKENS, 3, -1), part).reshape(TOKENS, -1)
        assert error(engine.host(engine.head_product(engine.lower(x), matrix, 3, low, high, back)), right) < 1e-5


def test_heads_that_no_kernel_takes_are_the_same_recorded_and_not():
    """A recorded token knows its place on the device only."""
    from anytune.engine.devices import engine_for
    from anytune.engine.torch.decode import KERNEL, Places

    heads, random = Heads(3, 1, KERNEL + 8, 0, 0.05), np.random.default_rng(0)
    with engine_for("cpu-torch", dtype="f32") as torch:
        q, cache = torch.lower(random.standard_normal((2, 3 * heads.head_dim))), torch.cache(4, 9, heads.head_dim)
        cache.copy_(torch.vector(random.standard_normal(cache.shape)))
        where = torch.places([(2, 0, 1, 4), (0, 1, 2, 8)])
        want = torch.host(torch.attend_cache(q, cache, cache, where, heads))
        recorded = Places(None, where.slot, where.position)
        assert error(torch.host(torch.attend_cache(q, cache, cache, recorded, heads)), want) < 1e-6


@pytest.mark.parametrize("biased", [False, True])
def test_only_near_groups_are_chosen_from(engine, biased):  # noqa: F811
    random, router = begun(engine), Router(12, 3, "sigmoid", True, 1.0, 4, 2)
    scores = random.standard_normal((TOKENS, 12)).astype(np.float32)
    bias = random.standard_normal(12).astype(np.float32) if biased else None
    routing = engine.route(engine.lower(scores), None if bias is None else engine.vector(bias), router)
    chosen = choices(engine, routing)
    choice = 1 / (1 + np.exp(-scores.astype(np.float64))) + (0 if bias is None else bias)
    groups = np.sort(choice.reshape(TOKENS, 4, 3), 2)[:, :, 1:].sum(2)
    for token, best in enumerate(np.argsort(-groups, 1)[:, :2]):
        allowed = [i for i in range(12) if i // 3 in best]
        assert chosen[token].tolist() == sorted(allowed, key=lambda i: -choice[token, i])[:3]
    plain = engine.route(engine.lower(scores), None, replace(router, groups=1, near=1))
    assert choices(engine, plain).shape == (TOKENS, 3)
