"""rewrite(): a GGUF file again, with other values in some tensors, other types, other metadata.

Rows are read or asked for, encoded by several threads, and written a portion at a time.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.files import check_output, check_room
from anytune.gguf import GGUF, TensorInfo, write_gguf
from anytune.gguf.encode import NAMES, encode
from anytune.gguf.kernels import KERNELS
from anytune.quantization import mix
from anytune.quantization.filetypes import file_type
from anytune.quantization.imatrix import Importance, read_imatrix
from anytune.quantization.tensor_types import TensorTypes, assign_types

PIECE = 1 << 19  # weights that one thread works on: 2 MiB as float32
FLOATS = ("F32", "F16", "BF16")
QUANTIZATION_VERSION = 2  # of ggml's block layouts

Rows = Callable[[int, int], np.ndarray]


def rewrite(
    source: GGUF,
    target: str | os.PathLike | None,
    kind: str | None = None,
    *,
    values: Mapping[str, Rows] | None = None,
    metadata: Mapping[str, Any] | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    output: str | None = None,
    embedding: str | None = None,
    pure: bool = False,
    keep_output: bool = False,
    settled: Collection[str] = (),
    imatrix: str | os.PathLike | Importance | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `source` to `target`, whole or not at all, with `values` in place of its own, and return facts about both.

    Metadata, vocabulary, template and the order of tensors are the source's. values: tensor name -> a function of
    (lo, hi) that gives these rows as float32 [hi - lo, weights of a row]; several threads may call it at once, each
    range once. kind: a name of filetypes.FILE_TYPES, mixed as `quantize` mixes it; None: every tensor keeps its type.
    Blocks of tensors that keep values and type are copied as they are. metadata: changes; a value of None removes the
    key. settled: tensors whose blocks stay unless their new type is smaller. The other arguments are those of
    `quantize`; target None only tells what would be done. Raises UserError.
    """
    importance = imatrix if isinstance(imatrix, Importance | None) else read_imatrix(imatrix)
    made = assign_types(
        source,
        None if kind is None else file_type(kind),
        importance=importance is not None,
        overrides=overrides,
        output=output,
        embedding=embedding,
        pure=pure,
        keep_output=keep_output,
        settled=settled,
    )
    return carry_out(source, target, made, values or {}, metadata or {}, importance, threads, progress)


def carry_out(
    source: GGUF,
    target: str | os.PathLike | None,
    made: TensorTypes,
    values: Mapping[str, Rows],
    metadata: Mapping[str, Any],
    importance: Importance | None,
    threads: int | None,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """What `rewrite` does, once types are chosen. Returns facts. Raises UserError."""
    if unknown := values.keys() - source.tensors.keys():
        raise ValueError(f"there is no tensor {min(unknown)} to give values to")
    size = made.nbytes(source.tensors)
    missing = _without_importance(source, made, importance) if importance is not None else []
    facts = {
        "type": made.kind and made.kind.name,
        "tensors": [
            {"name": name, "shape": list(t.shape), "from": t.type.name, "to": made.formats[name]}
            for name, t in source.tensors.items()
        ],
        "bytes_before": sum(t.nbytes for t in source.tensors.values()),
        "bytes_after": size,
        "bits_per_weight": 8 * size / max(1, source.n_parameters),
        "without_importance": missing,
    }
    if target is None:
        return facts
    _check(source, made, Path(target), size, values, importance)
    _write(
        source,
        made,
        Path(target),
        values,
        metadata,
        importance,
        threads or available_threads(),
        progress or (lambda *_: None),
    )
    return facts


def _without_importance(file: GGUF, made: TensorTypes, importance: Importance) -> list[str]:
    """Quantized matrices of the layers that the importance matrix says nothing about."""
    return [
        name
        for name, t in file.tensors.items()
        if name.startswith("blk.")
        and made.formats[name] not in FLOATS
        and mix.may_quantize(name, t.shape)
        and importance.of(name, t.shape) is None
    ]


def available_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(
    file: GGUF, made: TensorTypes, target: Path, size: int, values: Mapping[str, Rows], importance: Importance | None
) -> None:
    check_output(target, True, [("the model", file.path), ("the importance file", importance and importance.path)])
    for name, t in file.tensors.items():
        if made.formats[name] not in NAMES and (name in values or made.formats[name] != t.type.name):
            raise UserError(
                f"{name} is {made.formats[name]}, which cannot be written: choose another type for it, such as "
                f"{'Q4_K' if t.shape[-1] % 256 == 0 else 'Q4_1'}."
            )
    check_room(target.parent, size, "the file")


def _metadata(
    file: GGUF, made: TensorTypes, changes: Mapping[str, Any], importance: Importance | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values, their kinds) of the new file."""
    values, kinds, own = dict(file.metadata), dict(file.kinds), {}
    if made.kind is not None:
        own |= {"general.quantization_version": QUANTIZATION_VERSION, "general.file_type": made.kind.number}
    if importance is not None:
        own |= {
            "quantize.imatrix.file": Path(importance.path).name,
            "quantize.imatrix.entries_count": len(importance.columns),
            "quantize.imatrix.chunks_count": importance.chunks,
        }
        if importance.sources:
            own["quantize.imatrix.dataset"] = importance.sources[0]
    kinds |= {key: "string" if isinstance(value, str) else "uint32" for key, value in own.items()}
    for key, value in changes.items():
        if type(value) is not type(file.metadata.get(key)):
            kinds.pop(key, None)  # inferred
    values |= own | changes
    return {key: value for key, value in values.items() if value is not None}, kinds


def _write(
    file: GGUF,
    made: TensorTypes,
    target: Path,
    values: Mapping[str, Rows],
    changes: Mapping[str, Any],
    importance: Importance | None,
    threads: int,
    progress: Callable[[int, int], None],
) -> None:
    metadata, kinds = _metadata(file, made, changes, importance)
    total, done = file.n_parameters, 0
    pool = ThreadPoolExecutor(threads)

    def pieces(name: str) -> Iterator[np.ndarray]:
        nonlocal done
        t = file.tensors[name]
        columns = importance.of(name, t.shape) if importance is not None else None
        for rows, blocks in _encoded(file, t, made.formats[name], values.get(name), columns, pool, threads):
            yield blocks
            done += rows * t.shape[-1]
            progress(done, total)

    try:
        write_gguf(
            target,
            metadata,
            [(name, t.shape, made.formats[name], lambda name=name: pieces(name)) for name, t in file.tensors.items()],
            kinds=kinds,
        )
    finally:
        pool.shutdown(cancel_futures=True)


def _encoded(
    file: GGUF,
    t: TensorInfo,
    block: str,
    values: Rows | None,
    columns: np.ndarray | None,
    pool: ThreadPoolExecutor,
    threads: int,
) -> Iterator[tuple[int, np.ndarray]]:
    """(rows, their blocks) in order; a few portions are in work at a time. columns: [matrices, weights]."""
    step = max(1, PIECE // t.shape[-1])
    per_matrix = t.rows if columns is None else t.rows // len(columns)
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    lo = 0
    while lo < t.rows or waiting:
        while lo < t.rows and len(waiting) < 2 * threads:
            hi = min(lo + step, t.rows, lo - lo % per_matrix + per_matrix)  # each matrix has an importance of its own
            mine = None if columns is None else columns[lo // per_matrix]
            waiting.append((hi - lo, pool.submit(_portion, file, t, lo, hi, block, values, mine)))
            lo = hi
        rows, future = waiting.popleft()
        yield rows, future.result()


def _portion(
    file: GGUF, t: TensorInfo, lo: int, hi: int, block: str, values: Rows | None, importance: np.ndarray | None
) -> np.ndarray:
    """Rows lo..hi in the new format: uint8 [rows, row_bytes]."""
    if values is None and block == t.type.name:
        raw = np.empty((hi - lo) * t.row_bytes, np.uint8)
        file.read_into(t.name, lo, hi, raw)
        return raw.reshape(hi - lo, -1)
    x = rows_of(file, t.name, lo, hi) if values is None else values(lo, hi)
    if x.shape != (hi - lo, t.shape[-1]):
        raise ValueError(f"{t.name}: rows {lo}..{hi} came as {x.shape}")
    try:
        if values is not None and not np.isfinite(x).all():
            raise ValueError("its new values are not all numbers")
        blocks = encode(np.ascontiguousarray(x, np.float32), block, importance)
        if block == "F16" and np.isinf(blocks.view(np.float16)).any():
            raise ValueError("it has weights beyond float16's range; BF16 can hold them")
        return blocks
    except ValueError as error:
        raise UserError(f"{file.path}: the tensor {t.name} cannot become {block}: {error}.") from None


def rows_of(file: GGUF, name: str, lo: int, hi: int) -> np.ndarray:
    """Rows lo..hi of a tensor, dequantized: float32 [hi - lo, weights of a row]. Threads may call it at once."""
    t = file.tensors[name]
    raw = np.empty((hi - lo) * t.row_bytes, np.uint8)
    file.read_into(name, lo, hi, raw)
    x = np.empty((hi - lo, t.shape[-1]), np.float32)
    KERNELS[t.type.name](raw, t.row_bytes, 0, x.reshape(-1), t.shape[-1], 0, hi - lo, t.shape[-1] // t.type.block_size)
    return x
