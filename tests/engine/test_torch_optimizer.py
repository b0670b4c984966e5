"""The torch engine's loss, optimizer, placing of pairs and dropout: as test_torch_kernels.py does it."""

import importlib

import numpy as np
import pytest

from tests.support.torch_kernels import (
    DEVICE,
    LIMIT,
    close,
    double,
    empty,
    f,
    kept,
    plain,
    plain_optimizer,
    pytest_generate_tests,
    seed,
    torch,
    view,
)

from anytune.engine import optimizers as rules
from anytune.engine import reference as ref
from anytune.engine.torch.plain_low import Block, Part, place_table


@pytest.mark.parametrize("vocabulary", [37, 301])
def test_loss_rows(f, dtype, vocabulary):
    logits = view(6, vocabulary, dtype, 4.0)
    logits[1] *= 100
    targets = torch.tensor([0, vocabulary - 1, 5, -1, 17, 5], dtype=torch.int32, device=DEVICE)
    scale, losses, before = (
        torch.tensor([0.125], device=DEVICE),
        torch.full((6,), float("nan"), device=DEVICE),
        logits.clone(),
    )
    f.loss_rows(logits, targets, scale, losses, False)
    assert torch.equal(logits, before)
    z, t = double(before), targets.cpu().numpy()
    want = [ref.cross_entropy(z[i : i + 1], np.eye(vocabulary), t[i : i + 1]) if t[i] >= 0 else 0.0 for i in range(6)]
    np.testing.assert_allclose(double(losses), want, rtol=1e-5, atol=1e-5)
    losses[...] = float("nan")
    f.loss_rows(logits, targets, scale, losses, True)
    np.testing.assert_allclose(double(losses), want, rtol=1e-5, atol=1e-5)
    p = np.exp(z - z.max(1, keepdims=True))
    p = p / p.sum(1, keepdims=True) - np.eye(vocabulary)[t]
    close(logits, 0.125 * p * (t >= 0)[:, None], LIMIT[dtype])
    assert (logits[3] == 0).all()
    logits[0, 1] = float("nan")
    f.loss_rows(logits, targets, scale, losses, True)
    assert losses[0].isnan() and torch.isfinite(losses[1:]).all()


@pytest.mark.parametrize("size", [1, 4096, 10_001])
@pytest.mark.parametrize("pieces", [2, 7])
def test_square_sum(f, size, pieces):
    g = view(1, size, spare=0)[0]
    partials = torch.full((pieces,), float("nan"), dtype=torch.float64, device=DEVICE)
    assert f.square_sum(g, partials) is partials
    assert float(partials.sum()) == pytest.approx(float((double(g) ** 2).sum()), rel=1e-12)


def optimizer(size):
    p, g, m, v = (view(1, size, spare=0)[0].clone() for _ in range(4))
    return p, g, m, v.square_(), torch.zeros(4, device=DEVICE), plain_optimizer.new_partials(g)[:8]


def hyper(step, max_norm, rates=(1e-2, 3e-2), decay=0.1):
    return torch.tensor([*rates, 1 - 0.9**step, 1 - 0.99**step, 0.9, 0.99, 1e-8, decay, max_norm], device=DEVICE)


@pytest.mark.parametrize("max_norm", [0.0, 1.0, 1e6])
def test_adamw(f, max_norm):
    size, cut = 2500, 1777
    p, g, m, v, state, partials = optimizer(size)
    want = [double(z) for z in (p, m, v)]
    for step in (1, 2, 3):
        g[...] = view(1, size, spare=0)[0]
        norm = np.linalg.norm(double(g))
        clip = max_norm / norm if 0 < max_norm < norm else 1.0
        neox = [
            ref.adamw(
                want[0][part], double(g)[part], want[1][part], want[2][part], rate, step, 0.9, 0.99, 1e-8, 0.1, clip
            )
            for part, rate in ((slice(0, cut), 1e-2), (slice(cut, size), 3e-2))
        ]
        want = [np.concatenate(z) for z in zip(*neox)]
        f.adamw(p, g, m, v, hyper(step, max_norm), f.square_sum(g, partials), state, cut)
        assert float(state[0]) == pytest.approx(norm, rel=1e-6) and state[1] == 0
        for got, wanted in zip((p, m, v), want):
            close(got, wanted, 1e-5)
        assert (g == 0).all()


@pytest.mark.parametrize("cause", ["gradient", "infinite gradient", "loss"])
def test_adamw_halts_and_stays_halted(f, cause):
    p, g, m, v, state, partials = optimizer(1300)
    before = [z.clone() for z in (p, m, v)]
    if cause == "loss":
        state[2] = float("nan")
    else:
        g[1200] = float("nan" if cause == "gradient" else "inf")
    for step in (1, 2):
        f.adamw(p, g, m, v, hyper(step, 1.0), f.square_sum(g, partials), state, 700)
        assert state[1] != 0 and (g == 0).all() and all(torch.equal(a, b) for a, b in zip((p, m, v), before))
        g[...] = 1.0
        state[2] = 0.0
    state[1] = 0.0
    f.adamw(p, g, m, v, hyper(1, 1.0), f.square_sum(g, partials), state, 700)
    assert state[1] == 0 and not torch.equal(p, before[0])


def test_place(f, dtype):
    """Two groups' pairs go where they belong, and nowhere else; rows longer than a program's piece too."""
    flat = view(1, 20_000, spare=0)[0]
    blocks = [
        Block(8, 2120, 2100, 9, (Part(0, 4, 0, 2, 5, 4300, 0.5), None, Part(6, 9, 2, 3, 4400, 6600, 2.0))),
        Block(60_000, 20, 10, 300, (Part(0, 300, 0, 7, 7000, 8000, 1.5),)),
    ]
    arena = torch.full((70_000,), float("nan"), dtype=dtype, device=DEVICE)
    want = arena.clone()
    for block in blocks:
        matrix = want[block.at :].as_strided((block.width + 16, block.ld), (block.ld, 1))
        for p in filter(None, block.parts):
            n, inside = p.rank, block.in_features
            matrix[block.width + p.r0 : block.width + p.r1, :inside] = p.scale * flat[p.a : p.a + n * inside].view(
                n, inside
            )
            matrix[p.o0 : p.o1, inside + p.r0 : inside + p.r1] = flat[p.b : p.b + n * (p.o1 - p.o0)].view(-1, n)
    f.place(flat, place_table(blocks, DEVICE), arena)
    assert torch.equal(arena.nan_to_num(1e4), want.nan_to_num(1e4))
    f.place(flat, place_table([], DEVICE), arena)


def mask(f, key, number, p, rows=23, columns=130):
    out = empty(rows, columns)
    f.dropout(view(rows, columns).fill_(1.0), torch.tensor(key, dtype=torch.int32, device=DEVICE), number, p, out)
    kept(out)
    assert torch.isin(out, torch.tensor([0.0, 1 / (1 - p)], device=DEVICE)).all()
    return out > 0


def test_dropout(f, dtype):
    """The same bits as the plain twin's, at the asked rate, different for every part of the key, scaled by 1/(1-p)."""
    masks = [
        mask(f, *key)
        for key in (
            ((1, 2, 3), 4, 0.3),
            ((1, 2, 4), 4, 0.3),
            ((1, 3, 3), 4, 0.3),
            ((-1, 2, 3), 4, 0.3),
            ((1, 2, 3), -1, 0.3),
        )
    ]
    assert torch.equal(masks[0], mask(plain, (1, 2, 3), 4, 0.3)) and torch.equal(
        masks[4], mask(plain, (1, 2, 3), -1, 0.3)
    )
    for index, one in enumerate(masks):
        assert abs(float(one.float().mean()) - 0.7) < 0.035
        for two in masks[:index]:
            assert 0.5 < float((one == two).float().mean()) < 0.66  # 0.58 where they are independent
    x, out, key = view(5, 33, dtype), empty(5, 33, dtype), torch.tensor([7, 0, 1], dtype=torch.int32, device=DEVICE)
    f.dropout(x, key, 2, 0.5, out)
    keep = plain.keep_mask(key, 2, 0.5, 5, 33)
    assert torch.equal(out, torch.where(keep, 2 * x, 0))


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("size", [33, 5000, 70 * 300])
def test_adamw_of_whole_weights(kind, size):
    """Triton's kernel against the rule: the same codes, but where one lies on an edge."""
    whole = importlib.import_module("anytune.engine.torch.kernels.whole")
    random = np.random.default_rng(size)
    p, state = random.standard_normal(size).astype(np.float32), rules.start(kind, (size,))
    own, mine = torch.tensor(p, device=DEVICE), {k: torch.tensor(v, device=DEVICE) for k, v in state.items()}
    for step in range(1, 4):
        g = (random.standard_normal(size) * 10.0 ** random.uniform(-5, 0, size)).astype(np.float32)
        given, rule = torch.tensor(g, device=DEVICE), rules.Rule(0.5, 1e-2, step, 0.9, 0.99, 1e-8, 0.1)
        rules.reference(kind, p, g, state, (size,), rule)
        whole.whole_adamw(own, given, mine, rule)
        assert not given.any()
    moved = np.abs(own.cpu().numpy() - p)
    assert np.quantile(moved, 0.99) < 1e-5 and moved.max() < (1e-5 if "second" in state else 1e-2)
    for name, want in state.items():
        got = mine[name].cpu().numpy()
        if want.dtype == np.uint8:
            assert np.abs(got.astype(int) - want).max() <= 1 and np.mean(got != want) < 1e-3
        else:
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)  # sums may cancel
