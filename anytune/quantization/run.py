"""quantize(): one GGUF file into another, rows at a time, by several threads."""

from __future__ import annotations

import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.gguf import BLOCKS, GGUF, TensorInfo, write_gguf
from anytune.gguf.encode import encode
from anytune.gguf.kernels import KERNELS
from anytune.quantization import mix
from anytune.quantization.filetypes import FileType, block_name, file_type
from anytune.quantization.imatrix import Importance, read_imatrix
from anytune.units import bytes_text

PIECE = 1 << 19  # weights that one thread works on: 2 MiB as float32
FLOATS = ("F32", "F16", "BF16")
QUANTIZATION_VERSION = 2  # of ggml's block layouts
SPARE = 64 << 20  # bytes of the disk that are left alone


@dataclass(frozen=True)
class Plan:
    """What becomes of each tensor: `formats` has all names, in the file's order."""

    kind: FileType
    formats: Mapping[str, str]

    def nbytes(self, tensors: Mapping[str, TensorInfo]) -> int:
        return sum(t.rows * BLOCKS[self.formats[name]].row_bytes(t.shape[-1]) for name, t in tensors.items())


def plan(file: GGUF, kind: FileType, *, importance: bool = False, overrides: Sequence[tuple[str, str]] = (),
         output: str | None = None, embedding: str | None = None, pure: bool = False,
         keep_output: bool = False) -> Plan:
    """Decide on every tensor's format. See `quantize` for the arguments. Raises UserError."""
    patterns = [(_pattern(pattern), block_name(block)) for pattern, block in overrides]
    chosen = mix.choose(file.tensors, kind, mix.facts(file.metadata, file.tensors, importance))
    used: set[int] = set()
    formats = {}
    for name, t in file.tensors.items():
        matching = next((i for i, (pattern, _) in enumerate(patterns) if pattern.search(name)), None)
        if name not in chosen or name == "output.weight" and keep_output or _is_integer(t):
            formats[name] = t.type.name
            continue
        wanted = chosen[name] if not pure else mix.fitting(kind.block, t.shape[-1])
        if matching is not None:
            used.add(matching)
            wanted = patterns[matching][1]
        elif output and name == "output.weight":
            wanted = block_name(output)
        elif embedding and name in ("token_embd.weight", "per_layer_token_embd.weight"):
            wanted = block_name(embedding)
        if mix.fitting(wanted, t.shape[-1]) != wanted and (matching is not None or wanted in (output, embedding)):
            raise UserError(f"{name} cannot become {wanted}: its rows have {t.shape[-1]} weights, not a multiple of "
                            f"{BLOCKS[wanted].block_size}.")
        formats[name] = wanted
    for i, (pattern, _) in enumerate(patterns):
        if i not in used:
            raise UserError(f"No tensor that can be quantized matches {pattern.pattern!r}: see the names with "
                            f"`anytune quantize --dry-run`.")
    return Plan(kind, formats)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{text!r} is not a pattern for tensor names: {error}.") from None


def _is_integer(t: TensorInfo) -> bool:
    return t.type.name in ("I8", "I16", "I32", "I64")


def quantize(source: str | os.PathLike, target: str | os.PathLike | None, kind: str, *,
             imatrix: str | os.PathLike | None = None, overrides: Sequence[tuple[str, str]] = (),
             output: str | None = None, embedding: str | None = None, pure: bool = False, keep_output: bool = False,
             requantize: bool = False, threads: int | None = None,
             progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Write `source` quantized to `target`, whole or not at all, and return facts about both.

    kind: a name of filetypes.FILE_TYPES. imatrix: a file of importances. overrides: (pattern of tensor names, format),
    the first that matches wins. output, embedding: formats of output.weight and token_embd.weight. pure: no mix, every
    matrix in the type's own format. keep_output: leave output.weight as it is. requantize: allow tensors that are
    quantized already. target None: only tell what would be done. progress: called with (weights done, of how many).
    Raises UserError.
    """
    source = Path(source)
    importance = read_imatrix(imatrix) if imatrix is not None else None
    with GGUF.open(source) as file:
        if file.metadata.get("general.type", "model") != "model" or not file.tensors:
            raise UserError(f"{source} is not a model, but {file.metadata.get('general.type', 'empty')}: name the "
                            "model's GGUF file.")
        made = plan(file, file_type(kind), importance=importance is not None, overrides=overrides, output=output,
                    embedding=embedding, pure=pure, keep_output=keep_output)
        size = made.nbytes(file.tensors)
        missing = _without_importance(file, made, importance) if importance is not None else []
        facts = {"type": made.kind.name, "tensors": [
            {"name": name, "shape": list(t.shape), "from": t.type.name, "to": made.formats[name]}
            for name, t in file.tensors.items()], "bytes_before": sum(t.nbytes for t in file.tensors.values()),
            "bytes_after": size, "bits_per_weight": 8 * size / max(1, sum(t.n_elements for t in file.tensors.values())),
            "without_importance": missing}
        if target is None:
            return facts
        _check(file, made, Path(target), size, requantize)
        _write(file, made, Path(target), importance, threads or available_threads(), progress or (lambda *_: None))
    return facts


def _without_importance(file: GGUF, made: Plan, importance: Importance) -> list[str]:
    """Quantized matrices of the layers that the importance matrix says nothing about."""
    return [name for name, t in file.tensors.items() if name.startswith("blk.") and made.formats[name] not in FLOATS
            and mix.may_quantize(name, t.shape) and importance.of(name, t.shape) is None]


def available_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(file: GGUF, made: Plan, target: Path, size: int, requantize: bool) -> None:
    if target.exists() and target.samefile(file.path):
        raise UserError(f"{target} is the model itself: give the new file another name.")
    if target.is_dir() or not target.parent.is_dir():
        raise UserError(f"{target} cannot be written: " + ("it is a folder." if target.is_dir() else
                                                          f"there is no folder {target.parent}."))
    again = [name for name, t in file.tensors.items()
             if made.formats[name] != t.type.name and t.type.name not in (*FLOATS, "F64")]
    if again and not requantize:
        raise UserError(f"{file.path} is quantized already ({again[0]} is {file.tensors[again[0]].type.name}), and "
                        "rounding twice costs accuracy: start from an F16, BF16 or F32 file, or say "
                        "--allow-requantize.")
    free = shutil.disk_usage(target.parent).free
    if free < size + SPARE:
        raise UserError(f"{target.parent} has {bytes_text(free)} free, and the file needs {bytes_text(size)}: make "
                        "room or choose another place.")


def _write(file: GGUF, made: Plan, target: Path, importance: Importance | None, threads: int,
           progress: Callable[[int, int], None]) -> None:
    metadata, kinds = dict(file.metadata), dict(file.kinds)
    metadata |= {"general.quantization_version": QUANTIZATION_VERSION, "general.file_type": made.kind.number}
    if importance is not None:
        metadata |= {"quantize.imatrix.file": Path(importance.path).name,
                     "quantize.imatrix.entries_count": len(importance.columns),
                     "quantize.imatrix.chunks_count": importance.chunks}
        if importance.sources:
            metadata["quantize.imatrix.dataset"] = importance.sources[0]
    for key in metadata.keys() - file.metadata.keys() | {"general.quantization_version", "general.file_type"}:
        kinds[key] = "string" if isinstance(metadata[key], str) else "uint32"
    total, done = sum(t.n_elements for t in file.tensors.values()), 0
    pool = ThreadPoolExecutor(threads)

    def pieces(name: str) -> Iterator[np.ndarray]:
        nonlocal done
        t = file.tensors[name]
        columns = importance.of(name, t.shape) if importance is not None else None
        for rows, blocks in _encoded(file, t, made.formats[name], columns, pool, threads):
            yield blocks
            done += rows * t.shape[-1]
            progress(done, total)

    try:
        write_gguf(target, metadata, [(name, t.shape, made.formats[name], lambda name=name: pieces(name))
                                      for name, t in file.tensors.items()], kinds=kinds)
    finally:
        pool.shutdown(cancel_futures=True)


def _encoded(file: GGUF, t: TensorInfo, block: str, columns: np.ndarray | None, pool: ThreadPoolExecutor,
             threads: int) -> Iterator[tuple[int, np.ndarray]]:
    """(rows, their blocks) in order; a few portions are in work at a time. columns: [matrices, weights]."""
    step = max(1, PIECE // t.shape[-1])
    per_matrix = t.rows if columns is None else t.rows // len(columns)
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    lo = 0
    while lo < t.rows or waiting:
        while lo < t.rows and len(waiting) < 2 * threads:
            hi = min(lo + step, t.rows, lo - lo % per_matrix + per_matrix)  # each matrix has an importance of its own
            mine = None if columns is None else columns[lo // per_matrix]
            waiting.append((hi - lo, pool.submit(_portion, file, t, lo, hi, block, mine)))
            lo = hi
        rows, future = waiting.popleft()
        yield rows, future.result()


def _portion(file: GGUF, t: TensorInfo, lo: int, hi: int, block: str, importance: np.ndarray | None) -> np.ndarray:
    """Rows lo..hi in the new format: uint8 [rows, row_bytes]."""
    raw = np.empty((hi - lo) * t.row_bytes, np.uint8)
    file.read_into(t.name, lo, hi, raw)
    if block == t.type.name:
        return raw.reshape(hi - lo, -1)
    x = np.empty((hi - lo, t.shape[-1]), np.float32)
    KERNELS[t.type.name](raw, t.row_bytes, 0, x.reshape(-1), t.shape[-1], 0, hi - lo, t.shape[-1] // t.type.block_size)
    try:
        blocks = encode(x, block, importance)
        if block == "F16" and np.isinf(blocks.view(np.float16)).any():
            raise ValueError("it has weights beyond float16's range; BF16 can hold them")
        return blocks
    except ValueError as error:
        raise UserError(f"{file.path}: the tensor {t.name} cannot become {block}: {error}.") from None
