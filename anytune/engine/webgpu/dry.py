"""The WebGPU engine run dry: its own code on buffers without memory, with commands that are not executed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from anytune.engine import optimizers as rules
from anytune.engine.dry import Ledger
from anytune.errors import UserError

from . import replay
from .arrays import Array, Bound, Pool
from .commands import Commands
from .device import Buffer
from .optimizers import Codes
from .weights import Weight


class DryDevice:
    """The limits of a device, and buffers as sizes."""

    def __init__(self, device: Any, ledger: Ledger):
        self.device, self.ledger, self._serials = device, ledger, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.device, name)

    def buffer(self, size: int, owned: bool = True) -> Buffer:
        size = -(-max(size, 4) // 4) * 4
        self._serials += 1
        if owned:
            self.ledger.take("bytes", size)
        return Buffer(self, None, size, self._serials, owned)

    def _drop(self, buffer: Buffer) -> None:
        if buffer.owned:
            self.ledger.give("bytes", buffer.size)

    def write(self, raw: None, at: int, values: np.ndarray) -> None:
        pass

    def read(self, raw: None, at: int, size: int) -> np.ndarray:
        return np.zeros(size, np.uint8)

    def forget_groups(self) -> None:
        pass


class DryPool(Pool):
    """Enters loans into the ledger, a kind for each size."""

    def take(self, floats: int) -> Any:
        self.device.ledger.take(4 * floats)
        return super().take(floats)

    def back(self, serial: int, turn: int) -> None:
        self.device.ledger.give(self._lent[serial].size)
        super().back(serial, turn)


class DryCommands(Commands):
    """Makes the bindings, which add what is still to be added, and nothing more."""

    def __init__(self, device: DryDevice, commands: Commands):
        super().__init__(device)
        self.rate = commands.rate

    def run(self, kernel: Any, arrays: list, numbers: tuple, grid: tuple[int, ...], cost: float = 0.0) -> None:
        for array in arrays:
            if not isinstance(array, Bound):
                array.bind()

    def write(self, target: Array, values: np.ndarray) -> None:
        pass

    def upload(self, action: Callable[[], None]) -> None:
        pass

    def flush(self) -> None:
        pass


class DryWeight(Weight):
    """A matrix whose bytes are not read."""

    def forget(self) -> None:
        self._rows = None

    def write(self, buffer: Buffer, at: int, low: int = 0, high: int | None = None) -> None:
        pass


class DryCanary:
    def look(self) -> None:
        """A device that does not compute computes nothing wrong."""


def dry(engine: Any, sizes: Any, capacity: int) -> Dry:
    """The engine run dry, for streams of up to `capacity` tokens."""
    return type("DryEngine", (Dry, type(engine)), {})(engine, sizes, capacity)


class Dry:
    """What differs from an engine that computes; see anytune.engine.budget."""

    def __init__(self, engine: Any, sizes: Any, capacity: int):
        self.ledger = Ledger()
        super().__init__(DryDevice(engine.device, self.ledger))
        self.commands, self.tuning = DryCommands(self.device, engine.commands), engine.tuning
        self.sizes, self.training, self.capacity, self.pool = sizes, True, capacity, DryPool(self.device)
        self.recorder.running = True
        self.canary = DryCanary()
        self._tables: list[DryWeight] = []
        self._names: dict[tuple[int, ...], list[str]] = {}  # of the file's matrices, by shape

    def begin(self, starts, capacity: int, key=(0, 0, 0)) -> None:
        self.bounds = self.integers(replay.example_bounds(starts).reshape(-1))
        self.key, self.real = self.integers(np.zeros(3, np.int32)), self.integers(np.zeros(2, np.int32))

    def settle(self) -> None:
        """Nothing waits."""

    @contextlib.contextmanager
    def counting(self) -> Iterator[Ledger]:
        yield self.ledger
        self.streamer.clear()  # each count makes its own, and reads the tables that it looks up
        for table in self._tables:
            table.forget()

    def total(self, most: dict) -> int:
        """Bytes of the units of each kind."""
        return sum(units * (1 if kind == "bytes" else kind) for kind, units in most.items())

    @staticmethod
    def lasting(sizes: Any) -> None:
        """What of the sizes decides about arrays that outlast a layer: nothing."""

    def weight(self, gguf, name: str, hold: str = "blocks") -> DryWeight:
        made = DryWeight(self, gguf, name, hold)
        self.weights.append(made)
        self._tables += [made] * (hold == "lookup")
        self._names.setdefault(tuple(gguf.tensors[name].shape), []).append(name)
        return made

    def trained(self, values: Array, gradient: Array) -> Any:
        size, device = 4 * values.size, self.device
        if size > device.max_buffer:
            names = " and ".join(self._names.get(tuple(values.shape), []))
            raise UserError(
                f"{names} would take {size >> 20} MiB as float32, and {device.name} allows "
                f"{device.max_buffer >> 20} MiB for one tensor: exclude it from --train-modules (embed is the "
                "largest)"
            )
        return super().trained(values, gradient)

    def constant(self, gguf, name: str) -> Array:
        """It is on the device already."""
        shape = gguf.tensors[name].shape
        return Array(Buffer(self.device, None, 0, 0, False), 0, shape, shape[-1])

    def optimizer_state(self, kind: str, shape: tuple[int, ...]) -> dict[str, Array]:
        return {
            name: Codes(self.zeros(-(-sizes[0] // 4)), sizes[0]) if dtype is np.uint8 else self.zeros(sizes[0])
            for name, (sizes, dtype) in rules.state_shapes(kind, shape).items()
        }
