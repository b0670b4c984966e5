"""The torch engine's attention, plain and in Triton, against float64: packed examples, grouped heads, windows, strides.

Without a card Triton's kernels run in its interpreter, on small shapes and small tiles; on a card they run with their
own configs too, and in bfloat16.
"""

import functools

import numpy as np
import pytest

from anytune.engine import reference as ref
from anytune.engine.base import Heads
from anytune.engine.answers import error
from tests.support.require import need
from tests.support.triton import DEVICE, triton_module

torch = need("torch")
triton_module()
from anytune.engine.torch import attention as plain  # noqa: E402
from anytune.engine.torch.kernels import attention as kernels  # noqa: E402
from anytune.engine.torch.kernels import attention_backward as kernels_backward  # noqa: E402
from anytune.engine.torch.kernels import decode_attention  # noqa: E402
from anytune.engine.torch.kernels.attention import Config  # noqa: E402

LIMITS = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}
TILES = {
    "two launches": (Config(32, 16, 4, 1), Config(16, 32, 4, 1), None),
    "one launch": (None, None, Config(16, 32, 4, 1)),
}


class Plain:
    """Plain torch on the CPU, in tiles so small that every shape has several."""

    device = "cpu"

    def __init__(self, monkeypatch):
        monkeypatch.setattr(plain, "SCORES", 500)

    attention = staticmethod(plain.attention)
    attention_backward = staticmethod(plain.attention_backward)


class Tiled:
    """The kernels with tiles of 16 and 32."""

    device = DEVICE

    def __init__(self, mode):
        self.configs = TILES[mode]

    def attention(self, *args):
        return kernels.attention(*args, config=self.configs[0] or Config(16, 32, 4, 1))

    def attention_backward(self, *args):
        kernels_backward.attention_backward(*args, configs=self.configs)


class Kernels:
    """The kernels as the engine calls them."""

    device = DEVICE
    attention = staticmethod(kernels.attention)
    attention_backward = staticmethod(kernels_backward.attention_backward)


@pytest.fixture(params=["plain", *TILES])
def twin(request, monkeypatch):
    return Plain(monkeypatch) if request.param == "plain" else Tiled(request.param)


def dense(q, k, v, dout, starts, heads):
    """(out, log-sums, dq, dk, dv) in float64, from whole matrices of probabilities."""
    tokens = len(q)
    q, k, v, dout = (z.astype(np.float64).reshape(tokens, -1, heads.head_dim) for z in (q, k, v, dout))
    see = ref.visible(starts, tokens, heads.window)
    out, dq, dk, dv = (np.zeros_like(z) for z in (q, q, k, v))
    lse = np.zeros((heads.n_heads, tokens))
    for h in range(heads.n_heads):
        g = h // heads.group
        s = np.where(see, q[:, h] @ k[:, g].T * heads.scale, -np.inf)
        lse[h] = np.log(np.exp(s - s.max(1, keepdims=True)).sum(1)) + s.max(1)
        p = np.exp(s - lse[h][:, None])
        out[:, h] = p @ v[:, g]
        dp = dout[:, h] @ v[:, g].T
        ds = p * (dp - (p * dp).sum(1, keepdims=True)) * heads.scale
        dq[:, h], dk[:, g], dv[:, g] = ds @ k[:, g], dk[:, g] + ds.T @ q[:, h], dv[:, g] + p.T @ dout[:, h]
    return (out.reshape(tokens, -1), lse, *(z.reshape(tokens, -1) for z in (dq, dk, dv)))


class Stream:
    """q, k, v as columns of one buffer, dout and every result as columns with `spare` more beside them."""

    def __init__(self, random, lengths, heads, device, dtype=torch.float32, spare=0):
        self.starts = np.cumsum([0, *lengths], dtype=np.int32)
        self.heads, self.device, self.dtype, self.spare = heads, device, dtype, spare
        self.tokens = int(self.starts[-1])
        self.wide, self.narrow = heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim
        first, end = (np.repeat(z, lengths) for z in (self.starts[:-1], self.starts[1:]))
        self.first, self.end = (torch.tensor(z, dtype=torch.int32, device=device) for z in (first, end))
        self.joined, self.dout = (
            torch.tensor(random.standard_normal((self.tokens, n + spare))).to(device, dtype)
            for n in (self.wide + 2 * self.narrow, self.wide)
        )

    def poisoned(self, width):
        return torch.full((self.tokens, width + self.spare), torch.nan, dtype=self.dtype, device=self.device)

    def split(self, joined):
        cut = self.wide + self.narrow
        return joined[:, : self.wide], joined[:, self.wide : cut], joined[:, cut : cut + self.narrow]

    def run(self, twin):
        """-> (out, log-sums, dq, dk, dv), checked to have left the spare columns alone."""
        qkv, dout = self.split(self.joined), self.dout[:, : self.wide]
        made, grads = self.poisoned(self.wide), self.poisoned(self.wide + 2 * self.narrow)
        out, bounds = made[:, : self.wide], (self.first, self.end, self.starts, self.heads)
        lse = twin.attention(*qkv, *bounds, out)
        assert lse.shape == (self.heads.n_heads, self.tokens) and lse.dtype == torch.float32
        twin.attention_backward(dout, *qkv, out, lse, *bounds, *self.split(grads))
        if self.spare:
            assert made[:, -self.spare :].isnan().all() and grads[:, -self.spare :].isnan().all()
        return out, lse, *self.split(grads)

    def wanted(self):
        return dense(
            *(numpy(z) for z in (*self.split(self.joined), self.dout[:, : self.wide])), self.starts, self.heads
        )

    def check(self, twin):
        for name, got, want in zip(("out", "lse", "dq", "dk", "dv"), self.run(twin), self.wanted()):
            got = numpy(got)
            assert np.isfinite(got).all(), name
            # a gradient may be nothing but rounding (a window of one key has none in q): measure against dout too
            scale = np.linalg.norm(want) + 0.1 * np.linalg.norm(numpy(self.dout[:, : self.wide]))
            found = np.linalg.norm(got - want) / scale
            assert found <= LIMITS[self.dtype], f"{name}: relative error {found:.2e}"


def numpy(x):
    return x.detach().float().cpu().numpy()


def draw(seed):
    """(random, lengths, heads) of a shape drawn at random; some examples have one token."""
    random = np.random.default_rng(seed)
    keys, group = int(random.integers(1, 3)), int(random.choice([1, 2, 3, 4, 7]))
    size, window = int(random.choice([2, 6, 16, 33, 64, 80])), int(random.choice([0, 0, 1, 5, 100]))
    lengths = [int(n) for n in random.choice([1, 2, 5, 17, 31], size=int(random.integers(1, 5)))]
    return random, lengths, Heads(keys * group, keys, size, window, float(random.uniform(0.1, 1)))


def test_the_dense_formulas():
    """What everything below is held against: the reference's output, and the slopes of it."""
    random, lengths, heads = np.random.default_rng(3), [1, 9, 13], Heads(4, 2, 6, 5, 0.4)
    s = Stream(random, lengths, heads, "cpu")
    qkv, dout = [numpy(z).astype(np.float64) for z in s.split(s.joined)], numpy(s.dout)
    out, _, *grads = dense(*qkv, dout, s.starts, heads)
    assert error(out, ref.attention(*qkv, s.starts, heads)) < 1e-12
    for index, grad in enumerate(grads):
        direction = random.standard_normal(grad.shape)

        def moved(t):
            parts = [z + t * direction if i == index else z for i, z in enumerate(qkv)]
            return float(np.sum(ref.attention(*parts, s.starts, heads) * dout))

        slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
        assert float(np.sum(grad * direction)) == pytest.approx(slope, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("seed", range(16))
def test_plain_on_random_shapes(seed, monkeypatch):
    random, lengths, heads = draw(seed)
    if seed % 2:
        lengths = [3 * n for n in lengths]
    for dtype in (torch.float32, torch.bfloat16):
        Stream(random, lengths, heads, "cpu", dtype, int(random.integers(0, 6))).check(Plain(monkeypatch))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("mode", TILES)
def test_kernels_on_random_shapes(seed, mode):
    """Rows that are aligned to nothing, which are read through pointers, and rows of 16 bytes."""
    random, lengths, heads = draw(100 + seed)
    Stream(random, lengths, heads, DEVICE, spare=int(random.choice([0, 1, 4]))).check(Tiled(mode))


@pytest.mark.parametrize("mode", TILES)
@pytest.mark.parametrize(
    "lengths, heads",
    [
        ([1, 37, 2, 30], Heads(4, 2, 16, 0, 0.25)),  # tiles with several examples; interior tiles
        ([70], Heads(2, 1, 16, 0, 0.3)),
        ([70], Heads(2, 2, 16, 20, 0.3)),  # a window that leaves tiles without masks and skips others
        ([3, 40], Heads(3, 1, 80, 5, 0.2)),  # columns of the next head behind those of this one
        ([33], Heads(4, 1, 128, 0, 0.1)),
    ],
)
def test_kernels_on_aligned_streams(lengths, heads, mode, monkeypatch):
    """Read through descriptors. float16 in the interpreter, whose bfloat16 products are wrong. New memory holds NaN."""
    empty = torch.Tensor.new_empty

    def poisoned(*args, **more):
        made = empty(*args, **more)
        return made.fill_(torch.nan) if made.is_floating_point() else made

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)
    random = np.random.default_rng(sum(lengths))
    for dtype in (torch.float32, torch.float16):
        Stream(random, lengths, heads, DEVICE, dtype, spare=8).check(Tiled(mode))


@pytest.mark.parametrize("size", [64, 260])  # the latter is wider than any tile
def test_float32_as_the_engine_calls_it(size):
    Stream(np.random.default_rng(1), [3, 30], Heads(2, 1, size, 7, 0.1), DEVICE, spare=4).check(Kernels())


def test_examples_do_not_see_each_other(twin):
    """Changing one example changes nothing in another's output or gradients, to the bit."""
    results, random = [], np.random.default_rng(0)
    s = Stream(random, [9, 21], Heads(4, 2, 16, 0, 0.3), twin.device)
    for _ in range(2):
        results.append([numpy(z)[:, :9] if z.shape[0] == 4 else numpy(z)[:9] for z in s.run(twin)])
        s.joined[9:], s.dout[9:] = 7 - 3 * s.joined[9:], 2 + s.dout[9:]
    for before, after in zip(*results):
        np.testing.assert_array_equal(before, after)


def test_results_repeat_to_the_bit(twin):
    s = Stream(np.random.default_rng(0), [9, 21], Heads(4, 2, 16, 0, 0.3), twin.device)
    for one, two in zip(s.run(twin), s.run(twin)):
        assert torch.equal(one, two)


def test_nothing_to_do(twin):
    s = Stream(np.random.default_rng(0), [], Heads(4, 2, 16, 0, 0.3), twin.device)
    assert s.run(twin)[1].shape == (4, 0)


@pytest.mark.skipif(DEVICE == "cpu", reason="the kernels' own configs need a card")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "lengths, heads",
    [
        ([128], Heads(16, 8, 128, 0, 0.09)),
        ([1, 127, 500, 63, 333], Heads(16, 8, 128, 0, 0.09)),
        ([700] * 3, Heads(16, 8, 128, 100, 0.09)),
        ([1500, 1, 600], Heads(14, 2, 64, 0, 0.125)),
        ([100, 3], Heads(14, 2, 64, 0, 0.125)),
        ([1300, 200], Heads(4, 1, 256, 512, 0.0625)),
        ([90, 30], Heads(4, 1, 256, 512, 0.0625)),
        ([1000, 24], Heads(12, 4, 80, 0, 0.11)),
        ([200, 100], Heads(8, 8, 96, 0, 0.1)),
        ([200, 100], Heads(6, 3, 33, 40, 0.2)),  # through pointers
        ([300, 20], Heads(4, 4, 16, 0, 0.25)),
    ],
)
def test_kernels_as_the_engine_calls_them(lengths, heads, dtype):
    random = np.random.default_rng(sum(lengths))
    Stream(random, lengths, heads, DEVICE, dtype, spare=8).check(Kernels())


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a card")
@pytest.mark.parametrize("size", [64, 128, 256])
def test_float32_in_tf32(size, monkeypatch):
    class Rounded:
        attention = staticmethod(functools.partial(kernels.attention, tf32=True))
        attention_backward = staticmethod(functools.partial(kernels_backward.attention_backward, tf32=True))

    monkeypatch.setitem(LIMITS, torch.float32, 5e-3)
    Stream(np.random.default_rng(size), [130, 1, 300], Heads(4, 2, size, 0, 0.1), DEVICE).check(Rounded())


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a card")
@pytest.mark.parametrize("tokens", [300, 2500])
def test_a_recorded_graph_serves_other_examples(tokens):
    """Boundaries are read on the device: a graph replayed with others gives what a call with them gives."""
    heads, random = Heads(16, 8, 128, 0, 0.09), np.random.default_rng(0)
    one = Stream(random, [tokens], heads, DEVICE, torch.bfloat16)
    two = Stream(random, [tokens // 3, tokens - tokens // 3], heads, DEVICE, torch.bfloat16)
    one.run(Kernels())
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        recorded = one.run(Kernels())
    for name in ("joined", "dout", "first", "end"):
        getattr(one, name).copy_(getattr(two, name))
    graph.replay()
    for got, want in zip(recorded, two.run(Kernels())):
        assert torch.equal(got, want)


@pytest.mark.parametrize("window", [0, 5, 100])
@pytest.mark.parametrize("group, size", [(2, 16), (3, 33), (1, 80)])
def test_caches(window, group, size):
    """Plain against float64 with several new tokens a sequence; the kernels against plain with one."""
    random, heads = np.random.default_rng(window + size), Heads(2 * group, 2, size, window, 0.3)
    context, lengths = 150, [1, 8, 149]
    keys, values = (
        torch.tensor(random.standard_normal((5, context, 2 * size)), dtype=torch.float32, device=DEVICE)
        for _ in range(2)
    )
    for slot, length in zip((4, 0, 2), lengths):  # keys that nobody may see
        keys[slot, length:], values[slot, length:] = 1e30, torch.nan
    slots = [(4, 0, 1, 0), (0, 1, 6, 3), (2, 6, 9, 146)]
    q = torch.tensor(random.standard_normal((9, heads.n_heads * size + 3)), dtype=torch.float32, device=DEVICE)[:, :-3]
    out = torch.full((9, heads.n_heads * size + 1), torch.nan, device=DEVICE)[:, :-1]
    plain.attend_cache(q, keys, values, slots, heads, out)
    for slot, low, high, position in slots:
        near, last = max(0, position + 1 - window) if window else 0, position + high - low
        wide = np.zeros((last - near, heads.n_heads * size))
        wide[-(high - low) :] = numpy(q[low:high])
        want = ref.attention(wide, *(numpy(x[slot, near:last]) for x in (keys, values)), [0, last - near], heads)
        assert error(numpy(out[low:high]), want[-(high - low) :]) < LIMITS[torch.float32]
    rows, where = [0, 5, 8], torch.tensor([4, 0, 2], dtype=torch.int32, device=DEVICE)
    seen = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    for dtype in (torch.float32, torch.float16):
        got = torch.full((3, heads.n_heads * size + 1), torch.nan, device=DEVICE, dtype=dtype)[:, :-1]
        decode_attention.attend_cache(q[rows].to(dtype), keys.to(dtype), values.to(dtype), where, seen, heads, got)
        assert error(numpy(got), numpy(out[rows])) < LIMITS[dtype]


def test_an_empty_cache_gives_nothing():
    keys, q = torch.ones((1, 40, 16), device=DEVICE), torch.ones((1, 16), device=DEVICE)
    out, none = torch.full_like(q, torch.nan), torch.zeros(1, dtype=torch.int32, device=DEVICE)
    decode_attention.attend_cache(q, keys, keys, none, none, Heads(1, 1, 16, 0, 1.0), out)
    assert (out == 0).all()
