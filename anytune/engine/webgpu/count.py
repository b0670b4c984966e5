"""The WebGPU engine on shapes alone. It mirrors what engine.py, linear.py, attention.py and loss.py take from the pool:
buffers of exact sizes, used again once they are free; the model's own code runs on it, and tests hold it against the
pool."""

from __future__ import annotations

from collections import Counter

from anytune.engine.base import Heads
from anytune.engine.count import Buffer, RowShapes, Shape
from anytune.errors import UserError
from anytune.gguf.blocks import BLOCKS

from .arrays import ALIGN, lines
from .attention import slices
from .kernels.blocks import TYPES
from .loss import chunk_rows
from .optimizers import partial_sums
from .sizes import SCRATCH, scratch_size
from .weights import WHOLE


class _Matrix:
    """A weight that is only a shape. gradient: None if it is frozen."""

    slow = False

    def __init__(self, shape, gradient=None):
        self.out_features, self.in_features = shape
        self.gradient = gradient


class _Linears:
    """A group that is only shapes."""

    cap = 0.0

    def __init__(self, weights, pairs, dropout: float, bias_gradients=None):
        self.weights, self.dropout = weights, dropout
        self.pairs = tuple(pairs or (None,) * len(weights))
        self.in_features = weights[0].in_features
        self.width = sum(lines(w.out_features) for w in weights)
        self.rank = sum(s.a.shape[0] for s in self.pairs if s is not None)
        self.trains = (
            any(s is not None for s in self.pairs)
            or any(w.gradient is not None for w in weights)
            or any(g is not None for g in bias_gradients or ())
        )


class WebGpuCount(RowShapes):
    """Counts `flops` and bytes. See base.py for the operations."""

    name = "count"

    def __init__(self, engine, sizes, hold: str, capacity: int):
        self.engine, self.sizes, self.hold, self.capacity = engine, sizes, hold, capacity
        self.row_padding, self.training, self.flops, self.bytes = 0, False, 0.0, 0
        self._free: Counter = Counter()
        self._names: dict[tuple[int, ...], list[str]] = {}  # of the file's matrices, by shape
        self._trained: list[tuple[int, int]] = []  # shapes

    def held(self, matrices: dict, groups: list) -> int:
        """What frozen weights take: bytes of the file (or float32 of a type that kernels do not know), or two streamed
        ones; and the optimizers' sums over those that are trained."""
        sums = 4 * partial_sums([a * b for a, b in self._trained], self._trained) if self._trained else 0

        def size(info) -> int:
            block = BLOCKS[info.type.name if info.type.name in TYPES else "F32"]
            return info.out_features * block.row_bytes(info.in_features)

        if self.hold == "blocks":
            return sums + sum(map(size, matrices.values()))
        moving = [size(m) for name, m in matrices.items() if name not in WHOLE]
        return sums + 2 * max(moving, default=0) + sum(size(m) for name, m in matrices.items() if name in WHOLE)

    def begin(self, starts, capacity: int, key=(0, 0, 0)) -> None:
        self.capacity = capacity

    # ---- memory
    def flat(self, floats: int) -> Shape:
        if self._free[floats]:
            self._free[floats] -= 1
        else:
            self.bytes += 4 * floats
        return Shape((floats,), Buffer(self._free, floats))

    def array(self, rows: int, columns: int, most: int | None = None) -> Shape:
        made = self.flat((max(rows, self.capacity) if most is None else most) * lines(columns))
        made.shape = (rows, columns)
        return made

    def columns(self, rows: int, *widths: int) -> tuple[Shape, ...]:
        whole = self.array(rows, sum(map(lines, widths)))
        return tuple(whole.part(w) for w in widths)

    def weight(self, gguf, name, hold="blocks"):
        shape = tuple(gguf.tensors[name].shape)
        self._names.setdefault(shape, []).append(name)
        return _Matrix(shape)

    def trained(self, values, gradient):
        device, size = self.engine.device, 4 * values.shape[0] * values.shape[1]
        if size > device.max_buffer:
            names = " and ".join(self._names.get(values.shape, []))
            raise UserError(
                f"{names} would take {size >> 20} MiB as float32, and {device.name} allows "
                f"{device.max_buffer >> 20} MiB for one tensor: exclude it from --train-modules (embed is the "
                "largest)"
            )
        self._trained.append(values.shape)
        return _Matrix(values.shape, gradient)

    def constant(self, gguf, name):
        """Not None: models ask whether a norm is there."""
        return name

    def vector(self, values):
        return values

    integers = host = vector

    def group(self, weights, biases=None, pairs=None, dropout=0.0, number=0, bias_gradients=None):
        return _Linears(weights, pairs, dropout, bias_gradients)

    # ---- operations
    def qk_norm_rope(self, q, k, gains, eps, table, positions, heads, neox):
        return (q, k) if gains is None else self.columns(q.shape[0], q.shape[1], k.shape[1])

    def qk_norm_rope_backward(self, dq, dk, q, k, gains, eps, table, positions, heads, neox, into=(None, None)):
        for x, gradient in zip((q, k), into):
            if gradient is not None:
                self.gain_gradient(x, x, eps, gradient)
        return dq, dk

    def gain_gradient(self, dy, x, eps, into):
        self.array(x.shape[0], x.shape[1] // into.shape[0])

    def embed_backward(self, dx, ids, scale, into):
        self.flat(max(len(ids), self.capacity))

    def glu(self, gate, up, activation):
        return self.array(*gate.shape)

    def glu_backward(self, dy, gate, up, activation):
        return self.columns(gate.shape[0], gate.shape[1], gate.shape[1])

    def glu_linear_backward(self, dy, gate, up, activation, group, then, need_dx=True):
        self.linear_backward((dy,), self.glu(gate, up, activation), group, need_dx)
        return (gate, up) if need_dx else None

    def _slices(self, forward: bool, m: int, n: int, k: int) -> Shape | None:
        """The slices of a product's sum, where products are cut so.
        A piece of a matrix may be where the whole is not."""
        if not self.engine.tuning.cuts(forward, m):
            return None
        slices = self.engine.plan_product(forward, m, n, k)[1]
        return self.flat(scratch_size(slices * m * lines(n)) if slices > 1 else SCRATCH)

    def linear(self, x, group):
        y = self.array(x.shape[0], group.width)
        self._forward(x, group)
        return tuple(y.part(w.out_features) for w in group.weights)

    def _forward(self, x, group) -> None:
        tokens = x.shape[0]
        source = self.array(*x.shape) if group.dropout and group.rank else None
        low = self.array(tokens, group.rank) if group.rank else None
        slices = self._slices(True, tokens, group.width, group.in_features)
        self.flops += 2.0 * tokens * (group.width * group.in_features + group.rank * (group.in_features + group.width))
        del source, low, slices

    def linear_backward(self, dys, x, group, need_dx=True):
        dx = self.array(x.shape[0], group.in_features) if need_dx else None
        self._backward(x, group, need_dx)
        return dx

    def _backward(self, x, group, need_dx: bool) -> None:
        tokens = x.shape[0]
        source = self.array(*x.shape) if group.dropout and group.rank else None
        low = [self.array(tokens, group.rank) for _ in range(2)] if group.rank else None
        self.flops += 4.0 * tokens * group.rank * (group.width + group.in_features)
        if need_dx:
            slices = self._slices(False, tokens, group.in_features, group.width)
            through = self.array(tokens, group.in_features) if source is not None else None
            self.flops += 2.0 * tokens * (group.width + group.rank) * group.in_features
            del slices, through
        trained = sum(w.out_features for w in group.weights if w.gradient is not None)
        self.flops += 2.0 * tokens * group.in_features * trained
        del source, low

    def attention(self, q, k, v, heads: Heads):
        tokens = q.shape[0]
        self.flops += 2.0 * tokens * heads.n_heads * heads.head_dim * (heads.window or tokens)
        return self.array(tokens, q.shape[1]), self.flat(heads.n_heads * max(tokens, self.capacity))

    def attention_backward(self, dout, q, k, v, out, lse, heads: Heads):
        tokens = q.shape[0]
        self.flops += 8.0 * tokens * heads.n_heads * heads.head_dim * (heads.window or tokens)
        parts = self.columns(tokens, q.shape[1], k.shape[1], k.shape[1])
        delta = self.flat(heads.n_heads * max(tokens, self.capacity))
        if any(self._sliced(heads, name, x) for name, x in (("dq", q), ("dk", k))):
            self.flat(SCRATCH)
        del delta
        return parts

    def _sliced(self, heads: Heads, name: str, x) -> bool:
        """Whether attention's gradient has slices, for as many tokens as one dispatch covers."""
        most = (self.engine.device.max_binding - ALIGN) // (4 * lines(x.shape[1]))
        rows = min(x.shape[0], max(1, most))
        return slices(self.engine, heads, (0, rows, 0, rows), name, x.shape[1]) != (1, 0)

    def cross_entropy(self, h, head, targets, scale, gradient):
        rows, vocabulary = h.shape[0], head.weights[0].out_features
        step = chunk_rows(self.sizes, self.engine.plan_product, rows, vocabulary, h.shape[1])
        small = self.flat(max(rows, self.capacity)), self.flat(16)
        dh = self.array(rows, h.shape[1]) if gradient else None
        logits = self.array(step, head.width, step)
        piece = Shape((step, h.shape[1]), h._buffer)
        for _ in range(0, rows, step):
            self._forward(piece, head)
            if gradient:
                self._backward(piece, head, True)
        del logits, small
        return 0.0, dh
