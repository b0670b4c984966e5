"""Which tile a product takes, into how many slices its sum is cut, and which variants are used: defaults, or what a
short race on the device found.

Tiles are compared on products like a model's, with few and with many tokens, in both directions; one counts only if it
gives the default's result. Variants (see variants.py) give their known answers at every start, and race the kernels
that they would replace once. What won is kept in a file for each device, driver and version of the kernels. Software devices
are not raced: there the default is as good as any.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np

from anytune.files import atomic_write

from .arrays import Array
from .commands import SHARE
from .device import DeviceError
from .kernels import gemm as _gemm
from .kernels import gemv as _gemv
from .kernels import optimizer as _optimizer
from .kernels import rows as _rows
from .kernels.gemm import Tile
from .variants import DOT, GEMV, ROWS, TILES as F16_TILES, sound
from .weights import Part

WIDTH, OUT = 2048, 2048
TOKENS = (128, 1024)          # what the two classes of products are raced with
MANY = 384                    # rows from which a product counts as one of many tokens
TILES = (Tile(), Tile(ahead=True), Tile(64, 32, 32, 4, 4), Tile(32, 64, 16, 4, 4), Tile(64, 64, 32, 4, 4),
         Tile(64, 64, 16, 8, 4), Tile(128, 64, 16, 8, 4, True), Tile(128, 128, 16, 8, 8),
         Tile(128, 128, 16, 8, 8, True))
WORKGROUPS = (0, 128, 256, 512, 1024)   # that a product should have; fewer are made up for by slices
FEW = (1, 8)                  # rows that products of few rows are raced with
ROUNDS_OF = 5e-3              # seconds that an action is repeated for
FASTER = 0.97                 # of the time that is to beat: less may be chance
ROUNDED = 2e-3                # what float16 operands may change
SHORTEST = 64                 # of the sum in a slice, at least
PART = 64 << 20               # bytes of slices, at most


class Tuning:
    """The choices for one engine."""

    def __init__(self, engine):
        self.engine = engine
        self.choices: dict[tuple[bool, bool], tuple[Tile, int]] = {}
        self.variants: frozenset[str] = frozenset()      # in use
        self.default = Tile()
        self._asked, self.rate = False, 0.0

    @property
    def name(self) -> str:
        """The choices in a few characters: they decide how sums are rounded."""
        text = repr(sorted((key, tile.name, groups) for key, (tile, groups) in self.choices.items()))
        text += repr(sorted(self.variants)) * bool(self.variants)
        return hashlib.sha256(text.encode()).hexdigest()[:8] if self.choices or self.variants else "default"

    def plan(self, forward: bool, m: int, n: int, k: int) -> tuple[Tile, int, int]:
        """(tile, slices of the sum, length of a slice) of out [m, n] with sums over k."""
        tile, wanted = self.choices.get((forward, m >= MANY), (self.default, 0))
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
        may, must = sound(self.engine)
        self._use(may)
        if self.engine.device.software:
            self.rate = self._rate()
        else:
            self._choose(may, must)
        self.engine.commands.rate = SHARE * self.rate

    def _use(self, variants: set[str]) -> None:
        self.variants = frozenset(variants)
        self.default = Tile(half=F16_TILES in variants)
        self.engine.commands.subgroups = ROWS in variants
        self.engine.canary.known = None     # its sum may round in another way now

    def _choose(self, may: set[str], must: set[str]) -> None:
        path = self._path(may, must)
        try:
            kept = json.loads(path.read_text("utf-8"))
            choices = {(r["forward"], r["many"]): (Tile(*r["tile"]), r["workgroups"]) for r in kept["choices"]}
            if not all(tile.plain in TILES and groups in WORKGROUPS for tile, groups in choices.values()):
                raise ValueError("tiles that nobody raced")
            if not (isinstance(kept["rate"], float) and 0 < kept["rate"] < math.inf):
                raise ValueError("no rate")
            self.choices, self.rate = choices, kept["rate"]
            self._use(may & ({row["variant"] for row in kept["variants"] if row["wins"]} | must | {F16_TILES}))
            return
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass    # not there, or another version's: race
        variants = self.race_variants(may, must)
        rows = self.race(must)
        self.rate = self._rate()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps({"device": self.engine.device.name, "choices": rows, "variants": variants,
                                       "rate": self.rate}, indent=1).encode())
        except OSError:
            pass    # a memory that cannot be kept is no reason to stop

    def _path(self, may: set[str], must: set[str]) -> Path:
        info = self.engine.device.info
        kernels = "".join(_gemm.gemm("Q8_0", way, tile).text() for way in (True, False) for tile in TILES)
        kernels += "".join(kernel.text() for name in (ROWS, GEMV, DOT) for way in (False, True)
                           for kernel in _Race.kernels(name, way, False))
        text = repr(sorted((k, str(v)) for k, v in info.items())) + repr((WORKGROUPS, TOKENS)) + kernels
        text += repr((sorted(may), sorted(must)))     # what is forced or forbidden has a file of its own
        folder = os.environ.get("ANYTUNE_CACHE") or Path.home() / ".cache" / "anytune"
        return Path(folder) / "webgpu" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def race_variants(self, may: set[str], must: set[str]) -> list[dict]:
        """Time variants and what they would replace, JSON-able; those that win, and those that must, are in use."""
        race, rows, use = _Race(self.engine), [], may & (must | {F16_TILES})
        self._use(use)
        for variant in (v for v in (ROWS, GEMV, DOT) if v in may - must):    # the last one goes by subgroups if that won
            usual, other = (race.variant(variant, way) for way in (False, True))
            rows.append({"variant": variant, "wins": other < FASTER * usual,
                         "microseconds": [round(1e6 * usual, 1), round(1e6 * other, 1)]})
            use = use | ({variant} if rows[-1]["wins"] else set())
            self._use(use)
        return rows

    def race(self, must: set[str] = frozenset()) -> list[dict]:
        """Time every tile -> the winners, JSON-able; they are the choices from now on."""
        race, rows, half = _Race(self.engine), [], self.default.half
        tiles = [*(() if F16_TILES in must else TILES), *((replace(t, half=True) for t in TILES) if half else ())]
        for forward in (True, False):
            for tokens in TOKENS:
                best = race.best(forward, tokens, tiles)
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
        tile, _ = self.choices.get((True, True), (self.default, 0))
        return 2.0 * tokens * width * width / _Race(self.engine, width).seconds(True, tokens, tile, 0)


class _Race:
    """Products of random Q8_0 blocks, and what variants replace, and their times."""

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
        return self._time(lambda: self._run(forward, tile, groups, x, y))

    def _time(self, action) -> float:
        """Seconds of one action: of many in a row, so that a submit and the waiting do not count."""
        def take(rounds: int) -> float:
            commands.flush()
            device.wait()
            begun = time.perf_counter()
            for _ in range(rounds):
                action()
            commands.flush()
            device.wait()
            return (time.perf_counter() - begun) / rounds

        commands, device = self.e.commands, self.e.device
        if device.software:
            return min(take(1), take(1))
        take(2)
        rounds = min(max(ROUNDS_OF / take(4), 4), 64)
        return min(take(int(rounds)) for _ in range(3))

    @staticmethod
    def kernels(name: str, way: bool, subgroups: bool) -> list:
        """What a variant would replace, or (way) the variant's; subgroups: whether GEMV is in use."""
        if name == ROWS:
            usual = [_rows.rms_norm(False), _optimizer.loss_rows(False)]
            return [kernel.by_subgroups for kernel in usual] if way else usual
        if name == DOT and way:
            return [_gemv.codes(), *(_gemv.gemv8("Q8_0", few, subgroups=subgroups) for few in FEW)]
        return [_gemv.gemv("Q8_0", few, subgroups=way if name == GEMV else subgroups) for few in FEW]

    def variant(self, name: str, way: bool) -> float:
        """Seconds of the usual kernels, or (way) of the variant's."""
        e, width, tokens, blocks = self.e, self.width, max(TOKENS), self.width // 32
        kernels = self.kernels(name, way, GEMV in e.tuning.variants)
        x, y = self._array(self.x, tokens), self._array(self.x, tokens)
        few, grid = max(FEW), (width // 2,)
        if name == ROWS:
            gain, targets, losses = e.vector(self.x[:width]), e.integers(np.zeros(tokens, np.int32)), e.zeros(tokens)
            jobs = [([x, gain, y], (width, width, width, 1e-5), (tokens,)),
                    ([y, targets, losses], (16 * width, 16 * width, 0, 0), (tokens // 16,))]
        elif name == DOT and way:
            codes, scales = e.integers(np.zeros(few * width // 4, np.int32)), e.zeros(few * blocks)
            jobs = [([x, codes, scales], (blocks, width // 4), (-(-blocks // 64), few)),
                    *(([codes, scales, self.raw, y], (0, 34 * blocks, n, width, width, blocks, width, 0), grid) for n in FEW)]
        else:
            jobs = [([x, self.raw, y], (0, 34 * blocks, n, width, width, width // 4, width, 0), grid) for n in FEW]

        def action():
            for kernel, job in zip(kernels, jobs):
                e.commands.run(kernel, *job)
        action()        # compiled
        return self._time(action)

    def best(self, forward: bool, tokens: int, tiles: list[Tile]) -> tuple[Tile, int, float]:
        e, best = self.e, None
        x, y = self._array(self.x, tokens), self._array(self.x, tokens)
        self._run(forward, Tile(), 0, x, y)
        wanted = e.host(y)      # the default's, which the known answers prove
        for tile in tiles:
            if tile.m > 2 * tokens or tile.bytes > 16384 or tile.threads > 256:
                continue
            for groups in WORKGROUPS:
                if groups and e.tuning.slices(tile, groups, tokens, self.width, self.width)[1] == 1:
                    continue
                self._run(forward, tile, groups, x, y)
                limit = ROUNDED if tile.half else 1e-4
                if not np.max(np.abs(e.host(y) - wanted)) <= limit * np.max(np.abs(wanted)):
                    continue
                seconds = self.seconds(forward, tokens, tile, groups, x, y)
                if best is None or seconds < FASTER * best[2]:
                    best = (tile, groups, seconds)
        if best is None:
            raise DeviceError("other", "no way to multiply gives the known answer: the device computes wrongly")
        return best


class _Blocks(Part):
    """A part without weights of a file: what product() asks of one."""

    block, row_bytes = "Q8_0", 0

    def __init__(self, width: int):
        super().__init__([], 0, width, [0, width], [None])
        self.row_bytes = width // 32 * 34
