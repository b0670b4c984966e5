"""Mixtures of experts on WebGPU against the NumPy engine: operations on odd shapes over memory full of NaN, gradients
of adapters and of every tensor, streaming, dropout, decoding, and figures of load."""

import functools

import numpy as np
import pytest

from anytune.engine.answers import error
from anytune.engine.base import Heads, Router
from anytune.engine.numpy.engine import NumpyEngine
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from anytune.model import load
from tests.engine.test_experts import check_dropout
from tests.engine.test_webgpu_blocks import random_blocks
from tests.engine.test_torch_engine import gradients, hold, trainee_of
from tests.model.conftest import stream
from tests.support import full, tiny
from tests.support.webgpu import checked_bindings, need_webgpu

EXPERTS = "all,ffn_gate_exps,ffn_up_exps,ffn_down_exps"
CAPS = (None, 4096)  # bytes of a binding: nothing is cut, everything is


@pytest.fixture(scope="module", autouse=True)
def device():
    need_webgpu()
    with checked_bindings():
        yield


@functools.cache
def opened(limit: int | None):
    from anytune.engine.webgpu.engine import open_engine

    made = open_engine("webgpu", limit)
    made.proved = True
    return made


@pytest.fixture(params=CAPS)
def engines(request):
    """NumPy's, and WebGPU's with every free buffer full of NaN."""
    e = opened(request.param)
    array, flat = type(e).array, type(e).flat

    def filled(make):
        def made(*args, **named):
            x = make(e, *args, **named)
            e.commands.write(x, np.full(x.buffer.size // 4, np.nan, np.float32))
            return x

        return made

    e.array, e.flat = filled(array), filled(flat)
    pair = NumpyEngine(1), e
    for one in pair:
        one.training = True
    yield pair
    e.training = False
    del e.array, e.flat


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """Experts whose sizes are no multiples of anything."""
    path, random = tmp_path_factory.mktemp("odd") / "o.gguf", np.random.default_rng(0)

    def whole(shape):
        return shape[0] * shape[1], shape[2]

    shapes = {
        "a": ((6, 30, 44), "F32"),
        "b": ((6, 7, 44), "F32"),
        "c": ((6, 30, 64), "MXFP4"),
        "d": ((6, 7, 256), "Q4_K"),
    }
    rows = [
        (n, s, kind, random.standard_normal(s).astype(np.float32) if kind == "F32" else random_blocks(kind, *whole(s)))
        for n, (s, kind) in shapes.items()
    ]
    write_gguf(path, {"general.architecture": "llama"}, rows)
    return GGUF.open(path)


def run_experts(e, gguf, names, tokens, router):
    """Everything that a mixture of these experts computes on one engine, as host arrays."""
    random = np.random.default_rng(5)

    def draw(*shape):
        return random.standard_normal(shape).astype(np.float32)

    weights = [e.weight(gguf, name, "blocks") for name in names]
    columns, rank = weights[0].in_features, 3
    e.row_padding = 32
    e.begin(np.array([0, tokens], np.int32), tokens + 5, (1, 2, 3))
    scores, x = draw(tokens, router.experts), draw(tokens, columns)
    scores[:, 2] = -9  # nobody goes there
    grads, biases, pairs = [], [], []
    for w in weights:
        out = w.expert_features
        a, b = draw(router.experts, rank, columns), draw(router.experts, out, rank)
        own = [e.zeros(z.size).reshape(z.shape) for z in (a, b)]
        grads += [*own, e.zeros(router.experts * out).reshape(router.experts, out)]
        biases.append(e.vector(draw(router.experts, out)))
        pairs.append(e.lora_pair(e.vector(a), e.vector(b), 0.5, *own))
    group = e.expert_group(weights, biases, pairs, bias_gradients=grads[2::3])
    bias, scales, by_scales = e.vector(draw(router.experts)), e.vector(draw(router.experts)), e.zeros(router.experts)
    routing = e.route(e.lower(scores), bias, router, scales)
    xs = e.dispatch(e.lower(x), routing)
    ys = e.expert_linear(xs, group, routing)
    out = [e.combine(e.weigh(y, routing), routing, (e.lower(draw(tokens, y.shape[1])),)) for y in ys]
    last = e.vector(draw(router.experts, ys[0].shape[1]))
    last_gradient = e.zeros(router.experts * ys[0].shape[1]).reshape(router.experts, -1)
    out.append(e.combine(e.weigh_bias(e.weigh(ys[0], routing), last, routing), routing))
    dys = tuple(e.dispatch(e.lower(draw(tokens, y.shape[1])), routing) for y in ys)
    out.append(e.combine(e.expert_linear_backward(dys, xs, group, routing), routing))
    dy = e.dispatch(e.lower(draw(tokens, columns)), routing)
    dx, dweights = e.weigh_backward(dy, xs, routing)
    dlast = e.dispatch(e.lower(draw(tokens, ys[0].shape[1])), routing)
    dweights = e.weigh_bias_backward(dlast, last, routing, dweights, last_gradient)
    out += [e.combine(dx, routing), e.route_backward(dweights, routing, by_scales), by_scales, *grads, last_gradient]
    gate, value, up = e.lower(draw(tokens, 1)), e.lower(draw(tokens, columns)), e.lower(9 * draw(tokens, columns))
    out += [e.gate_rows(value, gate), *e.gate_rows_backward(e.lower(draw(tokens, columns)), value, gate)]
    out += [e.clamped_glu(up, value), *e.clamped_glu_backward(e.lower(draw(tokens, columns)), up, value)]
    return [np.array(e.host(z)) for z in out]


@pytest.mark.parametrize(
    "names, tokens, used, kind", [("ab", 53, 3, "softmax"), ("c", 1, 2, "sigmoid"), ("d", 9, 5, "chosen")]
)
def test_operations_on_odd_shapes(engines, odd, names, tokens, used, kind):
    for normalized in (True, False):
        router = Router(6, used, kind, normalized, 1.5, groups=3, near=2 if used < 5 else 3)
        want, got = (run_experts(e, odd, names, tokens, router) for e in engines)
        found = [error(g, w) for g, w in zip(got, want, strict=True)]
        assert all(off < 1e-5 for off in found), found


def test_dropout_of_experts(engines, odd):
    check_dropout(engines[1], odd)


def test_a_tensor_in_several_buffers(engines, odd, monkeypatch):
    results = []
    for e in engines:
        random = np.random.default_rng(3)
        e.begin(np.array([0, 40], np.int32), 40, (0, 0, 0))
        scores, x, dy = (random.standard_normal((40, n)).astype(np.float32) for n in (6, 44, 30))
        weight, routing = e.weight(odd, "a", "blocks"), e.route(e.lower(scores), None, Router(6, 2))
        if e.name == "webgpu":
            monkeypatch.setattr(e.device, "max_buffer", 20_000)
            assert [r.high - r.low for r in weight.rows()] == [90, 90]  # three experts each
            monkeypatch.undo()
        group, xs = e.expert_group([weight]), e.dispatch(e.lower(x), routing)
        (y,) = e.expert_linear(xs, group, routing)
        dx = e.expert_linear_backward((e.dispatch(e.lower(dy), routing),), None, group, routing)
        results.append([np.array(e.host(z)) for z in (y, dx)])
    assert all(error(got, want) < 1e-5 for want, got in zip(*results, strict=True))


def test_scores_that_are_no_numbers_stay_in_bounds(engines):
    e = engines[1]
    e.begin(np.array([0, 3], np.int32), 3, (0, 0, 0))
    scores = np.full((3, 6), np.nan, np.float32)
    scores[1, 4] = 1
    routing = e.route(e.lower(scores), None, Router(6, 3, "chosen"))
    assert e.host(routing.chosen).view(np.int32).max() < 6
    assert sorted(e.host(routing.order).view(np.int32).tolist()) == list(range(9))


@pytest.mark.parametrize("heads, context", [(Heads(4, 2, 8, 0, 0.35), 60), (Heads(3, 1, 20, 7, 0.25), 45)])
def test_sinks(engines, heads, context):
    results, context = [], context if engines[1].device.max_binding == 4096 else 200  # whose keys are cut into runs
    for e in engines:
        random = np.random.default_rng(1)
        e.begin(np.array([0, 5, 6, 37], np.int32), 37, (0, 0, 0))
        q, k, v, d = (
            e.lower(random.standard_normal((37, n * heads.head_dim)).astype(np.float32))
            for n in (heads.n_heads, heads.n_kv_heads, heads.n_kv_heads, heads.n_heads)
        )
        sinks, into = e.vector(3 * random.standard_normal(heads.n_heads)), e.vector(np.ones(heads.n_heads))
        out, lse = e.sink(*e.attention(q, k, v, heads), sinks, heads)
        e.sink_gradient(d, out, lse, sinks, heads, into)
        keys, values = (e.cache(2, context, k.shape[1]) for _ in range(2))
        where = e.places([(1, 0, 37, 0)])
        e.store(keys, where, k), e.store(values, where, v)
        last = [e.attend_cache(q, keys, values, where, heads, sinks)]
        last += [e.attend_cache(q[36:], keys, values, e.places([(1, 0, 1, 36)]), heads, sinks)]
        parts = [out, *e.attention_backward(d, q, k, v, out, lse, heads), into, *last]
        results.append([np.array(e.host(x)) for x in parts])
    assert all(error(got, want) < 1e-5 for want, got in zip(*results, strict=True))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    return {name: tiny.write(folder / f"{name}.gguf", name, "Q8_0") for name in ("qwen3moe", "gpt-oss", "glm4moe")}


@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss", "glm4moe"])
def test_adapters_of_experts(files, name):
    """Recorded, replayed, and streamed, where layers run twice; padding takes no part in the figures of load."""
    one, two = (trainee_of(files[name], device, modules=EXPERTS) for device in ("numpy", "webgpu"))
    layers = two.config.layers
    for how, keep, batch in (
        ("blocks", layers, stream([17, 1, 22])),
        ("blocks", layers, stream([17, 1, 22], seed=2)),
        ("blocks", layers, stream([21], silent=0.0)),
        ("stream", 1, stream([17, 1, 22])),
    ):
        if how == "stream":
            hold(two, how, keep=keep)
        (loss, want), (found, got) = (gradients(trainee, batch) for trainee in (one, two))
        assert found == pytest.approx(loss, rel=1e-5)
        assert np.linalg.norm(got - want) <= 2e-5 * np.linalg.norm(want), how
        loads = [trainee.engine.take_loads() for trainee in (two, one)]
        if keep == layers:
            assert loads[0] == pytest.approx(loads[1], rel=1e-5)
    assert two.engine.take_loads() == {}


def test_experts_without_tokens_are_not_read(files, monkeypatch):
    trainee, read = trainee_of(files["qwen3moe"], "webgpu", tokens=16), set()
    hold(trainee, "stream")
    real = GGUF.read_into
    monkeypatch.setattr(
        GGUF, "read_into", lambda self, n, lo, hi, out: (read.add((n, lo)), real(self, n, lo, hi, out))[1]
    )
    gradients(trainee, stream([2], silent=0.0))
    found = [lo for n, lo in read if n == "blk.1.ffn_up_exps.weight"]
    assert 3 <= len(found) <= 6 and all(lo % 32 == 0 for lo in found)  # two tokens at three experts each


@pytest.mark.parametrize("name, how", [("qwen3moe", "blocks"), ("gpt-oss", "blocks"), ("qwen3moe", "stream")])
def test_decoding_is_the_whole(files, name, how):
    model, ids = load(files[name], device="webgpu"), np.random.default_rng(4).integers(5, 300, 24).tolist()
    model.hold(how)
    whole, decoder = model.logits(ids), model.decoder(batch=1, context=64)
    np.testing.assert_allclose(decoder.feed([ids[:18]])[0], whole[17], rtol=1e-3, atol=1e-3)
    for at in range(18, 24):
        np.testing.assert_allclose(decoder.feed([[ids[at]]])[0], whole[at], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("limit", [None, 16384])
def test_every_tensor_of_gpt_oss(files, limit):
    """Experts' matrices and biases, routers and sinks are trained too."""
    full.check_gradients(files["gpt-oss"], 0.99999, 1e-5, engine=opened(limit))


@pytest.mark.parametrize("router", [Router(4096, 2), Router(1024, 2, groups=512, near=2)])
def test_more_experts_than_a_kernel_takes_are_refused(router):
    e = opened(None)
    e.begin(np.array([0, 1], np.int32), 1, (0, 0, 0))
    with pytest.raises(UserError, match="--device webgpu"):
        e.route(e.lower(np.zeros((1, router.experts), np.float32)), None, router)
