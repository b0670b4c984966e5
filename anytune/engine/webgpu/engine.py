"""The WebGPU engine: memory, transfers and recordings; operations.py names the operations."""

from __future__ import annotations

import numpy as np

from anytune.errors import UserError

from .adapters import open_device
from .arrays import Array, Pool, Sum, lines
from .budget import Budget
from .canary import Canary
from .commands import Commands
from .decode import TokenTapes
from .device import Device
from .failures import explain
from .groups import Group
from .operations import Operations
from .optimizers import Codes, Optimizers
from .readback import Readback
from .replay import Recorder, example_bounds
from .sizes import Sizes, scratch_size
from .trained import Trained
from .tune import Tuning
from .update import Updater
from .weights import LoraPair, Streamer, Weight

FORGET = 64 << 20  # bytes of pooled buffers, beyond which they are freed


class WebGpuEngine(Operations):
    """base.py says what the operations mean. float32 on a device that wgpu opened."""

    name = "webgpu"
    decode_rows, row_padding = 8, 0
    offers = frozenset({"delta", "convolution", "experts", "expert scales", "sinks", "latent"})

    def __init__(self, device: Device):
        self.device, self.commands = device, Commands(device)
        self.training, self.sizes = False, Sizes()
        self.pool, self.capacity = Pool(device), 0  # of temporary arrays, and the rows that each of them can hold
        self.bounds = self.key = self.real = None  # of the stream under way: see begin()
        self.loads: Array | None = None  # of routers; see routing.py
        self.loss_rows, self.trimmed = None, False  # of a recorded stream, and whether the arrays have those rows alone
        self.readback, self.streamer = Readback(self), Streamer(self)
        self.recorder, self.updater = Recorder(self), Updater(self)
        self.optimizers, self.tokens = Optimizers(self), TokenTapes(self)
        self.weights: list[Weight] = []
        self.canary = Canary(self)
        self.tuning = Tuning(self)
        self.begin(np.array([0, 1], np.int32), 0)

    @property
    def steps_in_flight(self) -> int:
        """A step may be encoded while the one before runs; on a software device both would use the same cores."""
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
        self.bounds = self.integers(example_bounds(starts).reshape(-1))
        self.key = self.integers(np.array(key, np.int64).astype(np.int32))
        self.real = self.integers(np.array([starts[-1]] * 2, np.int32))

    def replay(self, kind: str, body, stream):
        return self.recorder.run(kind, body, stream)

    def array(self, rows: int, columns: int, most: int | None = None) -> Array:
        """[rows, columns] from the pool, content undefined. most: rows that the buffer has (buffer_rows())."""
        stride = lines(columns)
        held = self.buffer_rows(rows) if most is None else most
        return Array(self.pool.take(held * stride), 0, (rows, columns), stride)

    def buffer_rows(self, rows: int) -> int:
        """Rows of a buffer that serves all streams: for a token of the capacity as many as for one of this stream."""
        return max(rows, -(-rows // max(1, self.bounds.size // 2)) * self.capacity)

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

    @staticmethod
    def grid(columns: int, rows: int) -> tuple[int, int]:
        """Workgroups for one invocation per element."""
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
        if len(x.shape) != 2:
            return flat.reshape(x.shape).copy()
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
            group.load()
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

    def offload(self, x):
        return x

    def prefetch(self, ticket):
        return ticket


def open_engine(name: str, max_binding: int | None = None) -> WebGpuEngine:
    """The engine of a device's name: webgpu, webgpu:1. max_binding: as Device's. Raises UserError."""
    number = name.partition(":")[2]
    if number and not number.isdigit():
        raise UserError(f"there is no device {name!r}: give --device webgpu, or a number as in webgpu:1")
    return WebGpuEngine(open_device(int(number) if number else None, max_binding))
