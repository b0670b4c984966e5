"""The bf16 CPU engine's products, turns and roundings against float64 of the same rounded operands."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.require import need_bf16_products

need_bf16_products()

from anytune.engine.cpu_bf16 import gemm  # noqa: E402 (compiled, where it can be)


def to_bf16(x):
    """float32 rounded to bf16, to nearest even, as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)


def from_bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def room(size, kind=np.float32, fill=0):
    """A flat array that begins on a cache line."""
    raw = np.full(size * np.dtype(kind).itemsize + 64, fill, np.uint8)
    first = -raw.ctypes.data % 64
    return raw[first : first + size * np.dtype(kind).itemsize].view(kind)


def left_side(x):
    """(address, stride, buffer) of x as rows of bf16. What is behind them is NaN: no result may see it."""
    stride = gemm.row_bytes(x.shape[1])
    buffer = room((len(x) + gemm.SPARE) * stride // 2, np.uint16, 0xFF)
    gemm.round_rows(x.ctypes.data, x.strides[0], *x.shape, buffer.ctypes.data, stride)
    return buffer.ctypes.data, stride, buffer


DIMENSIONS = st.tuples(st.integers(1, 45), st.integers(1, 100), st.integers(1, 140), st.integers(0, 2**32 - 1))


@settings(max_examples=150, deadline=None)
@given(DIMENSIONS, st.sampled_from(["rows", "rows of bf16", "columns"]), st.booleans(), st.integers(0, 5))
def test_a_product_is_that_of_the_rounded_operands(shape, packing, add, spare):
    """Of every shape, into a matrix with columns to spare that must stay as they are."""
    n, columns, summed, seed = shape
    random = np.random.default_rng(seed)
    a, b = (random.standard_normal(s).astype(np.float32) for s in ((n, summed), (summed, columns)))
    packed, depth = room(gemm.packed_words(summed, columns)), gemm.depth_of(summed)
    if packing == "columns":
        other = np.ascontiguousarray(b.T)
        gemm.pack_columns(
            other.ctypes.data, other.strides[0], columns, summed, packed.ctypes.data, gemm.depth_of(summed), 0
        )
    elif packing == "rows":
        gemm.pack_rows(b.ctypes.data, b.strides[0], columns, summed, 4, packed.ctypes.data, depth, 0)
    else:
        narrow = (to_bf16(b).view(np.uint32) >> 16).astype(np.uint16)
        gemm.pack_rows(narrow.ctypes.data, narrow.strides[0], columns, summed, 2, packed.ctypes.data, depth, 0)
    c = random.standard_normal((n, columns + spare)).astype(np.float32)
    before = c.copy()
    at, stride, buffer = left_side(a)
    gemm.product(at, stride, packed.ctypes.data, depth, c.ctypes.data, c.strides[0], n, columns, summed, int(add))
    one, two = to_bf16(a).astype(np.float64), to_bf16(b).astype(np.float64)
    want, size = one @ two, np.abs(one) @ np.abs(two)
    if add:
        want, size = want + before[:, :columns], size + np.abs(before[:, :columns])
    assert (np.abs(c[:, :columns] - want) <= 2.0**-24 * (summed + 2) * size).all()
    np.testing.assert_array_equal(c[:, columns:], before[:, columns:])
    assert buffer.size


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1)))
def test_a_product_of_float32_operands(shape):
    n, columns, summed, seed = shape
    random = np.random.default_rng(seed)
    a, b = (random.standard_normal(s).astype(np.float32) for s in ((n, summed), (columns, summed)))
    wide, depth = -(-columns // 16) * 16, -(-summed // 16) * 16
    left, packed, c = room((n + gemm.SPARE) * summed), room(wide * depth), room((n + gemm.SPARE) * wide)
    left[: n * summed] = a.ravel()
    gemm.pack_single(b.ctypes.data, b.strides[0], columns, summed, packed.ctypes.data)
    gemm.product_single(left.ctypes.data, 4 * summed, packed.ctypes.data, c.ctypes.data, 4 * wide, n, wide, summed)
    want, size = a.astype(np.float64) @ b.T.astype(np.float64), np.abs(a) @ np.abs(b.T)
    assert (np.abs(c[: n * wide].reshape(n, wide)[:, :columns] - want) <= 2.0**-23 * (summed + 2) * size).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.booleans())
def test_turning_is_a_transpose_padded_with_zeros(n, columns, narrow):
    x = np.random.default_rng(n * 81 + columns).standard_normal((n, columns)).astype(np.float32)
    bits = (to_bf16(x).view(np.uint32) >> 16).astype(np.uint16)
    source, wide = bits if narrow else x, -(-n // 32) * 32
    target = room(-(-columns // 16) * 16 * wide, np.uint16, 0xFF).reshape(-1, wide)
    gemm.turn(source.ctypes.data, source.strides[0], n, columns, 2 if narrow else 4, target.ctypes.data, 2 * wide)
    np.testing.assert_array_equal(target[:columns, :n], bits.T)
    assert not target[:columns, n:].any()


def test_rounding_is_to_nearest_even_and_keeps_what_is_not_finite():
    row = [1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8 - 2.0**-20, 3.4e38, np.inf, -np.inf, np.nan, 0.0, -0.0]
    x = np.array([row] * 3, np.float32)
    _, stride, buffer = left_side(x)
    got = from_bf16(buffer.reshape(-1, stride // 2)[:3, :9])
    np.testing.assert_array_equal(got[0], [1, 1 + 2.0**-6, -1 - 2.0**-7, np.inf, np.inf, -np.inf, np.nan, 0, 0])
    np.testing.assert_array_equal(got, got[:1].repeat(3, 0))
