"""The WebGPU engine: base.py's operations as dispatches. linear.py, attention.py, loss.py, decode.py, replay.py and
update.py hold the larger ones."""

from __future__ import annotations

import numpy as np

from anytune.engine.base import Heads
from anytune.engine.composed import Composed
from anytune.errors import UserError

from . import attention as _attention
from . import decode as _decode
from . import gradients as _gradients
from . import linear as _linear
from . import loss as _loss
from . import replay as _replay
from . import update as _update
from .arrays import Array, Pool, Sum, lines, row_cuts
from .budget import Budget
from .canary import Canary
from .commands import Commands
from .device import Device, open_device
from .failures import explain
from .groups import Group
from .kernels import lookup as _lookup
from .kernels import rows as _rows
from .readback import Readback
from .optimizers import Codes, Optimizers
from .sizes import Sizes, scratch_size
from .trained import Trained
from .tune import Tuning
from .weights import Part, LoraPair, Streamer, Weight

FORGET = 64 << 20  # bytes of pooled buffers of passing sizes


class WebGpuEngine(Composed):
    """base.py says what the operations mean. float32 on a device that wgpu opened."""

    name = "webgpu"
    decode_rows, row_padding = 8, 0

    def __init__(self, device: Device):
        self.device, self.commands = device, Commands(device)
        self.training, self.sizes = False, Sizes()
        self.pool, self.capacity = Pool(device), 0  # of passing arrays, and the rows that each of them can hold
        self.bounds = self.key = None  # of the stream under way: see begin()
        self.readback, self.streamer = Readback(self), Streamer(self)
        self.recorder, self.updater = _replay.Recorder(self), _update.Updater(self)
        self.optimizers, self.tokens = Optimizers(self), _decode.TokenTapes(self)
        self.weights: list[Weight] = []
        self.canary = Canary(self)
        self.tuning = Tuning(self)
        self.begin(np.array([0, 1], np.int32), 0)

    @property
    def steps_in_flight(self) -> int:
        """A step may be encoded while the one before runs; on a software device it would only wait for its own
        cores."""
        return 0 if self.device.software else 1

    @property
    def tolerance(self) -> float:
        return 1e-4

    @property
    def compiled(self) -> bool:
        return True

    # ---- memory and transfers

    def begin(self, starts, capacity: int, key=(0, 0, 0)) -> None:
        # without a capacity sizes follow each stream's length and would pile up
        if self.pool.bytes > FORGET:
            self.commands.flush()
            self.pool.clear()
        self.bounds = self.integers(_replay.example_bounds(starts).reshape(-1))
        self.key = self.integers(np.array(key, np.int64).astype(np.int32))

    def replay(self, kind: str, body, stream):
        return self.recorder.run(kind, body, stream)

    def array(self, rows: int, columns: int, most: int | None = None) -> Array:
        """[rows, columns] from the pool, content undefined. most: rows that the buffer has (the capacity)."""
        stride = lines(columns)
        held = max(rows, self.capacity) if most is None else most
        return Array(self.pool.take(held * stride), 0, (rows, columns), stride)

    def flat(self, size: int, most: int) -> Array:
        """A vector from the pool, content undefined, in a buffer of `most` elements."""
        return Array(self.pool.take(most), 0, (size,), size)

    def scratch(self, rows: int, width: int) -> Array:
        """[rows, width] for slices of a sum, content undefined."""
        return Array(self.pool.take(scratch_size(rows * width)), 0, (rows, width), width)

    def columns(self, rows: int, *widths: int) -> tuple[Array, ...]:
        """Arrays side by side in one buffer."""
        whole, out, at = self.array(rows, sum(map(lines, widths))), [], 0
        for width in widths:
            out.append(whole.part(at, at + width))
            at += lines(width)
        return tuple(out)

    def split(self, x: Array, *widths: int) -> tuple[Array, ...]:
        """Views of parts that begin a line, else copies."""
        made, at = [], 0
        for width in widths:
            if at == lines(at):
                made.append(x.part(at, at + width))
            else:
                made.append(self.array(x.rows, width))
                self._copy(x, made[-1], width, at, 0)
            at += width
        return tuple(made)

    def join(self, parts: tuple[Array, ...]) -> Array:
        ends = np.cumsum([part.columns for part in parts]).tolist()
        return self._together(parts, [0, *ends[:-1]], ends[-1])

    def joined(self, parts: tuple[Array, ...], part: Part) -> Array:
        """Outputs of the linears of a part as one array."""
        return self._together(parts, part.bounds, part.width)

    def _together(self, parts: tuple[Array, ...], bounds: list[int], width: int) -> Array:
        """A view if the parts lie at their bounds already, else a copy."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        if all(
            p.buffer is first.buffer and p.stride == first.stride and p.at == first.at + at
            for p, at in zip(parts, bounds)
        ):
            return first.part(0, width)
        out = self.array(first.rows, width)
        for p, at in zip(parts, bounds):
            self._copy(p, out, p.columns, 0, at)
        return out

    def _copy(self, x: Array, out: Array, count: int, source: int, target: int) -> None:
        """`count` columns of x from column `source` on to `target` of out."""
        for a, b in row_cuts(self.device.max_binding, x, out):
            self.commands.run(
                _rows.copy(),
                [x.bind(a, b), out.bind(a, b)],
                (count, x.stride, out.stride, source, target),
                self.grid(count, b - a),
            )

    @staticmethod
    def grid(columns: int, rows: int) -> tuple[int, int]:
        """Workgroups for an invocation an element."""
        return -(-columns // 256), rows

    def weight(self, gguf, name: str, hold: str = "blocks") -> Weight:
        made = Weight(self, gguf, name, hold)
        self.weights.append(made)
        return made

    def streamed(self) -> list[Weight]:
        return [w for w in self.weights if w.hold == "stream"]

    def constant(self, gguf, name: str) -> Array:
        return self.vector(gguf.float32(name))

    def _upload(self, values: np.ndarray) -> Array:
        buffer = self.device.buffer(values.nbytes)
        if values.size:
            self.device.write(buffer.raw, 0, values)
        return Array(buffer, 0, values.shape, values.shape[-1])

    def vector(self, values) -> Array:
        return self._upload(np.ascontiguousarray(values, np.float32))

    def integers(self, values) -> Array:
        return self._upload(np.ascontiguousarray(values, np.int32))

    def zeros(self, size: int) -> Array:
        return Array(self.device.buffer(4 * size), 0, (size,), size)

    def host(self, x) -> np.ndarray:
        if isinstance(x, np.ndarray):
            return np.array(x)
        if isinstance(x, Sum):
            x.now()
        self.commands.flush()
        size = (x.rows - 1) * x.stride + x.columns
        flat = self.device.read(x.buffer.raw, 4 * x.at, 4 * size).view(np.float32)
        if isinstance(x, Codes):
            return flat.view(np.uint8)[: x.count].copy()
        if len(x.shape) == 1:
            return flat.copy()
        return np.lib.stride_tricks.as_strided(flat, x.shape, (4 * x.stride, 4)).copy()

    view = host

    def lower(self, values) -> Array:
        x = self.array(*values.shape)
        rows = np.zeros((x.rows, x.stride), np.float32)
        rows[:, : x.columns] = values
        self.commands.write(x, rows)
        return x

    def load(self, x: Array, values) -> None:
        if isinstance(x, Codes):
            values = np.pad(np.asarray(values, np.uint8), (0, -x.count % 4)).view(np.float32)
        self.commands.write(x, np.ascontiguousarray(values, np.float32))
        self.updater.loaded()

    def trained(self, values: Array, gradient: Array) -> Trained:
        return Trained(self, values, gradient)

    def group(
        self, weights, biases=None, pairs=None, dropout: float = 0.0, number: int = 0, bias_gradients=None
    ) -> Group:
        return Group(self, weights, biases, pairs, dropout, number, bias_gradients)

    def lora_pair(self, a, b, scale, grad_a=None, grad_b=None) -> LoraPair:
        return LoraPair(a, b, float(scale), grad_a, grad_b)

    def prepare(self, groups: list[Group], parameters: Array | None, gradients: Array | None) -> None:
        """Bring the weights to the device, so that a step finds them there."""
        self.release()
        self.updater.ready()
        self.updater.loaded()
        for group in groups:
            for part in group.parts():
                if part.weights[0].hold != "stream":
                    for weight in part.weights:
                        weight.rows()
        self.tuning.ensure()

    def release(self) -> None:
        self.commands.flush()
        self.recorder.clear()
        self.tokens.clear()
        self.pool.clear()
        self.streamer.clear()
        self.device.forget_groups()
        self.commands.flush()

    def budget(self, weights, memory: int | None) -> Budget:
        return Budget(self, weights, memory)

    def peak(self) -> int:
        return self.device.peak

    def flops_per_second(self) -> float:
        return self.tuning.flops_per_second()

    def explain(self, error: Exception, estimate: int | None = None) -> str | None:
        return explain(self, error, estimate)

    def identity(self) -> dict:
        return {
            "engine": self.name,
            "device": self.device.name,
            "driver": str(self.device.info.get("description", "")),
            "tiles": self.tuning.name,
        }

    def tile_product(self, forward: bool, m: int, n: int, k: int):
        """(tile, slices of the sum, the sum's length in a slice)."""
        return self.tuning.tiling(forward, m, n, k)

    def most_columns(self, rows: int, k: int) -> int:
        """Columns of a product that one dispatch may hold; multiples of 64."""
        if self.commands.tape is None:
            self.tuning.ensure()
        return max(64, int(self.commands.piece / (2.0 * rows * k)) // 64 * 64)

    # ---- operations

    linear = _linear.linear
    linear_backward = _linear.linear_backward
    linear_decode = _decode.linear_decode
    logits = _decode.logits
    cache = _decode.cache
    places = _decode.places
    store = _decode.store
    attend_cache = _decode.attend_cache
    attention = _attention.attention
    attention_backward = _attention.attention_backward
    cross_entropy = _loss.cross_entropy
    gain_gradient = _gradients.gain_gradient
    embed_backward = _gradients.embed_backward

    def decode(self, body, ids, spans, rows):
        return self.tokens.run(body, ids, spans, rows)

    def adamw(self, *args):
        self.canary.look()
        return self.updater.adamw(*args)

    def norm(self, gradients: list[Array]) -> float:
        return self.optimizers.norm(gradients)

    def optimizer_state(self, kind: str, shape: tuple[int, ...]) -> dict[str, Array]:
        return self.optimizers.start(kind, shape)

    def optimize(self, kind: str, p: Array, g: Array, state: dict[str, Array], shape: tuple[int, ...], rule) -> None:
        self.optimizers.step(kind, p, g, state, shape, rule)

    def embed(self, ids: Array, table: Weight | Trained, scale: float) -> Array:
        out = self.array(ids.size, table.in_features)
        for low, high, weights, base in table.pieces(1, 1 << 30):
            for a, b in row_cuts(self.device.max_binding, out):
                held = ids.bind()
                self.commands.run(
                    _lookup.embed(table.block),
                    [weights, held, out.bind(a, b)],
                    (base, table.row_bytes, out.columns, out.stride, held.shift + a, low, high, scale),
                    (-(-out.columns // 1024), b - a),
                    4.0 * (b - a) * out.columns,
                )
        return out

    def gather(self, x: Array, rows: Array) -> Array:
        out = self.array(rows.size, x.columns)
        for low, high in row_cuts(self.device.max_binding, x):
            for a, b in row_cuts(self.device.max_binding, out):
                source, held = x.bind(low, high), rows.bind()
                self.commands.run(
                    _rows.gather(),
                    [source, held, out.bind(a, b)],
                    (x.columns, x.stride, out.stride, source.shift, held.shift + a, low, high, x.rows - 1),
                    self.grid(x.columns, b - a),
                )
        return out

    def scatter(self, y: Array, rows: Array, tokens: int) -> Array:
        out = self.array(tokens, y.columns)
        for low, high in row_cuts(self.device.max_binding, out):
            self.commands.run(
                _rows.fill(), [out.bind(low, high)], (y.columns, out.stride, 0, 0.0), self.grid(y.columns, high - low)
            )
            for a, b in row_cuts(self.device.max_binding, y):
                held = rows.bind()
                self.commands.run(
                    _rows.scatter(),
                    [y.bind(a, b), held, out.bind(low, high)],
                    (y.columns, y.stride, out.stride, held.shift + a, low, high),
                    self.grid(y.columns, b - a),
                )
        return out

    def add(self, x: Array, y: Array) -> Array:
        """Waits for the norm that follows, so that sum and norm are one pass; see Sum."""
        return Sum(x, y, self._add)

    def _add(self, total: Sum) -> None:
        x, y = total.take(), Array(total.buffer, total.at, total.shape, total.stride)
        for a, b in row_cuts(self.device.max_binding, x, y):
            self.commands.run(
                _rows.add(), [x.bind(a, b), y.bind(a, b)], (x.columns, x.stride, y.stride), self.grid(x.columns, b - a)
            )

    def scale(self, x: Array, factor: float | Array) -> Array:
        out, each = self.array(*x.shape), isinstance(factor, Array)
        for a, b in row_cuts(self.device.max_binding, x, out, factor if each else None):
            self.commands.run(
                _rows.scale(each),
                [x.bind(a, b), *([factor.bind(a, b)] if each else []), out.bind(a, b)],
                (x.columns, x.stride, out.stride, factor.stride if each else factor),
                self.grid(x.columns, b - a),
            )
        return out

    def rms_norm(self, x: Array, gain: Array, eps: float) -> Array:
        out, more = self.array(*x.shape), x.take() if isinstance(x, Sum) else None
        for a, b in row_cuts(self.device.max_binding, x, more, out):
            arrays = [x.bind(a, b), gain, *([] if more is None else [more.bind(a, b)]), out.bind(a, b)]
            self.commands.run(
                _rows.rms_norm(more is not None),
                arrays,
                (x.columns, x.stride, out.stride, eps, *([] if more is None else [more.stride])),
                (b - a,),
                6.0 * (b - a) * x.columns,
            )
        return out

    def rms_norm_backward(self, dy: Array, x: Array, gain: Array, eps: float, residual: Array | None = None) -> Array:
        out, adds = self.array(*x.shape), residual is not None
        for a, b in row_cuts(self.device.max_binding, dy, x, residual, out):
            self.commands.run(
                _rows.rms_norm_backward(adds),
                [dy.bind(a, b), x.bind(a, b), gain, *([residual.bind(a, b)] if adds else []), out.bind(a, b)],
                (x.columns, dy.stride, x.stride, out.stride, eps, *([residual.stride] if adds else [])),
                (b - a,),
                12.0 * (b - a) * x.columns,
            )
        return out

    def qk_norm_rope(self, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool):
        normed = gains is not None
        out = self.columns(q.rows, q.columns, k.columns) if normed else (q, k)
        for x, y, count, queries in _heads((q, k), out, heads):
            for a, b in row_cuts(self.device.max_binding, x, y):
                where = positions.bind()
                arrays = [x.bind(a, b), *(gains if normed else ()), *table, where, *([y.bind(a, b)] if normed else [])]
                self.commands.run(
                    _rows.qk_norm_rope(normed, neox),
                    arrays,
                    (heads.head_dim, table[0].columns, x.stride, y.stride, eps, queries, where.shift + a),
                    (count, b - a),
                    8.0 * (b - a) * x.columns,
                )
        return out

    def qk_norm_rope_backward(
        self, dq, dk, q, k, gains, eps: float, table, positions, heads: Heads, neox: bool, into=(None, None)
    ):
        if any(gradient is not None for gradient in into):  # the gains' gradients are between turning and norms
            self._qk_norm_rope_back(dq, dk, q, k, None, eps, table, positions, heads, neox)
            for dx, x, gradient in zip((dq, dk), (q, k), into):
                if gradient is not None:
                    self.gain_gradient(dx, x, eps, gradient)
            return self._qk_norm_rope_back(dq, dk, q, k, gains, eps, table, positions, heads, neox, turns=False)
        return self._qk_norm_rope_back(dq, dk, q, k, gains, eps, table, positions, heads, neox)

    def _qk_norm_rope_back(self, dq, dk, q, k, gains, eps, table, positions, heads, neox, turns: bool = True):
        normed = gains is not None
        for dx, x, count, queries in _heads((dq, dk), (q, k) if normed else (dq, dk), heads):
            for a, b in row_cuts(self.device.max_binding, dx, x):
                where = positions.bind()
                arrays = [dx.bind(a, b), *([x.bind(a, b), *gains] if normed else []), *table, where]
                self.commands.run(
                    _rows.qk_norm_rope_backward(normed, neox),
                    arrays,
                    (
                        heads.head_dim,
                        table[0].columns if turns else 0,
                        dx.stride,
                        x.stride,
                        eps,
                        queries,
                        where.shift + a,
                    ),
                    (count, b - a),
                    16.0 * (b - a) * x.columns,
                )
        return dq, dk

    def glu(self, gate: Array, up: Array, activation: str) -> Array:
        out = self.array(*gate.shape)
        for a, b in row_cuts(self.device.max_binding, gate, up, out):
            self.commands.run(
                _rows.glu(activation),
                [gate.bind(a, b), up.bind(a, b), out.bind(a, b)],
                (gate.columns, gate.stride, up.stride, out.stride),
                self.grid(gate.columns, b - a),
                10.0 * (b - a) * gate.columns,
            )
        return out

    def glu_backward(self, dy: Array, gate: Array, up: Array, activation: str) -> tuple[Array, Array]:
        dgate, dup = self.columns(gate.rows, gate.columns, gate.columns)
        for a, b in row_cuts(self.device.max_binding, dy, gate, up, dgate):
            self.commands.run(
                _rows.glu_backward(activation),
                [dy.bind(a, b), gate.bind(a, b), up.bind(a, b), dgate.bind(a, b), dup.bind(a, b)],
                (gate.columns, dy.stride, gate.stride, up.stride, dgate.stride),
                self.grid(gate.columns, b - a),
                20.0 * (b - a) * gate.columns,
            )
        return dgate, dup

    def glu_linear_backward(
        self, dy, gate: Array, up: Array, activation: str, group: Group, then, need_dx: bool = True
    ):
        """As composed.py's; the gradients lie where gate and up lay."""
        da = self.linear_backward((dy,), self.glu(gate, up, activation), group, need_dx)
        if not need_dx:
            return None
        for a, b in row_cuts(self.device.max_binding, da, gate, up):
            self.commands.run(
                _rows.glu_backward_over(activation),
                [da.bind(a, b), gate.bind(a, b), up.bind(a, b)],
                (gate.columns, da.stride, gate.stride, up.stride),
                self.grid(gate.columns, b - a),
                20.0 * (b - a) * gate.columns,
            )
        return gate, up

    def offload(self, x):
        return x

    def prefetch(self, ticket):
        return ticket


def _heads(one: tuple[Array, Array], two: tuple[Array, Array], heads: Heads):
    """(an array of `one`, its neighbour of `two`, heads, how many of them are queries): queries and keys as one array
    where they lie side by side in both."""
    (q, k), (other_q, other_k) = one, two
    if all(b.buffer is a.buffer and b.stride == a.stride and b.at == a.at + a.columns for a, b in (one, two)):
        width = q.columns + k.columns
        yield q.part(0, width), other_q.part(0, width), heads.n_heads + heads.n_kv_heads, heads.n_heads
    else:
        yield q, other_q, heads.n_heads, heads.n_heads
        yield k, other_k, heads.n_kv_heads, 0


def open_engine(name: str, max_binding: int | None = None) -> WebGpuEngine:
    """The engine of a device's name: webgpu, webgpu:1. max_binding: as Device's. Raises UserError."""
    number = name.partition(":")[2]
    if number and not number.isdigit():
        raise UserError(f"there is no device {name!r}: give --device webgpu, or a number as in webgpu:1")
    return WebGpuEngine(open_device(int(number) if number else None, max_binding))
