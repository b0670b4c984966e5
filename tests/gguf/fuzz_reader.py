"""Mutation fuzzing of the GGUF reader.

    python -m tests.gguf.fuzz_reader --cases 1000000 --seed 0

Each case is a good small file with a few mutations: bits, bytes, lengths and counts that lie, pieces that are
cut, doubled, moved or taken from another file. The reader must either refuse it with a UserError of one line,
or give a file whose every tensor lies within it, can be dequantized, and whose metadata can be written and
read back equal. Any other exception, a case of more than 2 seconds, or a process that grows by more than 64
MiB is a failure; its number and file are printed. A case depends on (seed, number) alone.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from anytune.errors import UserError
from anytune.gguf import BLOCKS, GGUF, write_gguf
from anytune.gguf.header import SCALARS
from tests.gguf import forge
from tests.gguf.forge import array, tensor, text, value

LIMIT_SECONDS = 2.0
LIMIT_GROWTH = 64 << 20
NUMBERS = [
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    12,
    13,
    31,
    32,
    33,
    64,
    65,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**61 + 1,
    2**63 - 1,
    2**63,
    2**64 - 1,
    2**64 - 32,
]


def seeds() -> list[bytes]:
    """Good files that between them have every value type and block type."""
    packs = SCALARS | {"bool": "?"}
    scalars = [value(f"s.{kind}", kind, struct.pack("<" + code, 1)) for kind, code in packs.items()]
    arrays = [array(f"a.{kind}", kind, struct.pack("<" + code, 1) * 3, 3) for kind, code in packs.items()]
    strings = [
        value("general.architecture", "string", text("llama")),
        value("s.none", "string", text("")),
        array("tokens", "string", text("▁a") + text("") + text(b"\xff") + text("bc"), 4),
        value("general.alignment", "uint32", struct.pack("<I", 64)),
    ]
    types, at, data = [], 0, b""
    for block in BLOCKS.values():
        size = 2 * block.type_size
        types.append(tensor(f"t.{block.name}", (block.block_size, 2), block.id, at))
        data += bytes(range(7, 7 + size % 200)).ljust(size, b"\x3c") + bytes(-size % 32)
        at = len(data)
    return [
        forge.file(),
        forge.file(strings, [tensor("w", (32, 2), 2)], bytes(36), alignment=64),
        forge.file(strings[:3], [tensor("w", (32, 2), 2), tensor("b", (4,), 0, 64)], bytes(80), version=2),
        forge.file(scalars + arrays),
        forge.file([], types, data),
        forge.file([strings[0]], [tensor("w", (2, 1, 3, 1), 1)], bytes(12)),
    ]


def mutate(rng: random.Random, corpus: list[bytes]) -> bytes:
    data = bytearray(rng.choice(corpus))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        if not data:
            break
        at = rng.randrange(len(data))
        kind = rng.randrange(9)
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at] = rng.randrange(256)
        elif kind in (2, 3):  # a number of 8 or 4 bytes becomes a notable one
            code = "<Q" if kind == 2 else "<I"
            size = struct.calcsize(code)
            number = rng.choice(NUMBERS) + rng.choice((0, 0, 0, -1, 1))
            data[at : at + size] = struct.pack(code, number % (1 << 8 * size))
        elif kind == 4:  # a small number grows or shrinks by a little
            data[at] = (data[at] + rng.choice((-2, -1, 1, 2))) % 256
        elif kind == 5:
            del data[at:]
        elif kind == 6:
            del data[at : at + rng.randrange(1, 40)]
        elif kind == 7:
            piece = data[at : at + rng.randrange(1, 80)]
            to = rng.randrange(len(data) + 1)
            data[to:to] = piece
        else:
            other = rng.choice(corpus)
            start = rng.randrange(len(other))
            data[at : at + rng.randrange(60)] = other[start : start + rng.randrange(60)]
    return bytes(data)


def check(data: bytes, folder: Path | None = None) -> str:
    """ "refused" or "accepted"; raises AssertionError (or whatever the reader raised) for a failure."""
    try:
        gguf = GGUF.from_bytes(data)
    except UserError as error:
        assert "\n" not in str(error) and str(error), f"not one line: {error}"
        return "refused"
    for name, t in gguf.tensors.items():
        assert 0 <= t.offset and t.offset + t.nbytes <= len(data), f"{name} lies outside of the file"
        assert gguf.blocks(name).shape == (t.rows, t.row_bytes)
        weights = gguf.float32(name)
        assert weights.shape == t.shape and weights.dtype == np.float32
    if folder is not None:
        path = folder / "again.gguf"
        write_gguf(path, gguf.metadata, [], gguf.kinds)
        with GGUF.open(path) as again:
            assert again.kinds == gguf.kinds
            for key, one in gguf.metadata.items():
                other = again.metadata[key]
                numeric = isinstance(one, np.ndarray | float)
                same = np.array_equal(one, other, equal_nan=True) if numeric else one == other
                assert same and type(one) is type(other), f"{key} changed: {one!r} became {other!r}"
    return "accepted"


def resident() -> int:
    """Bytes of this process's memory (0 where /proc is missing)."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * 4096 if statm.exists() else 0


def run(cases: int, seed: int, first: int = 0, report: float = 0) -> Counter:
    """Check `cases` cases from number `first` on; the count of each result, "slowest" in microseconds."""
    corpus, results, slowest = seeds(), Counter(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        for data in corpus:
            assert check(data, Path(folder)) == "accepted", "a seed is refused"
        before, said = resident(), time.monotonic()
        for number in range(first, first + cases):
            data = mutate(random.Random(seed * 1_000_003 + number), corpus)
            start = time.perf_counter()
            try:
                # Writing is slow (it syncs): one accepted case in fifty is also written and read back.
                results[check(data, Path(folder) if number % 50 == 0 else None)] += 1
                took = time.perf_counter() - start
                assert took < LIMIT_SECONDS, f"took {took:.1f} s"
                assert number % 100 or resident() - before < LIMIT_GROWTH, "memory grew"
            except Exception as error:
                path = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{number}.gguf"
                path.write_bytes(data)
                raise AssertionError(f"case {number} of seed {seed} ({path}): {error!r}") from error
            slowest = max(slowest, took)
            if report and time.monotonic() - said > report:
                said = time.monotonic()
                print(
                    f"{number - first + 1} cases: {dict(results)}, slowest {slowest * 1e3:.1f} ms",
                    file=sys.stderr,
                    flush=True,
                )
        results["slowest_us"] = round(slowest * 1e6)
        results["grown_kib"] = max(0, resident() - before) >> 10
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    options = parser.parse_args()
    start = time.monotonic()
    results = run(options.cases, options.seed, options.first, report=30)
    took = time.monotonic() - start
    print(f"{options.cases} cases of seed {options.seed} in {took:.0f} s: {dict(results)}")


if __name__ == "__main__":
    main()
