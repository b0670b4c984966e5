"""Every format that can be written: against llama.cpp's own quantizers, and the compiled code against NumPy."""

import numpy as np
import pytest

from anytune.gguf import BLOCKS, dequantize
from anytune.gguf.encode import NAMES, encode
from anytune.gguf.encode.importance import weigh
from anytune.gguf.encode.nearest import FUNCTIONS
from anytune.gguf.encode.searched import SEARCHES
from tests.support import ggml

NEAREST = [name for name in FUNCTIONS if name != "F32"]
BOTH_WAYS = [(name, True) for name in SEARCHES] + [(name, False) for name in SEARCHES if name not in FUNCTIONS]


def odd_rows() -> np.ndarray:
    """float32 [64, 512]: of all sizes, zeros of both signs, spikes, ties, denormals, next to powers of two."""
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((64, 512)) * 10.0 ** rng.integers(-9, 4, (64, 1))).astype(np.float32)
    x[0], x[1], x[2] = 0, -0.0, 1e-42
    x[3], x[3, 3] = 0, -7
    x[4] = np.tile([1, -1], 256)
    x[5] = np.arange(512) - 255.5
    x[6] = np.tile([1, -1, 0.5, -0.5, 2.5, -2.5, 1.75, -0.75], 64)
    x[7], x[8] = np.nextafter(np.float32(2**-6), np.float32(0)), np.nextafter(np.float32(1), np.float32(0))
    return x


def heavy_tailed(rows: int, seed: int = 0) -> np.ndarray:
    """float32 [rows, 512]: as weights are, with columns of different sizes."""
    rng = np.random.default_rng(seed)
    return (0.02 * rng.standard_t(6, (rows, 512)) * np.exp(0.3 * rng.standard_normal(512))).astype(np.float32)


def importance(seed: int = 1) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).standard_normal(512)).astype(np.float32)


@pytest.mark.parametrize("compiled", [None, False])
@pytest.mark.parametrize("name", NEAREST)
def test_nearest_formats_equal_llama_cpp(name, compiled):
    x = odd_rows()
    assert np.array_equal(encode(x, name, compiled=compiled), ggml.quantize(x, name))


def test_floats_keep_what_is_no_number():
    x = np.array([[np.inf, -np.inf, np.nan, 1e30, -1e-30, 65519.0, 65520.0, 2**-25] * 5], np.float32)
    for name in ("F32", "F16", "BF16"):
        one, other = (dequantize(encode(x, name, compiled=c), name) for c in (None, False))
        assert np.array_equal(one, other, equal_nan=True)
        assert np.isnan(one[0, 2]) and one[0, 0] == np.inf and one[0, 1] == -np.inf


@pytest.mark.parametrize(("name", "weighted"), BOTH_WAYS)
def test_the_compiled_search_equals_numpy(name, weighted):
    x = np.concatenate([odd_rows()[:12], heavy_tailed(9)])
    columns = importance() if weighted else None
    one, other = (encode(x, name, columns, compiled=c) for c in (True, False))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(("name", "weighted"), BOTH_WAYS)
def test_searched_formats_err_less_than_llama_cpp(name, weighted):
    """Under the weights that are minimised; and, not to win there alone, under importance, or evenly and by size."""
    x, columns = heavy_tailed(160), importance() if weighted else None
    ours, theirs = (
        dequantize(blocks, name) - x for blocks in (encode(x, name, columns), ggml.quantize(x, name, columns))
    )
    for w in (weigh(x, name, BLOCKS[name].block_size, columns), *((columns,) if weighted else (1.0, np.abs(x)))):
        assert (w * ours**2).sum() <= (w * theirs**2).sum()


@pytest.mark.parametrize("name", ["Q4_0", "IQ4_NL"])
def test_the_search_comes_near_the_best_scale_there_is(name):
    """All scales on a fine grid, tried with the format's own levels: the search may be 1 % off in the sum."""
    x, w = heavy_tailed(4)[:, :32], importance()[:32]
    weights = weigh(x, name, 32, w)
    found = (weights * (dequantize(encode(x, name, w), name) - x) ** 2).sum()
    levels = dequantize(np.concatenate([np.float16([1]).view(np.uint8), np.arange(16, dtype=np.uint8)])[None], name)[
        0, :16
    ].astype(np.float64)
    best = 0.0
    for row, cost in zip(x.astype(np.float64), weights, strict=True):
        scales = np.linspace(-1.3, 1.3, 8001) * np.abs(row).max() / np.abs(levels).max()
        near = np.abs(row[None, :, None] - scales[:, None, None] * levels).min(axis=2)
        best += (cost * near**2).sum(axis=1).min()
    assert found <= 1.01 * best


@pytest.mark.parametrize("name", [name for name in NAMES if BLOCKS[name].block_size > 1])
def test_what_a_format_can_hold_it_holds(name):
    """Once decoded, weights come back (nearly: several scales may stand for the same numbers)."""
    once = dequantize(encode(heavy_tailed(20), name), name)
    again = dequantize(encode(once, name), name)
    assert np.sqrt(((again - once) ** 2).mean()) <= 0.02 * np.sqrt((once**2).mean())


@pytest.mark.parametrize("name", [name for name in SEARCHES])
def test_blocks_without_any_spread(name):
    """Zeros, one value, columns of no importance: decoded near, and always numbers."""
    x = np.zeros((5, 512), np.float32)
    x[1], x[2], x[3, 7], x[4] = 0.25, -0.25, 3.0, 1e-30
    for columns in (None, importance(), np.zeros(512, np.float32)):
        y = dequantize(encode(x, name, columns), name)
        assert np.isfinite(y).all()
        if columns is None or columns.any():
            assert np.abs(y[:3] - x[:3]).max() <= 0.02


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K", "IQ4_NL", "Q1_0", "Q2_0", "TQ2_0", "MXFP4"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
def test_weights_that_cannot_be_held_are_refused(name, bad):
    x = heavy_tailed(3)
    x[1, 5] = bad
    with pytest.raises(ValueError, match="hold"):
        encode(x, name)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="rows of 256s"):
        encode(np.zeros((2, 128), np.float32), "Q4_K")
    with pytest.raises(ValueError, match="importance"):
        encode(np.zeros((2, 256), np.float32), "Q4_K", np.ones(255, np.float32))
    with pytest.raises(ValueError, match="no quantizer"):
        encode(np.zeros((2, 256), np.float32), "IQ1_S")
