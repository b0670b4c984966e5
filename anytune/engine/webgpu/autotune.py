"""Autotuning of the products' tiles: candidates are timed against each other on this device.

An idle GPU lowers its clocks, some by a factor of five. So everything is compiled and checked first, the device is kept
busy until its clocks are up, and candidates take several turns each; the best time of each counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np

from .arrays import Array
from .failures import DeviceError
from .kernels.gemm import Tile
from .weights import Part

WIDTH = 2048
WIDER = 4  # a second product, so much wider, as the hidden layer's are
TOKENS = (128, 1024)  # the sizes with which the two classes of products are tuned
TILES = (
    Tile(),
    Tile(ahead=True),
    Tile(64, 32, 32, 4, 4),
    Tile(32, 64, 16, 4, 4),
    Tile(64, 64, 16, 8, 4),
    Tile(128, 64, 16, 8, 4),
    Tile(128, 64, 16, 8, 4, True),
    Tile(128, 64, 16, 8, 8),
    Tile(128, 128, 8, 8, 8),
)
WORKGROUPS = (0, 128, 256, 512, 1024)  # that a product should have; fewer are made up for by slices
FASTER = 0.97  # of the time that is to beat: less may be chance
SLOW = 0.02  # seconds of the default's product, from which on the wider one is left out
BUSY = 0.2  # seconds of work until clocks are up
LASTS = 3e-3  # seconds that a candidate's turn should take
TURNS = 4
STEADY = 1.25  # second-best over best time of the fastest candidate, at most, or all are timed again
AGAIN = 3  # times, at most
PATIENCE = 4.0  # seconds of one tuning; on a slow device only the first candidates are timed
HOPELESS = 1.15  # of the best time so far: no further turns


@dataclass(frozen=True)
class Product:
    """x [tokens, k] times `n` columns of the weights (forward) or as many rows of them as k (backward), into y."""

    forward: bool
    n: int
    k: int
    x: Array
    y: Array


class Autotune:
    """Products of random Q8_0 blocks, and their times."""

    def __init__(self, engine, width: int = 0, wider: int = 0):
        random = np.random.default_rng(0)
        self.e, self.width, self.rows = engine, width or WIDTH, (wider or WIDER) * (width or WIDTH)
        blocks = random.integers(0, 256, (self.rows, self.width // 32, 34), dtype=np.uint8)
        blocks[:, :, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        self.raw = engine.integers(blocks.reshape(-1).view(np.int32))
        self.x = random.standard_normal(max(TOKENS) * self.rows).astype(np.float32)

    # ---- products

    def products(self, forward: bool, tokens: int) -> list[Product]:
        """A square product and a wide one; on slow devices the square one."""
        made = []
        for rows in dict.fromkeys((self.width, self.rows)):
            n, k = (rows, self.width) if forward else (self.width, rows)
            made.append(Product(forward, n, k, self._array(tokens, k), self._array(tokens, n)))
            if len(made) == 1 and self.once(lambda: self.run(made[0], Tile(), 0)) > SLOW:
                break
        return made

    def _array(self, tokens: int, columns: int) -> Array:
        held = self.e.vector(self.x[: tokens * columns])
        return Array(held.buffer, 0, (tokens, columns), columns)

    def run(self, p: Product, tile: Tile, groups: int) -> None:
        """Queue a product with this tile, and with its sum in slices for `groups` workgroups."""
        from .linear import product

        e, part = self.e, _Blocks(self.rows, self.width)
        before, e.tile_product = e.tile_product, lambda way, m, n, k: e.tuning.slices(tile, groups, m, n, k)
        try:
            product(e, p.x, part, (0, p.n if p.forward else p.k, self.raw.bind(), 0), p.forward, p.y, False)
        finally:
            e.tile_product = before

    def best(self, forward: bool, tokens: int, tiles: list[Tile]) -> tuple[Tile, int, float]:
        """(tile, workgroups, seconds of all products) of the fastest that gives the default's result."""
        until = time.perf_counter() + PATIENCE
        products = self.products(forward, tokens)
        candidates = self._sound(products, tiles, until)
        if not candidates:
            raise DeviceError("other", "no matrix product gives the known answer: the device computes wrongly")
        times = self.times(candidates, lambda c: self.seconds(products, *c), until)
        best = candidates[0]
        for c in list(times)[1:]:  # the first listed, unless another is clearly faster
            if times[c] < FASTER * times[best]:
                best = c
        return *best, times[best]

    def _sound(self, products: list[Product], tiles: list[Tile], until: float) -> list[tuple[Tile, int]]:
        """Tiles with numbers of workgroups that fit, cut sums each in another way, and give the default's result."""
        e, square, found, tilings = self.e, products[0], [], set()
        tokens = square.x.rows
        self.run(square, Tile(), 0)
        wanted = e.host(square.y)  # the default's, which the known answers prove
        for tile in tiles:
            if tile.m > 2 * tokens or tile.bytes > 16384 or tile.threads > 256:
                continue
            for groups in WORKGROUPS:
                tiling = (tile, *(e.tuning.slices(tile, groups, tokens, p.n, p.k)[1:] for p in products))
                if tiling in tilings or found and time.perf_counter() > until:
                    continue
                tilings.add(tiling)
                self.run(square, tile, groups)
                if np.max(np.abs(e.host(square.y) - wanted)) <= 1e-4 * np.max(np.abs(wanted)):
                    found.append((tile, groups))
        return found

    def seconds(self, products: list[Product], tile: Tile, groups: int) -> float:
        return sum(self.lasting(lambda p=p: self.run(p, tile, groups)) for p in products)

    def rate(self, tile: Tile, tokens: int) -> float:
        """FLOP/s of a square product."""
        n = self.width
        p = Product(True, n, n, self._array(tokens, n), self._array(tokens, n))
        self.busy(lambda: self.once(lambda: self.run(p, tile, 0), 4))
        return 2.0 * tokens * n * n / min(self.lasting(lambda: self.run(p, tile, 0)) for _ in range(2))

    # ---- time

    def once(self, action: Callable[[], None], rounds: int = 1) -> float:
        """Seconds of one action, of `rounds` in a row."""
        commands, device = self.e.commands, self.e.device
        commands.flush()
        device.wait()
        begun = time.perf_counter()
        for _ in range(rounds):
            action()
        commands.flush()
        device.wait()
        return (time.perf_counter() - begun) / rounds

    def lasting(self, action: Callable[[], None]) -> float:
        """Seconds of one action, of enough in a row that submitting and waiting hardly count."""
        if self.e.device.software:
            return self.once(action)
        return self.once(action, min(max(int(LASTS / self.once(action, 2)), 2), 64))

    def busy(self, work: Callable[[], object]) -> None:
        """Repeat what waits for the device until its clocks are up."""
        until = time.perf_counter() + BUSY * (not self.e.device.software)
        while time.perf_counter() < until:
            work()

    def times(
        self, candidates: list[Hashable], seconds: Callable[[Hashable], float], until: float = math.inf
    ) -> dict[Hashable, float]:
        """The best time of each candidate over several turns; those that are far behind get one. Where a device is
        busy with others' work, times vary, and the timing is repeated. After `until` no further candidate starts."""
        out: dict[Hashable, float] = {}
        for c in candidates:  # compiled
            out[c] = seconds(c)
            if time.perf_counter() > until:
                return out
        for _ in range(AGAIN):
            self.busy(lambda: seconds(candidates[0]))
            out, second = (dict.fromkeys(candidates, math.inf) for _ in range(2))
            left = list(candidates)
            for _ in range(TURNS):
                for c in left:
                    found = seconds(c)
                    out[c], second[c] = min(out[c], found), min(second[c], max(out[c], found))
                left = [c for c in left if out[c] <= HOPELESS * min(out.values())]
            winner = min(out, key=out.get)
            if second[winner] <= STEADY * out[winner] or time.perf_counter() > until:
                break
        return out


class _Blocks(Part):
    """A part without weights of a file: what product() asks of one."""

    block, row_bytes = "Q8_0", 0

    def __init__(self, rows: int, width: int):
        super().__init__([], 0, rows, [0, rows], [None])
        self.row_bytes = width // 32 * 34
