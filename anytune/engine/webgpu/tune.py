"""Which tile a product uses, and into how many slices its sum is cut: defaults, or what autotuning on the device
found.

Tiles are compared on products like a model's, with few and with many tokens, in both directions; one counts only if it
gives the default's result. What won is kept in a file for each device, driver and version of the kernels. Software
devices are not tuned: there the default is as good as any.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from dataclasses import astuple
from pathlib import Path

from anytune.files import atomic_write
from anytune.locks import locked

from . import autotune as _autotune
from .commands import SHARE
from .kernels import gemm as _gemm
from .kernels.gemm import Tile
from .sizes import SCRATCH

MANY = 384  # rows from which a product counts as one of many tokens
SHORTEST = 64  # of the sum in a slice, at least


class Tuning:
    """The choices for one engine."""

    def __init__(self, engine):
        self.engine = engine
        self.choices: dict[tuple[bool, bool], tuple[Tile, int]] = {}
        self.default = Tile()
        self._asked, self.rate = False, 0.0

    @property
    def name(self) -> str:
        """The choices in a few characters: they decide how sums are rounded."""
        text = repr(sorted((key, tile.name, groups) for key, (tile, groups) in self.choices.items()))
        return hashlib.sha256(text.encode()).hexdigest()[:8] if self.choices else "default"

    def tiling(self, forward: bool, m: int, n: int, k: int) -> tuple[Tile, int, int]:
        """(tile, slices of the sum, length of a slice) of out [m, n] with sums over k."""
        tile, wanted = self.choices.get((forward, m >= MANY), (self.default, 0))
        return self.slices(tile, wanted, m, n, k)

    def slices(self, tile: Tile, wanted: int, m: int, n: int, k: int) -> tuple[Tile, int, int]:
        groups = -(-n // tile.n) * -(-m // tile.m)
        most = min(
            k // SHORTEST,
            max(2, SCRATCH // (m * n)) if m * n else 1,
            (self.engine.device.max_binding // (4 * m * (n + 64))),
        )
        count = max(1, min(wanted // groups, most))
        step = -(-k // count)
        step = max(64, -(-step // 64) * 64)
        return tile, -(-k // step) or 1, step

    # ---- autotuning

    def ensure(self) -> None:
        """Know the device's rate and the choices: these from the file, or by autotuning for a second or two."""
        if self._asked:
            return
        self._asked = True
        if self.engine.device.software:
            self.rate = self._rate()
        else:
            self._choose()
        self.engine.commands.rate = SHARE * self.rate

    def _choose(self) -> None:
        """What is in the file; else autotuning, which only one of several processes runs while the others wait: choices
        decide how sums are rounded, and all must make the same."""
        path = self._path()
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a cache that cannot be written is no reason to stop
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(path, lambda: None))
            if not self._kept(path):
                self._autotune_and_keep(path)

    def _kept(self, path: Path) -> bool:
        """Take the choices from the file, if it is there and sound."""
        try:
            kept = json.loads(path.read_text("utf-8"))
            choices = {(r["forward"], r["many"]): (Tile(*r["tile"]), r["workgroups"]) for r in kept["choices"]}
            if not all(tile in _autotune.TILES and groups in _autotune.WORKGROUPS for tile, groups in choices.values()):
                raise ValueError("tiles that were not tuned")
            if not (isinstance(kept["rate"], float) and 0 < kept["rate"] < math.inf):
                raise ValueError("no rate")
            self.choices, self.rate = choices, kept["rate"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False  # not there, or another version's
        return True

    def _autotune_and_keep(self, path: Path) -> None:
        rows = self.autotune()
        self.rate = self._rate()
        self.engine.commands.flush()
        self.engine.pool.clear()  # of slices of many sizes
        self.engine.commands.flush()
        with contextlib.suppress(OSError), atomic_write(path) as file:
            file.write(
                json.dumps({"device": self.engine.device.name, "choices": rows, "rate": self.rate}, indent=1).encode()
            )

    def _path(self) -> Path:
        info = self.engine.device.info
        kernels = "".join(_gemm.gemm("Q8_0", way, tile).text() for way in (True, False) for tile in _autotune.TILES)
        text = (
            repr(sorted((k, str(v)) for k, v in info.items()))
            + repr((_autotune.WORKGROUPS, _autotune.TOKENS, _autotune.WIDTH, _autotune.WIDER, MANY))
            + kernels
        )
        folder = os.environ.get("ANYTUNE_CACHE") or Path.home() / ".cache" / "anytune"
        return Path(folder) / "webgpu" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def autotune(self) -> list[dict]:
        """Time every tile -> the winners, JSON-able; they are the choices from now on."""
        autotune, rows = _autotune.Autotune(self.engine), []
        for forward in (True, False):
            for tokens in _autotune.TOKENS:
                tile, groups, seconds = autotune.best(forward, tokens, list(_autotune.TILES))
                self.choices[forward, tokens >= MANY] = tile, groups
                rows.append(
                    {
                        "forward": forward,
                        "many": tokens >= MANY,
                        "workgroups": groups,
                        "tile": list(astuple(tile)),
                        "microseconds": round(1e6 * seconds, 1),
                    }
                )
        return rows

    def flops_per_second(self) -> float:
        """What training will reach, about: the rate of one product, times the part of it that a step usually gets."""
        self.ensure()
        return 0.6 * self.rate

    def _rate(self) -> float:
        """FLOP/s of one product of many tokens."""
        tile, _ = self.choices.get((True, True), (self.default, 0))
        if self.engine.device.software:
            return _autotune.Autotune(self.engine, 256, 1).rate(tile, 64)
        return _autotune.Autotune(self.engine, 0, 1).rate(tile, _autotune.TOKENS[1])
