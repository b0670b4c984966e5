"""Where products are cut into pieces, by shape alone."""

from __future__ import annotations

import numpy as np

from anytune.engine.numpy.linear import Group, block_columns
from anytune.engine.numpy.workers import piece, pieces

from . import gemm

COLUMNS = 128  # of a product's result in one piece, at least


def tile_rows(group: Group, sizes) -> int:
    """Most rows of W in a forward tile."""
    return max(gemm.PANEL, sizes.tile // (group.in_features + group.rank) // gemm.PANEL * gemm.PANEL)


def forward_pieces(group: Group, most: int):
    """(number of the linear, its first row, last row) of each piece of y, of at most so many columns."""
    most = min(most, piece(group.width, COLUMNS, gemm.PANEL))
    for index, weight in enumerate(group.weights):
        for low, high in pieces(0, weight.out_features, most, gemm.PANEL):
            yield index, low, high


def backward_step(group: Group, sizes) -> int:
    """Most columns of a backward tile."""
    step = int(np.lcm(block_columns(group), gemm.PANEL))
    return max(step, sizes.tile // (group.width + group.rank) // step * step)


def backward_pieces(group: Group, sizes):
    """(first column, last column) of each piece of dx, whole blocks of every weight."""
    blocks = block_columns(group)
    most = min(backward_step(group, sizes), piece(group.in_features, COLUMNS, blocks))
    return pieces(0, group.in_features, most, blocks)
