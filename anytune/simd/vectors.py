"""The arithmetic that the searches are written in: each value is a vector, one lane a block.

A tile is float32 [rows, lanes]: row i holds the i-th number of each of `lanes` blocks, so that all blocks run
through the same steps and no sum goes across lanes. As plain Python these functions work on NumPy rows of any
length; vectors_numba.py gives the same names to the compiler with sixteen lanes in a register. One source, two
ways to run it, the same bits.
"""

from __future__ import annotations

import numpy as np

try:
    from numba.extending import register_jitable as shared
except ImportError:

    def shared(function):
        return function


MAGIC = 12582912.0  # 1.5 * 2^23: adding it leaves no room for fractions


def load(tile, row):
    return tile[row]


def keep(tile, row, values):
    tile[row] = values


def spread(tile, value):
    """A vector of `value`, as long as the tile's rows."""
    return np.full(tile.shape[1], value, np.float32)


def where_less(a, b, yes, no):
    return np.where(a < b, yes, no).astype(np.float32, copy=False)  # of two plain numbers it makes float64


def to_half(values):
    """Rounded to float16; beyond its range infinite."""
    return values.astype(np.float16).astype(np.float32)


@shared
def nearest(values):
    """To the nearest integer, halves to even; |values| must be below 2^22."""
    return (values + MAGIC) - MAGIC


@shared
def least(a, b):
    return where_less(a, b, a, b)


@shared
def most(a, b):
    return where_less(a, b, b, a)


@shared
def size(values):
    """The absolute value; never a negative zero."""
    return most(0.0 - values, values)


@shared
def ratio(a, b):
    """a / b, and 0 where b is 0."""
    sound = where_less(0.0, size(b), b, 1.0)
    return where_less(0.0, size(b), a / sound, 0.0)
