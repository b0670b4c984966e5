"""Cross-entropy over a vocabulary a tile at a time: the logits of all rows never exist unless they are few.

Two passes over tiles of the head: the first folds each tile's logits into running maxima and sums, the second
makes the gradient. Logits are kept between the passes if they fit in `sizes.logits`, else computed twice. The
vocabulary is cut into a few lanes with maxima and sums of their own, whose tiles follow each other.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from .linear import Group
from .workers import pieces


def cross_entropy(e, h: np.ndarray, head: Group, targets: np.ndarray, scale: float, gradient: bool):
    """h: [M, d] float32, targets: int32 [M] -> (sum of losses in nats, dh [M, d] or None).

    dh is scale times the gradient of that sum. The head's pair and matrix, where trained, get their gradients.
    Rows are taken in chunks where even the running products would be large.
    """
    rows = h.shape[0]
    # Buffers are sized by what any stream may need: sizes that followed each batch would pile up in the pool.
    most = min(most_rows(e.sizes, head), max(rows, e.capacity))
    chunk = -(-rows // -(-rows // most))  # equal chunks
    dh = e.array(h.shape[0], head.in_features) if gradient else None
    logits = e.flat(most * head.width) if gradient and most * head.width <= e.sizes.logits else None
    parts = e.flat(e.sizes.lanes * most * (head.in_features + head.rank)) if gradient else None
    total = 0.0
    for low in e.each(range(0, h.shape[0], chunk)):
        high = min(low + chunk, h.shape[0])
        total += _chunk_loss(
            e, h[low:high], head, targets[low:high], scale, None if dh is None else dh[low:high], logits, parts
        )
    return total, dh


def most_rows(sizes, head: Group) -> int:
    """Rows at once: as many as may keep their logits, or, if those are too few, so many that computing logits
    twice costs less than dequantizing the head for each chunk again."""
    fit = sizes.logits // head.width
    return fit if fit >= 96 else 512


def vocabulary_lanes(sizes, head: Group) -> list[list[tuple[int, int]]]:
    """The head's tiles, (first row, last row) each, dealt to lanes of the vocabulary."""
    step = max(16, sizes.head // (head.in_features + head.rank))
    lane = -(-head.width // (16 * sizes.lanes)) * 16
    return [list(pieces(low, high, step, 16)) for low, high in pieces(0, head.width, lane, 16)]


def _chunk_loss(e, h, head, targets, scale, dh, kept, parts) -> float:
    rows, vocab = h.shape[0], head.width
    pair = head.pairs[0]
    rank = head.rank
    inputs = h
    if rank:
        inputs = e.empty((rows, head.in_features + rank), np.float32)
        inputs[:, : head.in_features] = h
        np.matmul(h, pair.a.T, out=inputs[:, head.in_features :])
        inputs[:, head.in_features :] *= np.float32(pair.scale)
    lanes = vocabulary_lanes(e.sizes, head)
    columns = max(high - low for lane in lanes for low, high in lane)
    keep = kept is not None
    logits = kept[: rows * vocab].reshape(rows, vocab) if keep else None
    count = len(lanes)
    top = np.full((count, rows), -np.inf, np.float32)
    total = np.zeros((count, rows), np.float32)
    picked = np.full((count, rows), -np.inf, np.float32)

    def tile_of(number, low, high):
        tile = e.scratch(number, "wide", (high - low) * (head.in_features + rank)).reshape(high - low, -1)
        head.weights[0].rows(low, high, tile, lambda size: e.raw(number, size))
        if rank:
            tile[:, head.in_features :] = pair.b[low:high]
        return tile

    def scores(number, low, high):
        if keep:
            return logits[:, low:high]
        return e.scratch(number, "logits", rows * columns)[: rows * (high - low)].reshape(rows, high - low)

    def forward(lane: int, low: int, high: int, number: int) -> None:
        piece = scores(number, low, high)
        np.matmul(inputs, tile_of(number, low, high).T, out=piece)
        if head.cap:
            e.kernels.cap(piece, 1.0, head.cap, piece, False)
        e.kernels.loss_rows(piece, targets, low, top[lane], total[lane], picked[lane])

    def in_lanes(work) -> None:
        e.workers.chains([[partial(work, lane, *tile) for tile in e.each(tiles)] for lane, tiles in enumerate(lanes)])

    in_lanes(forward)
    highest = top.max(axis=0)
    with np.errstate(invalid="ignore"):  # of logits that are not numbers: the loss says so
        log_sum = highest + np.log((total * np.exp(top - highest)).sum(axis=0, dtype=np.float64)).astype(np.float32)
    loss = float(np.sum(log_sum - picked.max(axis=0), dtype=np.float64))
    if dh is None:
        return loss

    parts = parts[: count * rows * (head.in_features + rank)].reshape(count, rows, -1)

    def backward(lane: int, low: int, high: int, number: int) -> None:
        tile, piece = tile_of(number, low, high), scores(number, low, high)
        slope = e.scratch(number, "slope", piece.size).reshape(piece.shape) if head.cap else None
        if not keep:
            np.matmul(inputs, tile.T, out=piece)
            if head.cap:
                e.kernels.cap(piece, 1.0, head.cap, slope, True)
        elif head.cap:
            np.multiply(piece, piece, out=slope)
            np.subtract(1.0, slope / np.float32(head.cap**2), out=slope)
        e.kernels.loss_rows_backward(piece, targets, low, log_sum, scale)
        if head.cap:
            piece *= slope
        mine = parts[lane]
        if low == lanes[lane][0][0]:
            np.matmul(piece, tile, out=mine)
        else:
            product = e.scratch(number, "product", mine.size).reshape(mine.shape)
            np.matmul(piece, tile, out=product)
            e.kernels.add(mine, product, mine)
        if head.weights[0].gradient is not None:
            whole = e.scratch(number, "gradient", (high - low) * head.in_features).reshape(high - low, -1)
            np.matmul(piece.T, h, out=whole)
            e.kernels.add_scaled(whole, 1.0, head.weights[0].gradient[low:high])
        if pair is not None and pair.grad_b is not None:
            pair.grad_b[low:high] += piece.T @ inputs[:, head.in_features :]

    in_lanes(backward)
    for part in parts[1:]:
        e.kernels.add(parts[0], part, parts[0])
    dh[...] = parts[0][:, : head.in_features]
    if rank:
        through = parts[0][:, head.in_features :] * np.float32(pair.scale)
        dh += through @ pair.a
        if pair.grad_a is not None:
            pair.grad_a += through.T @ h
    return loss
