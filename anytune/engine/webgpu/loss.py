"""Cross-entropy over rows that carry loss, a chunk of them at a time: the logits of all rows never exist at once."""

from __future__ import annotations

from .arrays import Array, row_cuts
from .groups import Group
from .kernels import optimizer as _kernels
from .linear import backward, forward


FULL = 64  # rows of a product that keep a device as busy as more of them


def chunk_rows(sizes, tiling, rows: int, vocabulary: int, width: int) -> int:
    """Rows whose logits exist at once. A quarter of them is enough, if it fills a product's tiles. Never fewer for more
    rows, so that the estimate, made for the most rows, holds for fewer."""
    most = max(16, sizes.logits // vocabulary // 16 * 16)
    tile = max(tiling(True, rows, vocabulary, width)[0].m, tiling(False, rows, width, vocabulary)[0].m)
    return min(rows, most, max(FULL, tile, rows // 4 // FULL * FULL))


def cross_entropy(e, h: Array, head: Group, targets: Array, scale, gradient: bool):
    """h [M, d], targets int32 [M] (-1: a row that does not count), scale: a number or an Array [1] -> (sum of losses in
    nats: a float, or while a stream is run an Array [1]; scale * its gradient [M, d] or None)."""
    rows, vocabulary = h.rows, head.weights[0].out_features
    if not isinstance(scale, Array):
        scale = e.vector([float(scale)])
    step = chunk_rows(e.sizes, e.tile_product, rows, vocabulary, h.columns)
    losses, total = e.flat(rows, max(rows, e.capacity)), e.flat(1, 16)
    dh = e.array(rows, h.columns) if gradient else None
    for low in range(0, rows, step):
        high = min(low + step, rows)
        logits = e.array(high - low, head.width, step)
        forward(e, h[low:high], head, logits)
        logits = logits.part(0, vocabulary)
        for a, b in row_cuts(e.device.max_binding, logits):
            held, factor = targets.bind(), scale.bind()
            arrays = [logits.bind(a, b), held, *([factor] if gradient else []), losses]
            numbers = [vocabulary, logits.stride, held.shift + low + a, low + a, *([factor.shift] if gradient else [])]
            numbers += [head.cap] if head.cap else []
            e.commands.run(
                _kernels.loss_rows(gradient, bool(head.cap)),
                arrays,
                tuple(numbers),
                (b - a,),
                20.0 * (b - a) * vocabulary,
            )
        if gradient:
            backward(e, (logits,), h[low:high], head, dh[low:high])
    e.commands.run(_kernels.add_up(), [losses, total], (rows, 0, 0, 0), (1,))
    return (total if e.recorder.running else float(e.host(total)[0])), dh
