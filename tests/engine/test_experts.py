"""Mixtures of experts: routers against float64, and experts' products against the sum over all of them."""

import functools

import numpy as np
import pytest

from anytune.engine.base import Router
from anytune.engine.answers import error
from anytune.engine.numpy.engine import NumpyEngine
from anytune.gguf import GGUF, write_gguf
from tests.engine.test_delta import agrees
from tests.support.require import need
from tests.support.webgpu import need_webgpu

need("torch")
EXPERTS, OUT, IN, RANK = 5, 32, 64, 3
ROUTERS = [
    Router(EXPERTS, 2),
    Router(EXPERTS, 2, "softmax", False, 2.5),
    Router(EXPERTS, 3, "chosen", False),
    Router(EXPERTS, 2, "sigmoid", True, 1.5),
    Router(EXPERTS, 2, "sigmoid", False),
    Router(EXPERTS, 1),
]


ENGINES = ("numpy", "numpy, 3 threads", "cpu-torch", "cpu-torch, all as one", "webgpu", "webgpu, all in pieces")
# WebGPU has no weights in float32
HELD = [(e, how) for e in ENGINES for how in ("blocks", "stream", "float32") if (e[:6], how) != ("webgpu", "float32")]


@pytest.fixture(params=ENGINES)
def engine(request):
    if request.param.startswith("numpy"):
        made = NumpyEngine(3 if "3" in request.param else 1)
    elif request.param.startswith("webgpu"):
        need_webgpu()
        yield on_webgpu("pieces" in request.param)
        return
    else:
        from anytune.engine.devices import engine_for

        made = engine_for("cpu-torch", dtype="f32")
        made.grouped = "one" in request.param  # as where there are grouped products
    yield made
    made.close()


@functools.cache
def on_webgpu(pieces: bool):
    """One for all tests: its kernels are compiled once. pieces: no weight of an expert fits a binding."""
    from anytune.engine.webgpu.engine import open_engine

    return open_engine("webgpu", 4096 if pieces else None)


def weights_of(scores, bias, router, chosen=None):
    """float64 [T, experts]: each expert's weight, 0 for those that a token does not go to."""
    scores = scores.astype(np.float64)
    parts = 1 / (1 + np.exp(-scores)) if router.kind == "sigmoid" else np.exp(scores - scores.max(1, keepdims=True))
    if router.kind == "softmax":
        parts /= parts.sum(1, keepdims=True)
    if chosen is None:
        by = scores if router.kind == "chosen" else parts
        chosen = np.argsort(-(by if bias is None else by + bias), axis=1, kind="stable")[:, : router.used]
    out = np.zeros(scores.shape)
    np.put_along_axis(out, chosen, np.take_along_axis(parts, chosen, 1), 1)
    if router.normalized or router.kind == "chosen":
        out /= out.sum(1, keepdims=True)
    return router.scale * out


def choices(engine, routing):
    """int64 [T, used]"""
    chosen = engine.host(routing.chosen)
    return np.asarray(chosen.view(np.int32) if engine.name == "webgpu" else chosen, np.int64)


def spread(engine, weights, routing):
    """[T, used] as [T, experts]."""
    out = np.zeros((len(routing.chosen), EXPERTS))
    np.put_along_axis(out, choices(engine, routing), engine.host(weights), 1)
    return out


@pytest.mark.parametrize("router", ROUTERS)
def test_scales_of_experts(engine, router):
    random = np.random.default_rng(0)
    scores, d = (random.standard_normal((17, EXPERTS)).astype(np.float32) for _ in range(2))
    scales = random.standard_normal(EXPERTS).astype(np.float32)
    scales[1] = 0  # it gives nothing, and has a gradient
    engine.begin(np.array([0, 17], np.int32), 17, (0, 0, 0))
    routing = engine.route(engine.lower(scores), None, router, engine.vector(scales))
    chosen = choices(engine, routing)
    assert error(spread(engine, routing.weights, routing), weights_of(scores, None, router) * scales) < 1e-6
    dweights, into = engine.lower(np.ascontiguousarray(np.take_along_axis(d, chosen, 1))), engine.zeros(EXPERTS)
    got = engine.host(engine.route_backward(dweights, routing, into))

    def loss(s, by):
        return float(np.sum(weights_of(s, None, router, chosen) * by * d))

    agrees(got, lambda s: loss(s, scales), (scores,), 0, random, 1e-5)
    agrees(engine.host(into), lambda by: loss(scores, by), (scales,), 0, random, 1e-5)


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("biased", [False, True])
def test_routers(engine, router, biased):
    random = np.random.default_rng(0)
    scores, d = (random.standard_normal((17, EXPERTS)).astype(np.float32) for _ in range(2))
    bias = 2 * random.standard_normal(EXPERTS).astype(np.float32) if biased else None
    engine.begin(np.array([0, 17], np.int32), 17, (0, 0, 0))
    routing = engine.route(engine.lower(scores), None if bias is None else engine.vector(bias), router)
    chosen = choices(engine, routing)
    want = weights_of(scores, bias, router)
    assert error(spread(engine, routing.weights, routing), want) < 1e-6
    assert [len(set(row)) for row in chosen.tolist()] == [router.used] * 17, "an expert twice, or a token dropped"
    dweights = engine.lower(np.ascontiguousarray(np.take_along_axis(d, chosen, 1)))
    got = engine.host(engine.route_backward(dweights, routing))
    agrees(got, lambda s: float(np.sum(weights_of(s, bias, router, chosen) * d)), (scores,), 0, random, 1e-5)


def test_ties_go_to_the_lower_number(engine):
    engine.begin(np.array([0, 2], np.int32), 2, (0, 0, 0))
    scores = np.array([[1, 1, 1, 1, 1], [0, 3, 1, 3, 1]], np.float32)
    routing = engine.route(engine.lower(scores), None, Router(EXPERTS, 3))
    assert choices(engine, routing).tolist() == [[0, 1, 2], [1, 3, 2]]


@pytest.fixture(scope="module", params=["F32", "Q8_0"])
def tensors(request, tmp_path_factory):
    """A file with two tensors of experts, and their float32 values."""
    path, random = tmp_path_factory.mktemp("experts") / "e.gguf", np.random.default_rng(1)
    shape = (EXPERTS, OUT, IN)
    drawn = [(name, shape, request.param, random.standard_normal(shape).astype(np.float32)) for name in "ab"]
    write_gguf(path, {"general.architecture": "llama"}, drawn)
    gguf = GGUF.open(path)
    return gguf, [gguf.float32(name) for name in "ab"]


SPREADS = {
    "random": lambda random: random.standard_normal((40, EXPERTS)),
    "all to one": lambda random: np.tile(np.arange(EXPERTS)[::-1], (40, 1)),  # with 2 used: experts 0 and 1 alone
    "one token": lambda random: random.standard_normal((1, EXPERTS)),
}


@pytest.mark.parametrize("engine, hold", HELD, indirect=["engine"])
@pytest.mark.parametrize("scores", SPREADS)
@pytest.mark.parametrize("pairs", [False, True])
def test_experts_are_a_sum_over_all(engine, tensors, scores, hold, pairs, monkeypatch):
    gguf, dense = tensors
    random, read = np.random.default_rng(2), []
    monkeypatch.setattr(
        GGUF,
        "read_into",
        lambda self, name, lo, hi, out, real=GGUF.read_into: (read.append(lo), real(self, name, lo, hi, out))[1],
    )
    scores = SPREADS[scores](random).astype(np.float32)
    tokens, router = len(scores), Router(EXPERTS, 2)
    x = random.standard_normal((tokens, IN)).astype(np.float32)
    dy = random.standard_normal((tokens, 2 * OUT)).astype(np.float32)
    a, b = (random.standard_normal((2, EXPERTS, *s)).astype(np.float32) for s in ((RANK, IN), (OUT, RANK)))
    held = [
        engine.lora_pair(
            *map(engine.vector, (a[i], b[i])), 0.5, *(engine.zeros(z[i].size).reshape(z[i].shape) for z in (a, b))
        )
        for i in range(2)
    ]
    engine.row_padding, engine.training = (32 if pairs else 0), True
    engine.begin(np.array([0, tokens], np.int32), tokens + 3, (0, 0, 0))
    group = engine.expert_group([engine.weight(gguf, name, hold) for name in "ab"], None, held if pairs else None)
    routing = engine.route(engine.lower(scores), None, router)
    got = [engine.host(y) for y in engine.expert_linear(engine.dispatch(engine.lower(x), routing), group, routing)]
    full = [w + (0.5 * b[i] @ a[i] if pairs else 0) for i, w in enumerate(dense)]
    weights = weights_of(scores, None, router)
    for y, w in zip(got, full):
        summed = engine.host(engine.combine(engine.weigh(engine.lower(y), routing), routing))
        want = np.einsum("te,eoi,ti->to", weights, w.astype(np.float64), x)
        assert error(summed, want) < 1e-5

    engine.training = False  # a few slots go another way where nothing is trained
    again = engine.expert_linear(engine.dispatch(engine.lower(x), routing), group, routing)
    for y, other in zip(got, again):
        assert error(engine.host(other), y) < 1e-5
    engine.training = True

    slots = engine.dispatch(engine.lower(dy), routing)
    dys = engine.split(slots, OUT, OUT)
    dx = engine.expert_linear_backward(dys, engine.dispatch(engine.lower(x), routing), group, routing)
    chosen = (weights > 0).astype(np.float64)
    want = sum(
        np.einsum("te,eoi,to->ti", chosen, w.astype(np.float64), dy[:, i * OUT : (i + 1) * OUT])
        for i, w in enumerate(full)
    )
    assert error(engine.host(engine.combine(dx, routing)), want) < 1e-5
    if pairs:
        for i, pair in enumerate(held):
            dw = np.einsum("te,to,ti->eoi", chosen, dy[:, i * OUT : (i + 1) * OUT].astype(np.float64), x)
            assert error(engine.host(pair.grad_a), 0.5 * b[i].swapaxes(1, 2) @ dw) < 1e-5
            assert error(engine.host(pair.grad_b), 0.5 * dw @ a[i].swapaxes(1, 2)) < 1e-5
    engine.training = False
    used = {expert for expert in range(EXPERTS) if chosen[:, expert].any()}
    if not hasattr(engine, "grouped") and (engine.name != "webgpu" or hold == "stream"):
        assert {row // OUT for row in read} == used, "experts were read that got no token, or the others were not"


def check_dropout(engine, gguf, tokens: int = 40):
    """Results are linear in the input and in each factor of a pair, so gradients are known from results."""
    random, w = np.random.default_rng(2), engine.weight(gguf, "a", "blocks")
    experts, out, width = gguf.tensors["a"].shape
    engine.begin(np.array([0, tokens], np.int32), tokens, (1, 2, 3))
    scores, x, dy, a, b = (
        random.standard_normal(shape).astype(np.float32)
        for shape in ((tokens, experts), (tokens, width), (tokens, out), (experts, RANK, width), (experts, out, RANK))
    )
    routing = engine.route(engine.lower(scores), None, Router(experts, 2))
    xs, ds = (engine.dispatch(engine.lower(z), routing) for z in (x, dy))

    def result(first, *grads):
        pair = engine.lora_pair(engine.vector(first), engine.vector(b), 0.5, *grads)
        group = engine.expert_group([w], None, [pair], 0.4, 3)
        (y,) = engine.expert_linear(xs, group, routing)
        return group, float(np.sum(engine.host(y).astype(np.float64) * engine.host(ds)))

    grads = [engine.zeros(z.size).reshape(z.shape) for z in (a, b)]
    (group, whole), (_, without) = result(a, *grads), result(0 * a)
    dx = engine.expert_linear_backward((ds,), xs, group, routing)
    assert float(np.sum(engine.host(dx).astype(np.float64) * engine.host(xs))) == pytest.approx(whole, rel=1e-4)
    for factor, gradient in zip((a, b), grads):
        through = float(np.sum(engine.host(gradient).astype(np.float64) * factor))
        assert through == pytest.approx(whole - without, rel=1e-4)


def test_dropout_of_experts(engine, tensors):
    engine.training = True
    check_dropout(engine, tensors[0])
    engine.training = False


def test_loads_say_how_even_a_router_was():
    engine = NumpyEngine(1)
    engine.begin(np.array([0, 40], np.int32), 40, (0, 0, 0))
    scores = SPREADS["all to one"](None).astype(np.float32)
    engine.route(scores, None, Router(EXPERTS, 2))
    assert engine.take_loads() == {}, "only training counts"
    engine.training = True
    engine.route(scores, None, Router(EXPERTS, 2))
    assert engine.take_loads() == {"expert_peak": pytest.approx(2.5), "expert_idle": pytest.approx(0.6)}
    assert engine.take_loads() == {}
