"""Which tile a product takes, and into how many slices its sum is cut: defaults, or what a short race on the device
found.

Variants are compared on products like a model's, with few and with many tokens, in both directions; one counts only if
it gives the default's result. What won is kept in a file for each device and version of the kernels. Software devices
are not raced: there the default is as good as any.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import astuple
from pathlib import Path

import numpy as np

from anytune.files import atomic_write

from .arrays import Array
from .commands import SHARE
from .kernels import gemm as _gemm
from .kernels.gemm import Tile
from .weights import Part

WIDTH, OUT = 2048, 2048
TOKENS = (128, 1024)          # what the two classes of products are raced with
MANY = 384                    # rows from which a product counts as one of many tokens
TILES = (Tile(), Tile(ahead=True), Tile(64, 32, 32, 4, 4), Tile(32, 64, 16, 4, 4), Tile(64, 64, 32, 4, 4),
         Tile(64, 64, 16, 8, 4), Tile(128, 64, 16, 8, 4, True), Tile(128, 128, 16, 8, 8),
         Tile(128, 128, 16, 8, 8, True))
WORKGROUPS = (0, 128, 256, 512, 1024)   # that a product should have; fewer are made up for by slices
SHORTEST = 64                 # of the sum in a slice, at least
PART = 64 << 20               # bytes of slices, at most


class Tuning:
    """The choices for one engine."""

    def __init__(self, engine):
        self.engine = engine
        self.choices: dict[tuple[bool, bool], tuple[Tile, int]] = {}
        self._asked, self.rate = False, 0.0

    @property
    def name(self) -> str:
        """The choices in a few characters: they decide how sums are rounded."""
        text = repr(sorted((key, tile.name, groups) for key, (tile, groups) in self.choices.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:8] if self.choices else "default"

    def plan(self, forward: bool, m: int, n: int, k: int) -> tuple[Tile, int, int]:
        """(tile, slices of the sum, length of a slice) of out [m, n] with sums over k."""
        tile, wanted = self.choices.get((forward, m >= MANY), (Tile(), 0))
        return self.slices(tile, wanted, m, n, k)

    def slices(self, tile: Tile, wanted: int, m: int, n: int, k: int) -> tuple[Tile, int, int]:
        groups = -(-n // tile.n) * -(-m // tile.m)
        most = min(k // SHORTEST, PART // (4 * m * n) if m * n else 1,
                   (self.engine.device.max_binding // (4 * m * (n + 64))))
        count = max(1, min(wanted // groups, most))
        step = -(-k // count)
        step = max(64, -(-step // 64) * 64)
        return tile, -(-k // step) or 1, step

    # ---- the race

    def ensure(self) -> None:
        """Know the device's rate and the choices: these from the file, or by a race of a second or two."""
        if self._asked:
            return
        self._asked = True
        if not self.engine.device.software:
            self._choose()
        self.rate = self._rate()
        self.engine.commands.rate = SHARE * self.rate

    def _choose(self) -> None:
        path = self._path()
        try:
            rows = json.loads(path.read_text("utf-8"))["choices"]
            self.choices = {(r["forward"], r["many"]): (Tile(*r["tile"]), r["workgroups"]) for r in rows}
            return
        except (OSError, ValueError, KeyError, TypeError):
            pass    # not there, or another version's: race
        rows = self.race()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps({"device": self.engine.device.name, "choices": rows}, indent=1).encode())
        except OSError:
            pass    # a memory that cannot be kept is no reason to stop

    def _path(self) -> Path:
        info = self.engine.device.info
        kernels = "".join(_gemm.gemm("Q8_0", way, tile).text() for way in (True, False) for tile in TILES)
        text = repr(sorted((k, str(v)) for k, v in info.items())) + repr((WORKGROUPS, TOKENS)) + kernels
        folder = os.environ.get("ANYTUNE_CACHE") or Path.home() / ".cache" / "anytune"
        return Path(folder) / "webgpu" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def race(self) -> list[dict]:
        """Time every variant -> the winners, JSON-able; they are the choices from now on."""
        race, rows = _Race(self.engine), []
        for forward in (True, False):
            for tokens in TOKENS:
                best = race.best(forward, tokens)
                tile, groups, seconds = best
                self.choices[forward, tokens >= MANY] = tile, groups
                rows.append({"forward": forward, "many": tokens >= MANY, "workgroups": groups,
                             "tile": list(astuple(tile)), "microseconds": round(1e6 * seconds, 1)})
        return rows

    def flops_per_second(self) -> float:
        """What training will reach, about: the rate of one product, times the part of it that a step usually gets."""
        self.ensure()
        return 0.6 * self.rate

    def _rate(self) -> float:
        """FLOP/s of one product of many tokens."""
        software = self.engine.device.software
        tokens, width = (64, 256) if software else (TOKENS[1], WIDTH)
        tile, _ = self.choices.get((True, True), (Tile(), 0))
        return 2.0 * tokens * width * width / _Race(self.engine, width).seconds(True, tokens, tile, 0)


class _Race:
    """Products of random Q8_0 blocks and their times."""

    def __init__(self, engine, width: int = 0):
        random = np.random.default_rng(0)
        self.e, self.width = engine, width or WIDTH
        width = self.width
        blocks = random.integers(0, 256, (width, width // 32, 34), dtype=np.uint8)
        blocks[:, :, :2] = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
        self.raw = engine.integers(blocks.reshape(-1).view(np.int32))
        self.x = random.standard_normal(max(TOKENS) * width).astype(np.float32)

    def _array(self, values: np.ndarray, tokens: int) -> Array:
        made = self.e.vector(values[:tokens * self.width])
        return Array(made.buffer, 0, (tokens, self.width), self.width)

    def _run(self, forward: bool, tile: Tile, groups: int, x: Array, y: Array) -> None:
        from .linear import product
        e, part = self.e, _Blocks(self.width)
        planned, e.plan_product = e.plan_product, lambda way, m, n, k: e.tuning.slices(tile, groups, m, n, k)
        try:
            product(e, x, 0, self.raw.bind(), 0, part, forward, 0, self.width, self.width, y, 0, False, None, None,
                    None)
        finally:
            e.plan_product = planned

    def seconds(self, forward: bool, tokens: int, tile: Tile, groups: int, x: Array | None = None,
                y: Array | None = None) -> float:
        x = x or self._array(self.x, tokens)
        y = y or self._array(self.x, tokens)
        commands, device = self.e.commands, self.e.device
        times, rounds = [], 1 if device.software else 8
        for _ in range(2 if device.software else 4):
            commands.flush()
            device.wait()
            begun = time.perf_counter()
            for _ in range(rounds):
                self._run(forward, tile, groups, x, y)
            commands.flush()
            device.wait()
            times.append((time.perf_counter() - begun) / rounds)
        return min(times)

    def best(self, forward: bool, tokens: int) -> tuple[Tile, int, float]:
        e, best, wanted = self.e, None, None
        x, y = self._array(self.x, tokens), self._array(self.x, tokens)
        for tile in TILES:
            if tile.m > 2 * tokens or tile.bytes > 16384 or tile.threads > 256:
                continue
            for groups in WORKGROUPS:
                if groups and e.tuning.slices(tile, groups, tokens, self.width, self.width)[1] == 1:
                    continue
                self._run(forward, tile, groups, x, y)
                got = e.host(y)
                # the first is the default, which the known answers prove
                wanted = got if wanted is None else wanted
                if not np.max(np.abs(got - wanted)) <= 1e-4 * np.max(np.abs(wanted)):
                    continue
                seconds = self.seconds(forward, tokens, tile, groups, x, y)
                if best is None or seconds < 0.97 * best[2]:
                    best = (tile, groups, seconds)
        return best


class _Blocks(Part):
    """A part without weights of a file: what product() asks of one."""

    block, row_bytes = "Q8_0", 0

    def __init__(self, width: int):
        super().__init__([], 0, width, [0, width], [None])
        self.row_bytes = width // 32 * 34
