"""The torch engine's reading of blocks: plain torch bit for bit, and Triton's kernels against it.

Without a card the kernels run in Triton's interpreter, whose bf16 products are wrong: float16 there.
"""

import numpy as np
import pytest

from anytune.gguf import BLOCKS
from anytune.gguf import dequantize as reference
from tests.gguf.test_blocks import PEERS, assert_bits, blocks_of
from tests.support.blocks import SCALES
from tests.support.require import need
from tests.support.triton import DEVICE, triton_module

torch = need("torch")

from anytune.engine.torch import blocks  # noqa: E402

CUTS = 0.0 if DEVICE == "cuda" else 2**-7  # the interpreter cuts bf16 off where the card rounds
HALF = torch.bfloat16 if DEVICE == "cuda" else torch.float16
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PRODUCTS = ["F32", "F16", "BF16", "Q8_0", "Q1_0", "Q2_0", "Q4_0", "Q4_1", "Q5_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ2_S"]
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # infinities and NaN among the scales


def rows_of(name, rows, columns=None, seed=0):
    """Random blocks uint8 [rows, row_bytes] with every notable scale, and what they mean."""
    block = BLOCKS[name]
    per_row = (columns or (96 if block.block_size == 1 else 3 * block.block_size)) // block.block_size
    raw = blocks_of(name, rows * per_row, seed).reshape(rows, per_row * block.type_size)
    return raw, reference(raw, name)


def sane_rows_of(name, rows, columns, seed=0):
    """As rows_of, with weights of about one: fit to be multiplied."""
    rng = np.random.default_rng(seed)
    block = BLOCKS[name]
    if block.block_size == 1:
        weights = torch.from_numpy(rng.standard_normal((rows, columns)).astype(np.float32))
        kind = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
        raw = weights.to(kind).view(torch.uint8).numpy()
    else:
        raw = rng.integers(0, 256, (rows * columns // block.block_size, block.type_size), dtype=np.uint8)
        for at in SCALES[name]:
            scales = rng.uniform(0.5, 2, len(raw)) / {"Q4_K": 400, "Q6_K": 2000, "IQ4_XS": 2000}.get(name, 60)
            raw[:, at : at + 2] = scales.astype("<f2").view(np.uint8).reshape(-1, 2)
        raw = raw.reshape(rows, -1)
    return on_device(raw), on_device(reference(raw, name))


def on_device(array):
    return torch.from_numpy(np.array(array)).to(DEVICE)


def assert_same(got, want, rounding=0.0):
    """Equal tensors, NaN included; `rounding`: by how much of a value bf16 may differ (and by any denormal)."""
    assert got.dtype == want.dtype and got.shape == want.shape
    bound = rounding if got.dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(got, want, rtol=bound, atol=1e-38 if bound else 0.0, equal_nan=True)


@pytest.fixture(scope="module")
def dequant():
    triton_module()
    from anytune.engine.torch.kernels import dequant

    return dequant


@pytest.fixture(scope="module")
def gemv():
    triton_module()
    from anytune.engine.torch.kernels import gemv

    return gemv


@pytest.mark.parametrize("name", PEERS)
def test_plain_torch_equals_the_reference(name):
    raw, want = rows_of(name, 64)
    assert_bits(blocks.dequantize(on_device(raw), name).cpu().numpy(), want)
    for dtype in DTYPES[1:]:
        assert_same(blocks.dequantize(on_device(raw), name, dtype), on_device(want).to(dtype))


def test_plain_torch_works_in_chunks_on_slices_and_on_nothing(monkeypatch):
    raw, want = rows_of("Q5_K", 7)
    device = on_device(raw)
    assert blocks.dequantize(device[:0], "Q5_K").shape == (0, want.shape[1])
    monkeypatch.setattr(blocks, "CHUNK", 2 * want.shape[1])
    assert_bits(blocks.dequantize(device, "Q5_K").cpu().numpy(), want)
    wide = torch.zeros((7, want.shape[1] + 9), device=DEVICE)
    blocks.dequantize_into(device[1:6], "Q5_K", wide[1:6, 4:-5])
    assert_bits(wide[1:6, 4:-5].cpu().numpy(), want[1:6])
    assert not wide[:, :4].any() and not wide[:, -5:].any() and not wide[0].any()
    one = device[2:3, BLOCKS["Q5_K"].type_size :]  # a single row, in the middle of the bytes
    assert_bits(blocks.dequantize(one, "Q5_K").cpu().numpy(), want[2:3, 256:])


@pytest.mark.parametrize(
    "ids", [torch.tensor([3, 0, 3]), torch.tensor([[1, 2]], dtype=torch.int32)], ids=["long", "int"]
)
def test_plain_gather(ids):
    raw, want = rows_of("Q4_1", 4)
    expected = on_device(want)[ids.to(DEVICE).long()]
    assert_same(blocks.gather(on_device(raw), ids.to(DEVICE), "Q4_1", torch.float16, 1.5), (expected * 1.5).half())
    out = torch.zeros((ids.numel(), want.shape[1] + 8), device=DEVICE)
    blocks.gather_into(on_device(raw), ids.reshape(-1).to(DEVICE), "Q4_1", out[:, :-8])
    assert_same(out[:, :-8], expected.reshape(ids.numel(), -1))


def test_plain_torch_refuses_what_are_no_rows_of_blocks():
    for raw, name in (
        (torch.zeros((2, 17), dtype=torch.uint8), "Q4_0"),
        (torch.zeros((2, 18)), "Q4_0"),
        (torch.zeros((2, 8), dtype=torch.uint8), "I32"),
    ):
        with pytest.raises(ValueError, match="needs uint8 rows"):
            blocks.dequantize(raw, name)
    with pytest.raises(ValueError, match="no .* weights"):
        blocks.dequantize_into(torch.zeros((2, 18), dtype=torch.uint8), "Q4_0", torch.zeros((2, 33)))


def test_triton_reads_every_type(dequant):
    assert set(dequant.SUPPORTED) == set(PEERS) == set(blocks.TYPES)


@pytest.mark.parametrize("name", PEERS)
def test_triton_dequantizes_into_a_slice(dequant, name):
    """Bit for bit, at 16-byte and at 2-byte alignment, and nothing beside the slice is written."""
    raw, want = rows_of(name, 5)
    n = want.shape[1]
    for dtype, left, shift in zip([*DTYPES, torch.float32], (8, 16, 3, 4), (0, 0, 4 if name == "F32" else 2, 0)):
        space = torch.zeros(raw.size + 16, dtype=torch.uint8, device=DEVICE)
        device = space[shift : shift + raw.size].view(raw.shape)
        device.copy_(on_device(raw))
        out = torch.full((5, n + 32), 7.0, dtype=dtype, device=DEVICE)
        dequant.dequantize(device, name, out[:, left : left + n])
        assert_same(out[:, left : left + n], on_device(want).to(dtype), CUTS)
        assert (out[:, :left] == 7).all() and (out[:, left + n :] == 7).all()


def test_triton_dequantizes_wide_and_odd_matrices(dequant):
    """More than one program each way; plain numbers whose rows are no multiple of eight go the plain way."""
    for name, rows, columns in (("Q8_0", 9, 2080), ("BF16", 5, 1032), ("F16", 3, 13)):
        raw, want = rows_of(name, rows, columns)
        out = torch.zeros((rows, columns), device=DEVICE)
        dequant.dequantize(on_device(raw), name, out)
        assert_same(out, on_device(want))
    dequant.dequantize(on_device(raw)[:0], name, out[:0])
    with pytest.raises(ValueError, match="adjacent columns"):
        dequant.dequantize(on_device(rows_of("Q8_0", 2, 64)[0]), "Q8_0", torch.zeros((2, 32), device=DEVICE))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "F16"])
def test_parts_of_a_tensor_lie_apart(dequant, name):
    """Matrices of experts go into a wider matrix each, by rows in order and by number."""
    raw, want = rows_of(name, 6)
    n, ids = want.shape[1], torch.tensor([4, 5, 4, 5, 0, 1], device=DEVICE)
    for module in (dequant, blocks):
        out = torch.full((3, 5, n + 16), 7.0, device=DEVICE)
        (module.dequantize if module is dequant else module.dequantize_into)(on_device(raw), name, out[:, 1:3, 8:-8])
        assert_same(out[:, 1:3, 8:-8].reshape(6, n), on_device(want))
        assert (out[:, 0] == 7).all() and (out[:, 3:] == 7).all() and (out[:, :, :8] == 7).all()
        (module.gather if module is dequant else module.gather_into)(on_device(raw), ids, name, out[:, 1:3, 8:-8], 1.0)
        assert_same(out[:, 1:3, 8:-8].reshape(6, n), on_device(want)[ids])


@pytest.mark.parametrize("name", ["Q8_0", "Q6_K", "IQ3_S", "F16"])
def test_triton_gathers(dequant, name):
    raw, want = rows_of(name, 6)
    for dtype, kind in ((torch.float32, torch.int64), (torch.bfloat16, torch.int32)):
        ids = torch.tensor([5, 0, 5, 2], dtype=kind, device=DEVICE)
        out = torch.full((4, want.shape[1] + 16), 7.0, dtype=dtype, device=DEVICE)
        dequant.gather(on_device(raw), ids, name, out[:, :-16], 0.3)
        assert_same(out[:, :-16], blocks.gather(on_device(raw), ids, name, dtype, 0.3), CUTS)
        assert (out[:, -16:] == 7).all()


def assert_product(got, x, weights, down, up, unit):
    """Within `unit` of the product of the magnitudes, which is what rounding the factors can make."""
    x, weights = x.double(), weights.double()
    want, size = x @ weights.T, x.abs() @ weights.abs().T
    if down is not None:
        want, size = want + down.double() @ up.double().T, size + down.double().abs() @ up.double().abs().T
    assert ((got.double() - want).abs() <= unit * size + 1e-6).all(), ((got.double() - want).abs() / size).max()


def product_of(tokens, rows, columns, rank, dtype):
    """x with a row stride, out with another, and a low-rank pair (or None, None)."""
    rng = np.random.default_rng(tokens + rank)
    x = on_device(rng.standard_normal((tokens, columns + 16)).astype(np.float32)).to(dtype)[:, :columns]
    out = torch.full((tokens, rows + 3), 7.0, device=DEVICE)
    if not rank:
        return x, out, None, None
    down, up = (on_device(rng.standard_normal((size, rank)).astype(np.float32)) for size in (tokens, rows))
    return x, out, down, up


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("tokens, rank", [(1, 0), (1, 5), (3, 0), (20, 8)])
def test_triton_multiplies(gemv, name, tokens, rank):
    rows, columns = 5 if tokens == 1 else 67, 768
    raw, weights = sane_rows_of(name, rows, columns)
    x, out, down, up = product_of(tokens, rows, columns, rank, HALF)
    gemv.gemv(x, raw, name, out[:, :rows], down, up)
    assert_product(out[:, :rows], x, weights, down, up, 1e-6 if tokens == 1 else 2**-8)
    assert (out[:, rows:] == 7).all()


@pytest.mark.parametrize("tokens", [1, 70])
def test_triton_multiplies_float32_and_whole_rows(gemv, tokens, monkeypatch):
    """More rows of x than a program takes, no split of the columns, a pair in half precision, and half outputs."""
    monkeypatch.setattr(gemv, "PROCESSORS", 1)
    raw, weights = sane_rows_of("Q8_0", 8, 544)
    x, out, down, up = product_of(tokens, 8, 544, 4, torch.float32)
    gemv.gemv(x, raw, "Q8_0", out[:, :8], down, up.to(HALF))
    assert_product(out[:, :8], x, weights, down, up.to(HALF), 1e-5)
    half = torch.zeros((tokens, 8), dtype=HALF, device=DEVICE)
    gemv.gemv(x, raw, "Q8_0", half, down, up.to(HALF))
    assert_product(half, x, weights, down, up.to(HALF), 2**-8)


def test_a_product_repeats_bit_for_bit(gemv):
    raw, _ = sane_rows_of("Q4_K", 33, 1024)
    x, out, down, up = product_of(3, 33, 1024, 4, HALF)
    gemv.gemv(x, raw, "Q4_K", out[:, :33], down, up)
    first = out.clone()
    gemv.gemv(x, raw, "Q4_K", out[:, :33], down, up)
    assert torch.equal(out, first)


def test_a_product_that_does_not_fit_is_refused(gemv):
    raw, _ = sane_rows_of("Q8_0", 4, 64)
    for x, out in ((torch.zeros((1, 32)), torch.zeros((1, 4))), (torch.zeros((1, 64)), torch.zeros((1, 5)))):
        with pytest.raises(ValueError, match="no product"):
            gemv.gemv(x.to(DEVICE), raw, "Q8_0", out.to(DEVICE))
