"""y = x Wᵀ + s (x Aᵀ) Bᵀ for linears that share an input, and its backward.

LoRA rides in the base product. An activation array has a few spare columns behind its own (`row_padding`), so with
h = s x Aᵀ written there, [x | h] times [W | B]ᵀ is the whole of y in one product, and backwards
[dy | dy B] times [W ; s A] is the whole of dx. Only tiles of W are ever dequantized, each in a worker's own
scratch: rows of W for y, columns for dx, so no two workers touch the same output and nothing is summed twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from anytune.engine.trains import Trains

from .gradients import gradient_jobs
from .weights import Weight
from .workers import Job, piece, pieces

COLUMNS = 128  # of a product's result, at least, in one piece: fewer would not keep BLAS at its full rate
GRADIENT = 256  # columns or rows of a pair's gradient in one piece, at least


@dataclass
class LoraPair:
    """The low-rank pair of one linear: a [r, in], b [out, r] and their gradients (or None), float32."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    grad_a: np.ndarray | None = None
    grad_b: np.ndarray | None = None


@dataclass
class Group(Trains):
    """Linears that share an input: weights, biases (or None each), low-rank pairs (or None each)."""

    weights: tuple[Weight, ...]
    biases: tuple[np.ndarray | None, ...]
    pairs: tuple[LoraPair | None, ...] = ()
    dropout: float = 0.0
    number: int = 0  # tells the groups' dropout streams apart
    bias_gradients: tuple[np.ndarray | None, ...] = ()
    packed: object = field(default=None, repr=False)  # cpu_bf16's, where matrices are kept ready for its products
    cap: float = 0.0  # of a head's results, where they are capped
    bounds: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.pairs = self.pairs or (None,) * len(self.weights)
        self.bias_gradients = self.bias_gradients or (None,) * len(self.weights)
        self.bounds = np.cumsum([0] + [w.out_features for w in self.weights]).tolist()

    @property
    def in_features(self) -> int:
        return self.weights[0].in_features

    @property
    def width(self) -> int:
        return self.bounds[-1]

    @property
    def rank(self) -> int:
        """Columns that the low-rank parts take: the sum of the ranks."""
        return sum(s.a.shape[0] for s in self.pairs if s is not None)

    def ranks(self) -> list[tuple[int, int]]:
        """For each linear its columns among the low-rank ones."""
        spans, at = [], 0
        for pair in self.pairs:
            size = 0 if pair is None else pair.a.shape[0]
            spans.append((at, at + size))
            at += size
        return spans

    def split(self, y: np.ndarray) -> tuple[np.ndarray, ...]:
        """One view of y [T, width] for each linear."""
        return tuple(y[:, low:high] for low, high in zip(self.bounds, self.bounds[1:]))


def linear(e, x: np.ndarray, group: Group) -> tuple[np.ndarray, ...]:
    """x: [T, in] -> one [T, out] for each linear of the group, columns of one buffer."""
    y = e.array(x.shape[0], group.width, row_padding=0)
    inputs = _low_rank(e, x, group)
    jobs = [
        partial(forward_tile, e, inputs, group, index, low, high, y)
        for index, low, high in forward_pieces(group, e.sizes)
    ]
    e.workers.run(jobs, x.shape[0] * group.width * group.in_features < e.SMALL)
    return group.split(y)


def forward_pieces(group: Group, sizes) -> Iterator[tuple[int, int, int]]:
    """(number of the linear, its first row, last row) of each tile."""
    most = min(piece(group.width, COLUMNS, 16), max(16, sizes.tile // (group.in_features + group.rank)))
    for index, weight in enumerate(group.weights):
        for low, high in pieces(0, weight.out_features, most, 16):
            yield index, low, high


def forward_tile(e, inputs, group, index: int, low: int, high: int, y, number: int) -> None:
    out = y[:, group.bounds[index] + low : group.bounds[index] + high]
    weight, pair, bias = group.weights[index], group.pairs[index], group.biases[index]
    features, (first, last) = group.in_features, group.ranks()[index]
    columns = features + (last if pair is not None else 0)
    tile = e.scratch(number, "tile", (high - low) * columns).reshape(high - low, columns)
    weight.rows(low, high, tile, lambda size: e.raw(number, size))
    if pair is not None:
        tile[:, features : features + first] = 0  # low-rank columns that belong to the linears before
        tile[:, features + first :] = pair.b[low:high]
    np.matmul(inputs[:, :columns], tile.T, out=out)
    if bias is not None:
        out += bias[low:high]


def _low_rank(e, x: np.ndarray, group: Group, mask=None) -> np.ndarray:
    """[x | s x Aᵀ]: x itself if its rows are padded, else a copy."""
    rank, features = group.rank, group.in_features
    if not rank:
        return x
    extended = e.extend(x, rank)
    downs = scaled_down(group)

    def rows(low: int, high: int) -> None:
        source = x[low:high] if mask is None else dropped(e, x, group, mask, low, high)
        np.matmul(source, downs.T, out=extended[low:high, features:])

    if mask is None and group.dropout and e.training:
        mask = e.dropout_mask(group, x.shape[0])
    e.workers.rows(x.shape[0], rows, 128)
    return extended


def scaled_down(group: Group) -> np.ndarray:
    """s A of all linears, stacked: [rank, in]."""
    return np.concatenate([s.a * np.float32(s.scale) for s in group.pairs if s is not None])


def dropped(e, x, group, mask, low, high) -> np.ndarray:
    """Rows of x with dropout's mask and its 1/(1-p)."""
    out = e.empty((high - low, group.in_features), np.float32)
    e.kernels.scale_by(x[low:high], mask[low:high], 1.0 / (1.0 - group.dropout), out)
    return out


def linear_backward(
    e, dys: tuple[np.ndarray, ...], x: np.ndarray, group: Group, need_dx: bool = True
) -> np.ndarray | None:
    """Adds to the group's gradients; returns dx [T, in], or None if it is not needed."""
    tokens, features, rank = x.shape[0], group.in_features, group.rank
    dy = e.joined(dys)
    mask = e.dropout_mask(group, tokens) if group.dropout and e.training and rank else None
    inputs = _low_rank(e, x, group, mask)
    if rank:
        dy = e.extend(dy, rank)
        e.workers.rows(tokens, lambda low, high: into_rank(dy, group, low, high), 128)
    dx = e.array(tokens, features, row_padding=0) if need_dx else None
    raw = streamed(e, group) if need_dx else None
    downs = scaled_down(group) if rank else np.empty((0, features), np.float32)
    with_rank = mask is None  # under dropout the low-rank part of dx passes the mask first, on its own
    jobs: list[Job] = gradient_jobs(e, dy, x, group)
    if need_dx:
        jobs += [
            partial(backward_tile, e, dy, group, downs, low, high, raw, dx, with_rank)
            for low, high in backward_pieces(group, e.sizes)
        ]
    if rank:
        jobs += pair_jobs(e, dy, x, inputs, group, mask)
    e.workers.run(jobs)
    if need_dx and not with_rank:
        _add_masked(e, dy, group, downs, mask, dx)
    return dx


def backward_pieces(group: Group, sizes) -> Iterator[tuple[int, int]]:
    """(first column, last column) of each tile, whole blocks of every weight."""
    blocks = block_columns(group)
    most = max(blocks, sizes.wide // (group.width + group.rank) // blocks * blocks)
    return pieces(0, group.in_features, min(piece(group.in_features, COLUMNS, blocks), most), blocks)


def block_columns(group: Group) -> int:
    """The least run of columns that is whole blocks in every weight of the group."""
    return int(np.lcm.reduce([w.block for w in group.weights]))


def into_rank(dy, group, low, high) -> None:
    """dy[:, width:] = dy_i B_i for rows low…high."""
    for index, pair in enumerate(group.pairs):
        if pair is not None:
            first, last = group.ranks()[index]
            np.matmul(
                dy[low:high, group.bounds[index] : group.bounds[index + 1]],
                pair.b,
                out=dy[low:high, group.width + first : group.width + last],
            )


def raw_buffers(e, group: Group, number: int) -> tuple:
    """A flat buffer for the bytes of each of the group's streamed weights, side by side in what e.raw() has for a
    worker (-1: for all); None for each if they are held."""
    if not any(w.needs_raw() for w in group.weights):
        return (None,) * len(group.weights)
    whole, buffers, at = e.raw(number, sum(w.nbytes for w in group.weights)), [], 0
    for weight in group.weights:
        buffers.append(whole[at : at + weight.nbytes])
        at += weight.nbytes
    return tuple(buffers)


def streamed(e, group: Group) -> tuple:
    """As raw_buffers(), for all workers, who have read the bytes."""
    buffers = raw_buffers(e, group, -1)
    if buffers[0] is not None:
        e.workers.run(
            [
                partial(_read, weight, low, high, buffer)
                for weight, buffer in zip(group.weights, buffers)
                for low, high in pieces(0, weight.out_features, piece(weight.out_features, 256))
            ]
        )
    return buffers


def _read(weight: Weight, low: int, high: int, buffer, number: int) -> None:
    weight.read_rows(low, high, buffer)


def backward_tile(e, dy, group, downs, low: int, high: int, raw, dx, with_rank: bool, number: int) -> None:
    rank = group.rank if with_rank else 0
    height = group.width + rank
    tile = e.scratch(number, "wide", height * (high - low)).reshape(height, high - low)
    for index, weight in enumerate(group.weights):
        weight.columns(low, high, tile[group.bounds[index] : group.bounds[index + 1]], raw[index])
    if rank:
        tile[group.width :] = downs[:, low:high]
    np.matmul(dy[:, :height], tile, out=dx[:, low:high])


def pair_jobs(e, dy, x, inputs, group: Group, mask) -> list[Job]:
    """What adds to the gradients of the group's pairs; inputs: what _low_rank() gave."""
    jobs: list[Job] = [
        partial(_pair_down, e, dy, x, group, low, high, mask)
        for low, high in pieces(0, group.in_features, piece(group.in_features, GRADIENT, 16), 16)
    ]
    jobs += [
        partial(_pair_up, e, dy, inputs, group, index, low, high)
        for index, pair in enumerate(group.pairs)
        if pair is not None
        for low, high in pieces(0, pair.b.shape[0], piece(pair.b.shape[0], GRADIENT, 16), 16)
    ]
    return jobs


def _pair_down(e, dy, x, group, low: int, high: int, mask, number: int) -> None:
    """Adds to columns low…high of every grad_a."""
    source = x[:, low:high]
    if mask is not None:
        source = source * (mask[:, low:high] * np.float32(1.0 / (1.0 - group.dropout)))
    part = e.scratch(number, "down", group.rank * (high - low)).reshape(group.rank, high - low)
    np.matmul(dy[:, group.width : group.width + group.rank].T, source, out=part)
    for pair, (first, last) in zip(group.pairs, group.ranks()):
        if pair is not None:
            e.kernels.add_scaled(part[first:last], pair.scale, pair.grad_a[:, low:high])


def _pair_up(e, dy, inputs, group, index: int, low: int, high: int, number: int) -> None:
    """Adds to rows low…high of one grad_b."""
    (first, last), base = group.ranks()[index], group.bounds[index]
    part = e.scratch(number, "up", (high - low) * (last - first)).reshape(high - low, last - first)
    np.matmul(
        dy[:, base + low : base + high].T, inputs[:, group.in_features + first : group.in_features + last], out=part
    )
    e.kernels.add_scaled(part, 1.0, group.pairs[index].grad_b[low:high])


def _add_masked(e, dy, group, downs, mask, dx) -> None:
    """dx += mask/(1-p) * (dy B) (s A), the low-rank path under dropout."""
    factor = np.float32(1.0 / (1.0 - group.dropout))

    def rows(low: int, high: int) -> None:
        through = dy[low:high, group.width : group.width + group.rank] @ downs
        dx[low:high] += through * (mask[low:high] * factor)

    e.workers.rows(dx.shape[0], rows, 64)
