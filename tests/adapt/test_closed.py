"""Closed forms against dense float64 solutions, and by what makes them optimal."""

import numpy as np
import pytest

from anytune.adapt.closed import Equations, allocate, ridge, truncate
from anytune.adapt.ranks import SHARES, spread
from anytune.adapt.statistics import GramSums, TokenRows, sums_for
from anytune.engine.algebra import HostAlgebra, NotPositive
from tests.support.require import need

HOST = HostAlgebra()
# tokens, inputs, outputs, rank of the inputs: many tokens; fewer than columns; deficient; larger than a tile
CASES = [(400, 24, (17, 9), 24), (10, 24, (17,), 10), (60, 40, (13,), 7), (700, 300, (40,), 300)]


def data(tokens, columns, outputs, rank, seed=0, noise=0.3):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, rank)) @ rng.standard_normal((rank, columns))
    change = rng.standard_normal((sum(outputs), columns))
    missing = x @ change.T + noise * rng.standard_normal((tokens, sum(outputs)))
    return x.astype(np.float32), missing.astype(np.float32), change.astype(np.float32), rng.random(tokens)


def dense(x, r, weights, share, prior=0.0):
    """float64 (D, G + λ I) by NumPy's general solver."""
    x, r = x.astype(np.float64), r.astype(np.float64)
    g = (x * weights[:, None]).T @ x
    g += share * np.trace(g) / len(g) * np.eye(len(g))
    c = (x * weights[:, None]).T @ (r - x @ np.broadcast_to(prior, (r.shape[1], x.shape[1])).T)
    return prior + np.linalg.solve(g, c).T, g


def equations(kind, x, r, weights, algebra=HOST, step=7, prior=None):
    made = kind(algebra, x.shape[1], r.shape[1])
    for weight in np.unique(weights):
        rows = np.flatnonzero(weights == weight)
        for at in range(0, len(rows), step):
            some = rows[at : at + step]
            made.add(algebra.array(x[some]), algebra.array(r[some]), float(weight))
    if prior is not None:
        made.toward(algebra.array(prior))
    return made.equations()


def algebras():
    torch = need("torch")
    from anytune.engine.torch.algebra import CardAlgebra

    return [HOST, CardAlgebra(torch.device("cpu"))]


@pytest.mark.parametrize("kind", [GramSums, TokenRows])
@pytest.mark.parametrize("tokens,columns,outputs,rank", CASES)
@pytest.mark.parametrize("share", [1e-3, 0.3])
def test_ridge_is_the_dense_solution(kind, tokens, columns, outputs, rank, share):
    x, r, _, _ = data(tokens, columns, outputs, rank)
    weights = np.where(np.arange(tokens) % 3 == 0, 0.0, np.where(np.arange(tokens) % 3 == 1, 0.5, 1.0))  # some are zero
    wanted, _ = dense(x, r, weights, share)
    for algebra in algebras():
        found = ridge(equations(kind, x, r, weights, algebra), outputs, max(outputs), share)
        whole = np.concatenate([pair.b @ pair.a for pair in found])
        assert np.abs(whole - wanted).max() < 2e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("kind", [GramSums, TokenRows])
@pytest.mark.parametrize("with_prior", [False, True])
@pytest.mark.parametrize("tokens,columns,outputs,rank", CASES[:3])
def test_no_other_change_of_the_rank_is_better(kind, with_prior, tokens, columns, outputs, rank):
    """The objective's excess over the ridge solution is the Eckart-Young minimum, and no step around it lowers it."""
    x, r, change, _ = data(tokens, columns, outputs, rank)
    prior = np.float32(0.7) * change if with_prior else None
    full, g = dense(x, r, np.ones(tokens), 1e-2, 0.0 if prior is None else prior)
    splits = np.cumsum([0, *outputs])
    priors = None if prior is None else [prior[a:b] for a, b in zip(splits, splits[1:])]
    found = ridge(equations(kind, x, r, np.ones(tokens), prior=prior), outputs, 3, 1e-2, priors)
    root = np.linalg.cholesky(g)
    rng = np.random.default_rng(1)
    for pair, low, high in zip(found, splits, splits[1:]):

        def excess(d, low=low, high=high):
            e = d.astype(np.float64) - full[low:high]
            return float(np.sum(e @ g * e))

        values = np.linalg.svd(full[low:high] @ root, compute_uv=False)
        best = float(np.sum(values[3:] ** 2))
        own = excess(pair.b.astype(np.float64) @ pair.a)
        assert own <= best * (1 + 1e-3) + 1e-6 * np.sum(values**2)
        np.testing.assert_allclose(pair.worth, values[:3], rtol=1e-3)
        for _ in range(10):
            step = 1e-2 * rng.standard_normal(pair.a.shape), 1e-2 * rng.standard_normal(pair.b.shape)
            assert excess((pair.b + step[1]) @ (pair.a + step[0])) > own


def test_a_metric_of_the_outputs_is_obeyed():
    rng = np.random.default_rng(0)
    x, r, _, _ = data(300, 20, (12,), 20)
    metric = (lambda m: m @ m.T + 0.1 * np.eye(12))(rng.standard_normal((12, 12)))
    full, g = dense(x, r, np.ones(300), 1e-2)
    left, right = np.linalg.cholesky(metric).T, np.linalg.cholesky(g)
    best = np.sum(np.linalg.svd(left @ full @ right, compute_uv=False)[4:] ** 2)
    for algebra in algebras():
        (pair,) = ridge(
            equations(GramSums, x, r, np.ones(300), algebra), (12,), 4, 1e-2, metrics=[_like(algebra, metric)]
        )
        error = left @ (pair.b.astype(np.float64) @ pair.a - full) @ right
        assert np.sum(error**2) < 1.001 * best


def _like(algebra, values):
    import torch

    return values if algebra is HOST else torch.from_numpy(values)


@pytest.mark.parametrize("kind", [GramSums, TokenRows])
def test_a_known_change_comes_back(kind):
    """At full rank, from outputs alone; and as a prior even where the inputs say nothing."""
    x, r, change, _ = data(500 if kind is GramSums else 20, 16 if kind is GramSums else 40, (10,), 16, noise=0)
    (pair,) = ridge(equations(kind, x, r, np.ones(len(x))), (10,), 10, 1e-9)
    assert np.abs(x @ (pair.b @ pair.a).T - r).max() < 1e-3 * np.abs(r).max()
    if kind is GramSums:
        assert np.abs(pair.b @ pair.a - change).max() < 1e-3
    (pair,) = ridge(equations(kind, 0 * x, 0 * r, np.ones(len(x)), prior=change), (10,), 10, 1e-2, [change])
    assert np.abs(pair.b @ pair.a - change).max() < 1e-4


def test_guarded_tokens_hold_the_outputs_where_they_are():
    x, r, _, _ = data(50, 12, (6,), 12)
    guarded = np.concatenate([x, 3 * x[:, ::-1]])
    wanted, _ = dense(guarded, np.concatenate([r, 0 * r]), np.ones(100), 0.1)
    for kind in (GramSums, TokenRows):
        sums = kind(HOST, 12, 6)
        sums.add(x, r, 4.0)
        sums.scale(0.25)  # of what is there by now
        sums.add(guarded[50:], None, 1.0)
        (pair,) = ridge(sums.equations(), (6,), 6, 0.1)
        assert np.abs(pair.b @ pair.a - wanted).max() < 1e-3 * np.abs(wanted).max()


@pytest.mark.parametrize("algebra", range(2))
def test_streaming_in_any_chunks_gives_the_same_sums(algebra):
    algebra = algebras()[algebra]
    x, r, _, _ = data(900, 270, (30,), 270)
    found = [equations(GramSums, x, r, np.ones(900), algebra, step) for step in (900, 301, 64)]
    for other in found[1:]:
        for one, two in ((found[0].gram, other.gram), (found[0].cross, other.cross)):
            one, two = algebra.host(one), algebra.host(two)
            assert one.dtype == np.float64 and np.abs(one - two).max() < 2e-6 * np.abs(one).max()
    assert np.array_equal(algebra.host(found[0].gram), algebra.host(found[0].gram).T)


def test_the_smaller_problem_is_chosen():
    assert isinstance(sums_for(HOST, 100, [5], 79), TokenRows) and isinstance(sums_for(HOST, 100, [5], 80), GramSums)


@pytest.mark.parametrize("size", [5, 256, 257, 600])
def test_factors_are_cholesky_s(size):
    rng = np.random.default_rng(size)
    half = rng.standard_normal((size, size + 3))
    g = half @ half.T + np.eye(size)
    made = np.tril(HOST.factor(g.copy()))
    assert np.abs(made @ made.T - g).max() < 1e-10 * np.abs(g).max()
    y = rng.standard_normal((size, 3))
    assert np.abs(g @ HOST.substitute(made, y) - y).max() < 1e-8
    g[-1, -1] = -1.0
    before = g.copy()
    with pytest.raises(NotPositive):
        HOST.factor(g)
    assert np.array_equal(g, before)


def test_a_factorization_that_fails_gets_more_ridge_and_says_so():
    for algebra in algebras():
        g = np.diag(np.array([1.0, 1.0, -1e-5]))  # what rounding may leave of a sum
        made = Equations(algebra, _like(algebra, g), _like(algebra, np.ones((3, 2))))
        pairs = ridge(made, (2,), 2, 1e-8)
        assert made.raised and 1e-5 < made.ridge < 1e-3 and all(np.isfinite(p.a).all() for p in pairs)


def test_infinite_activations_are_told():
    from anytune.errors import UserError

    x = np.full((5, 3), np.inf, np.float32)
    with np.errstate(invalid="ignore"), pytest.raises(UserError, match="infinity"):
        sums = GramSums(HOST, 3, 2)
        sums.add(x, np.zeros((5, 2), np.float32), 1.0)
        ridge(sums.equations(), (2,), 2)


def test_ranks_go_where_they_are_worth_most():
    worth = {"one": np.array([4.0, 1.0]), "two": np.array([3.0, 2.9]), "none": np.zeros(2)}
    assert allocate(worth, {"one": 10, "two": 10, "none": 1}, 30) == {"one": 1, "two": 2, "none": 0}
    assert allocate(worth, {"one": 10, "two": 40, "none": 1}, 30) == {"one": 2, "two": 0, "none": 0}
    assert sum(allocate(worth, dict.fromkeys(worth, 7), 6).values()) == 0


def test_truncation_of_a_wide_change_needs_no_more_than_its_rows():
    rng = np.random.default_rng(0)
    change = rng.standard_normal((3, 50)).astype(np.float32)
    pair = truncate(HOST, change, change, 8)
    assert pair.a.shape == (3, 50) and np.abs(pair.b @ pair.a - change).max() < 1e-5
    assert pair.cut(1).a.shape == (1, 50)


@pytest.mark.parametrize("rank", [1, 2, 3, 16, 100])
def test_ranks_are_spread_within_the_parameters_of_one_rank_everywhere(rank):
    rng = np.random.default_rng(rank)
    for _ in range(5):
        cost = {kind: int(rng.integers(10, 3000)) for kind in SHARES}
        ranks = spread(cost, rank)
        spent, most = sum(ranks[kind] * cost[kind] for kind in cost), rank * sum(cost.values())
        assert most - max(cost.values()) <= spent <= most and min(ranks.values()) >= 1
        assert rank < 3 or ranks["attn_output"] > ranks["attn_v"] >= ranks["attn_q"]
