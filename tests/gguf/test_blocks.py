"""Block formats against the `gguf` package or llama.cpp, bit for bit, and the kernels against the table."""

import subprocess
import sys

import numpy as np
import pytest

from anytune.gguf import BLOCKS, dequantize, quantize
from anytune.gguf import kernels as kernels_module
from tests.support import ggml
from tests.support.blocks import SCALES
from tests.support.require import need

PEERS = [name for name in BLOCKS if name not in ("I8", "I16", "I32", "I64", "F64")]  # the package reads these
QUANTIZED = [name for name, block in BLOCKS.items() if block.quantize]
# Zero, the smallest and largest denormal, the smallest normal, 1, the largest, infinity, NaN; the negatives.
NEOX = [h | s for h in (0, 1, 0x3FF, 0x400, 0x3C00, 0x7BFF, 0x7C00, 0x7E00, 0x7C01) for s in (0, 0x8000)]


def blocks_of(name, count=512, seed=0):
    """uint8 [count, type_size]: random bytes, with every notable scale among them."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (count, BLOCKS[name].type_size), dtype=np.uint8)
    for place in SCALES.get(name, ()):
        neox = rng.permutation(np.repeat(np.array(NEOX, "<u2"), 2))[:count]
        raw[: len(neox), place : place + 2] = neox.view(np.uint8).reshape(-1, 2)
    return raw


def assert_bits(got, want):
    """Equal bit for bit; NaN equals NaN, whose payload nobody defines."""
    assert got.dtype == want.dtype == np.float32 and got.shape == want.shape
    same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
    assert same.all(), f"{(~same).sum()} of {same.size} differ, first at {np.argwhere(~same)[0]}"


def theirs(name):
    gguf = need("gguf")
    kind = gguf.GGMLQuantizationType[name]
    return gguf.quants, kind


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_dequantize_equals_the_gguf_package(name):
    """Or llama.cpp, for formats that the package cannot read."""
    raw = blocks_of(name)
    if name in ("Q1_0", "Q2_0"):
        want = ggml.dequantize(raw, name)
    else:
        quants, kind = theirs(name)
        want = quants.dequantize(raw.copy(), kind).reshape(len(raw), -1)
    assert np.isfinite(want).mean() > 0.5
    assert_bits(dequantize(raw, name), want)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_quantize_equals_the_gguf_package(name):
    """Ordinary rows, rows of zeros, single spikes, ties, and from denormal to huge."""
    quants, kind = theirs(name)
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((600, 64)) * 10.0 ** rng.integers(-9, 5, (600, 1))).astype(np.float32)
    x[0] = 0
    x[1], x[1, 3] = 0, -7
    x[2] = np.tile([1, -1], 32)
    x[3] = np.arange(64) - 31.5
    x[4] = -0.0
    x[5] = 1e-42
    want = quants.quantize(x.copy(), kind).view(np.uint8)
    assert np.array_equal(quantize(x, name), want.reshape(600, -1))


def test_bf16_rounds_as_the_gguf_package():
    """Every upper half with lower halves around a tie: to the even one; NaN keeps its bits, and stays NaN."""
    quants, kind = theirs("BF16")
    bits = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16 | np.array(
        [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32
    )
    x = bits.view(np.float32)
    want = quants.quantize(x.copy(), kind).view(np.uint8)
    assert np.array_equal(quantize(x, "BF16"), want)


@pytest.mark.parametrize("name", BLOCKS)
def test_names_and_sizes_are_llama_cpps(name):
    block = BLOCKS[name]
    assert (ggml.type_name(block.id), ggml.size(name)) == (name, (block.block_size, block.type_size))


def test_no_format_of_files_is_missing():
    """Q8_1 and Q8_K are activations, which no file holds."""
    known = need("gguf").GGMLQuantizationType.__members__
    assert known.keys() - BLOCKS.keys() == {"Q8_1", "Q8_K"}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantizing_twice_changes_nothing(name):
    """What a format can hold exactly, it holds."""
    rng = np.random.default_rng(2)
    once = quantize(rng.standard_normal((50, 64)).astype(np.float32), name)
    weights = dequantize(once, name)
    error = np.abs(dequantize(quantize(weights, name), name) - weights).max()
    assert error <= 2e-3 * np.abs(weights).max()


@pytest.mark.parametrize("name", BLOCKS)
def test_rows_of_any_count_and_layout(name):
    """Chunks, leading axes and strided input do not change a bit."""
    block = BLOCKS[name]
    raw = blocks_of(name, 8 * 3).reshape(2, 4, -1)
    flat = dequantize(raw.reshape(-1, block.type_size), name)
    assert_bits(dequantize(raw, name), flat.reshape(2, 4, -1))
    assert_bits(dequantize(raw[:, ::2], name), flat.reshape(2, 4, -1)[:, ::2])
    assert dequantize(raw[:0], name).shape == (0, 4, 0)
    long = np.tile(raw.reshape(8, -1), (1, 1 + (1 << 17) // (3 * block.block_size)))
    assert_bits(dequantize(long, name)[:, : 3 * block.block_size], flat.reshape(8, -1))


def test_torn_rows_are_refused():
    with pytest.raises(ValueError, match="rows"):
        dequantize(np.zeros((2, 17), np.uint8), "Q4_0")
    with pytest.raises(ValueError, match="rows"):
        quantize(np.zeros((2, 33), np.float32), "Q4_0")
    with pytest.raises(ValueError, match="no quantizer"):
        quantize(np.zeros((2, 256), np.float32), "Q4_K")


def check_kernel(convert, name):
    """Strided rows at an offset, some blocks of each; read-only input; nothing beside them is written."""
    block = BLOCKS[name]
    per_row, rows = (5, 7) if block.block_size > 1 else (53, 7)  # 53: three times 16 lanes, and 5 more
    raw = blocks_of(name, per_row * rows).reshape(rows, -1)
    pad, margin = 3, 5
    src = np.concatenate([raw, np.full((rows, pad), 255, np.uint8)], axis=1).ravel()
    src.flags.writeable = False
    width = per_row * block.block_size
    dst = np.full((rows, width + margin), 7, np.float32)
    want = dequantize(raw, name)
    row = raw.shape[1] + pad
    convert(src, row, 0, dst.ravel(), width + margin, 2, rows, per_row)
    assert_bits(np.ascontiguousarray(dst[:, 2 : 2 + width]), want)
    assert (dst[:, :2] == 7).all() and (dst[:, 2 + width :] == 7).all()
    # From the second row on, all but the first block.
    dst[:] = 7
    convert(src, row, row + block.type_size, dst.ravel(), width + margin, 0, rows - 1, per_row - 1)
    assert_bits(np.ascontiguousarray(dst[:-1, : width - block.block_size]), want[1:, block.block_size :])
    assert (dst[-1] == 7).all()
    dst[:] = 7
    convert(src, row, 0, dst.ravel(), width + margin, 0, 0, per_row)
    convert(src, row, 0, dst.ravel(), width + margin, 0, rows, 0)
    assert (dst == 7).all()


@pytest.mark.parametrize("name", BLOCKS)
def test_kernels_equal_the_table(name):
    need("numba")
    check_kernel(kernels_module.KERNELS[name], name)


@pytest.mark.parametrize("name", BLOCKS)
def test_kernels_without_numba_equal_the_table(name):
    check_kernel(kernels_module._plain(name), name)


def test_common_formats_have_compiled_kernels():
    kernels_numba = need("anytune.gguf.kernels_numba")
    common = "F32 F16 BF16 Q1_0 Q2_0 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL"
    assert set(common.split()) <= kernels_numba.FUNCTIONS.keys()
    assert kernels_numba.kernel("NVFP4") is None


def test_numba_is_imported_only_for_a_kernel_and_may_be_missing():
    """Importing, reading and dequantizing do not pay for numba; without it the mapping still works."""
    program = (
        "import sys\n"
        "import numpy as np\n"
        "from anytune.gguf import dequantize\n"
        "from anytune.gguf.kernels import KERNELS\n"
        "dequantize(np.zeros((1, 18), np.uint8), 'Q4_0')\n"
        "assert 'numba' not in sys.modules and len(KERNELS) > 20 and 'Q4_0' in KERNELS\n"
        "assert 'numba' not in sys.modules\n"
        "sys.modules['numba'] = None\n"
        "out = np.ones(32, np.float32)\n"
        "KERNELS['Q4_0'](np.zeros(18, np.uint8), 18, 0, out, 32, 0, 1, 1)\n"
        "assert (out == 0).all()\n"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
