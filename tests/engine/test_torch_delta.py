"""The gated delta net's Triton kernels against plain torch, which test_delta.py compares with float64."""

import numpy as np
import pytest

from anytune.engine.base import DeltaHeads
from anytune.engine.answers import error
from tests.support.require import need
from tests.support.triton import DEVICE, triton_module

torch = need("torch")
triton_module()
from anytune.engine.torch import plain as plain_rows  # noqa: E402
from anytune.engine.torch import plain_convolution  # noqa: E402
from anytune.engine.torch import plain_delta as plain  # noqa: E402
from anytune.engine.torch.kernels import convolution, gates  # noqa: E402
from anytune.engine.torch.kernels import delta as kernels  # noqa: E402
from anytune.engine.torch.kernels import delta_backward as kernels_backward  # noqa: E402
from tests.engine.test_delta import drawn  # noqa: E402

# the interpreter multiplies no bfloat16
LIMITS = {torch.float32: 2e-5, (torch.bfloat16 if DEVICE == "cuda" else torch.float16): 3e-2}
SIZES = [(128, 128), (65, 100), (128, 66)] if DEVICE == "cuda" else [(4, 4), (5, 3), (16, 33)]
DTYPES = [torch.bfloat16] if DEVICE == "cuda" else [*LIMITS]  # of the net itself
SHAPES = [DeltaHeads(*heads, *sizes, 1e-2) for heads, sizes in zip([(1, 1), (1, 3), (2, 2)], SIZES)]
# examples end within a chunk, at its end, and several in one; some are longer than a segment
LENGTHS = [(1,), (64,), (300,), (10, 54, 1, 3, 140, 64, 7), (128, 129, 60)]
CASES = [*((SHAPES[0], n) for n in LENGTHS), (SHAPES[1], LENGTHS[3]), (SHAPES[2], LENGTHS[4])]


class Stream:
    """Inputs as columns of wider buffers, every result poisoned and with two columns beside it."""

    def __init__(self, heads, lengths, dtype, seed=0):
        random, self.heads, self.lengths = np.random.default_rng(seed), heads, lengths
        inputs, weights, dy = drawn(random, sum(lengths), heads)
        self.inputs = [self.wide(z, dtype) for z in inputs]
        self.dy, self.dtype = self.wide(dy, dtype), dtype
        self.weights = [torch.tensor(w, device=DEVICE) for w in weights]
        starts = np.cumsum([0, *lengths[:-1]])
        self.first = torch.tensor(np.repeat(starts, lengths), dtype=torch.int32, device=DEVICE)

    def wide(self, values, dtype):
        values = torch.as_tensor(values, device=DEVICE)
        room = torch.full((len(values), values.shape[1] + 2), torch.nan, dtype=dtype, device=DEVICE)
        room[:, : values.shape[1]] = values
        return room[:, : values.shape[1]]

    def poisoned(self, x):
        return self.wide(torch.full(x.shape, torch.nan), self.dtype)

    def run(self, delta, delta_backward):
        """(y, dx, dbeta, dalpha, gradients of a, bias, gain)."""
        out, grads = self.poisoned(self.dy), [self.poisoned(z) for z in self.inputs]
        into = [torch.ones_like(w) for w in self.weights]
        delta(*self.inputs, self.weights, self.heads, self.first, out)
        delta_backward(self.dy, *self.inputs, self.weights, self.heads, self.first, grads, into)
        for made in (out, *grads):
            assert made._base[:, made.shape[1] :].isnan().all()
        return [z.float().cpu().numpy() for z in (out, *grads, *into)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads,lengths", CASES, ids=str)
def test_kernels_agree_with_plain_torch(heads, lengths, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "SPAN", 2)
    stream = Stream(heads, lengths, dtype)
    wanted = stream.run(plain.delta, plain.delta_backward)
    got = stream.run(kernels.delta, kernels_backward.delta_backward)
    for name, a, b in zip(("y", "dx", "dbeta", "dalpha", "da", "dbias", "dgain"), got, wanted):
        # da and dbias are sums over all tokens, which cancel
        if dtype != torch.float32:
            assert error(a, b) < (0.2 if name in ("da", "dbias") else 5e-2), name
        else:
            assert error(a, b) < (1e-3 if name in ("da", "dbias") else 2e-5), name


@pytest.mark.parametrize("at", [64, 100])
def test_a_stream_goes_on_from_a_state(at):
    heads, lengths = SHAPES[1], (200,)
    stream = Stream(heads, lengths, DTYPES[0])
    whole, state = stream.poisoned(stream.dy), torch.zeros((3, *SIZES[1]), device=DEVICE)
    before = torch.full((200,), -1, dtype=torch.int32, device=DEVICE)
    end = kernels.delta(*stream.inputs, stream.weights, heads, before, whole, state)
    out = stream.poisoned(stream.dy)
    for rows in (slice(0, at), slice(at, 200)):
        parts = [z[rows] for z in stream.inputs]
        state = kernels.delta(*parts, stream.weights, heads, before[rows], out[rows], state)
    assert error(out.float().cpu().numpy(), whole.float().cpu().numpy()) < (1e-4 if DEVICE == "cpu" else 3e-2)
    assert error(state.cpu().numpy(), end.cpu().numpy()) < (1e-4 if DEVICE == "cpu" else 3e-2)


def test_examples_are_what_they_are_alone():
    """To the bit, wherever programs begin; and nothing of another example reaches a gradient."""
    heads, lengths = SHAPES[1], (10, 70, 20)
    stream = Stream(heads, lengths, DTYPES[0])
    whole = stream.run(kernels.delta, kernels_backward.delta_backward)
    for z in (*stream.inputs, stream.dy):
        z[80:] *= 3
    again = stream.run(kernels.delta, kernels_backward.delta_backward)
    for a, b in zip(whole[:4], again[:4]):
        np.testing.assert_array_equal(a[:80], b[:80])
        assert not np.array_equal(a[80:], b[80:])


@pytest.mark.skipif(DEVICE != "cuda", reason="needs a card")
@pytest.mark.parametrize("heads", [DeltaHeads(16, 16, 128, 128, 1e-6), DeltaHeads(16, 32, 128, 128, 1e-6)], ids=str)
def test_at_the_sizes_of_a_model(heads):
    stream = Stream(heads, (1024, 700, 3000, 24), torch.bfloat16)
    wanted = stream.run(plain.delta, plain.delta_backward)
    got, again = (stream.run(kernels.delta, kernels_backward.delta_backward) for _ in range(2))
    for name, a, b, c in zip(("y", "dx", "dbeta", "dalpha", "da", "dbias", "dgain"), got, wanted, again):
        cosine = float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))
        assert cosine > 0.999, f"{name}: {cosine}"
        np.testing.assert_array_equal(a, c)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("lengths,width,kernel", [((1,), 1, 2), ((3, 1, 2, 40), 130, 4), ((90, 7), 20, 5)], ids=str)
def test_convolution(lengths, width, kernel, silu, dtype):
    random, stream = np.random.default_rng(0), Stream(SHAPES[0], lengths, dtype)
    draw = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    x, dy = (stream.wide(draw(sum(lengths), width), dtype) for _ in range(2))
    weight, found = torch.tensor(draw(width, kernel), device=DEVICE), []
    for module in (plain_convolution, convolution):
        out, dx, into = stream.poisoned(x), stream.poisoned(x), torch.ones_like(weight)
        module.convolve(x, weight, stream.first, out, silu)
        module.convolve_backward(dy, x, weight, stream.first, dx, silu, into)
        assert all(z._base[:, width:].isnan().all() for z in (out, dx))
        found.append([z.float().cpu().numpy() for z in (out, dx, into)])
    for wanted, got in zip(*found):
        assert error(got, wanted) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 130), (3, 2500)], ids=str)
def test_sigmoid_gates(shape, dtype):
    stream, found = Stream(SHAPES[0], (1,), dtype), []
    x, gate, dy = (stream.wide(3 * torch.randn(shape), dtype) for _ in range(3))
    for module in (plain_rows, gates):
        made = [stream.poisoned(x) for _ in range(3)]
        module.gated(x, gate, made[0])
        module.gated_backward(dy, x, gate, *made[1:])
        assert all(z._base[:, shape[1] :].isnan().all() for z in made)
        found.append([z.float().cpu().numpy() for z in made])
    for wanted, got in zip(*found):
        assert error(got, wanted) < LIMITS[dtype]
