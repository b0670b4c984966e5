"""Cross-entropy over rows that carry loss, a chunk of them at a time: the logits of all rows never exist at once."""

from __future__ import annotations

import torch

from .gradients import add_product
from .linear import linear, linear_backward, product
from .weights import Group

Tensor = torch.Tensor


def cross_entropy(e, h: Tensor, head: Group, targets: Tensor, scale, gradient: bool):
    """h [M, d], targets int32 [M] (-1: a row that does not count), scale: a number or a float32 tensor [1] on the
    device -> (sum of losses in nats, float64 tensor on the device, scale * its gradient [M, d] or None)."""
    rows, width = h.shape
    if not torch.is_tensor(scale):
        scale = torch.full((1,), float(scale), dtype=torch.float32, device=e.device)
    chunk = min(rows, max(16, e.sizes.logits // head.width // 16 * 16))
    chunk = -(-rows // -(-rows // chunk))  # equal chunks
    losses = torch.empty(rows, dtype=torch.float32, device=e.device)
    dh = None
    if gradient:
        dh = e.array(rows, width)
        dh.ends = True
    whole = head.dense is not None or head.rank > 0
    for low in e.each(range(0, rows, chunk)):
        part = slice(low, min(low + chunk, rows))
        work = _whole if whole else _in_pieces
        work(e, h[part], head, targets[part], scale, losses[part], None if dh is None else dh[part])
    return losses.sum(dtype=torch.float64 if e.device.type != "mps" else torch.float32), dh


def _whole(e, h, head, targets, scale, losses, dh) -> None:
    """With the head as one matrix; its pair, if it has one, gets its gradients."""
    (logits,) = linear(e, h, head)
    e.f.loss_rows(logits, targets, scale, losses, dh is not None, head.cap)
    if dh is not None:
        dh.copy_(linear_backward(e, (logits,), h, head)) if head.rank else product(
            e, logits, head.dense[: head.width, : head.in_features], dh
        )


def _in_pieces(e, h, head, targets, scale, losses, dh) -> None:
    """With the head dequantized a piece of the vocabulary at a time, twice; sums over pieces in float32. A head that is
    trained gets its gradient."""
    weight, vocab = head.weights[0], head.width
    step = min(vocab, e.sizes.head)
    tile = torch.empty((step, head.in_features), dtype=e.dtype, device=e.device)
    logits = torch.empty((h.shape[0], vocab), dtype=e.act, device=e.device)
    for low in e.each(range(0, vocab, step)):
        high = min(low + step, vocab)
        product(e, h, weight.piece(low, high, tile).t(), logits[:, low:high])
    if head.bias is not None:
        logits += head.bias
    e.f.loss_rows(logits, targets, scale, losses, dh is not None, head.cap)
    if dh is None:
        return
    total = torch.zeros((h.shape[0], head.in_features), dtype=torch.float32, device=e.device)
    for low in e.each(range(0, vocab, step)):
        high = min(low + step, vocab)
        part = torch.empty_like(total, dtype=e.act)
        product(e, logits[:, low:high], weight.piece(low, high, tile), part)
        total += part
        if weight.gradient is not None:
            add_product(e, logits[:, low:high], h, weight.gradient[low:high])
    if head.trains_bias:
        head.bias_gradients[0].add_(logits.sum(0, dtype=torch.float32))
    dh.copy_(total)
