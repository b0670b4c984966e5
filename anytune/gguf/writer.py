"""The GGUF writer: version 3, little-endian, atomic, one tensor in memory at a time."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from anytune.files import atomic_write, cannot_write
from anytune.gguf.blocks import BLOCKS, BlockType, quantize
from anytune.gguf.header import DEFAULT_ALIGNMENT, DIMS_LIMIT, FIXED, KIND_IDS, NAME_LIMIT, SCALARS, Kind

KIND_NUMBERS = {name: number for number, name in KIND_IDS.items()}
DTYPE_KINDS = {np.dtype("<" + code): name for name, code in SCALARS.items()} | {np.dtype(bool): "bool"}
PIECE = 1 << 20  # weights quantized at a time

Data = np.ndarray | Callable[[], np.ndarray | Iterable[np.ndarray]]


def write_gguf(
    path: str | os.PathLike,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, tuple[int, ...], str, Data]],
    kinds: Mapping[str, Kind] | None = None,
) -> None:
    """Write a file that is whole or absent.

    metadata: values, whose exact types are those in `kinds` (as GGUF.kinds has them) or else inferred: int is
    uint32 (int32 if negative, 64 bits if large), float is float32, an array keeps its dtype, a list is an
    array.
    tensors: (name, shape in NumPy's order, type name, data); data is a float32 array of that shape (quantized
    here), or uint8 blocks, or a function that returns one of these, or portions of uint8 blocks, when its turn has
    come.
    ValueError for what GGUF cannot hold (the caller's mistake), UserError if the file cannot be written.
    """
    tensors = list(tensors)
    header, places = header_of(metadata, [tensor[:3] for tensor in tensors], kinds)
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    path = Path(path)
    try:
        with atomic_write(path) as file:
            at = file.write(header)  # counted, not asked for: a pipe has no position
            for (name, shape, type_name, data), (_, nbytes) in zip(tensors, places, strict=True):
                at += file.write(bytes(-at % alignment)) + nbytes
                array = data() if callable(data) else data
                _write_tensor(file, name, tuple(shape), BLOCKS[type_name], array, nbytes)
            file.write(bytes(-at % alignment))
    except OSError as error:
        raise cannot_write(path, error) from None


def header_of(
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, tuple[int, ...], str]],
    kinds: Mapping[str, Kind] | None = None,
) -> tuple[bytes, list[tuple[int, int]]]:
    """(what comes before the tensors' data and its padding, (place in the data, bytes) of each tensor (name, shape,
    type name)). Raises ValueError as write_gguf does."""
    tensors, kinds = list(tensors), dict(kinds or {})
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"general.alignment {alignment} is not a power of two")
    header = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        header += _text(key) + _value(key, value, kinds.get(key) or _infer(key, value))
    at, places = 0, []
    for name, shape, type_name in tensors:
        block = BLOCKS[type_name]
        nbytes = _check(name, tuple(shape), block)
        header += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], block.id, at)
        places.append((at, nbytes))
        at += -(-nbytes // alignment) * alignment
    if len({name for name, *_ in tensors}) != len(tensors):
        raise ValueError("two tensors have the same name")
    return bytes(header), places


def _text(text: str) -> bytes:
    raw = text.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(raw)) + raw


def _infer(key: str, value: Any) -> Kind:
    if isinstance(value, str):
        return "string"
    if isinstance(value, bool | np.bool_):
        return "bool"
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype not in DTYPE_KINDS:
            raise ValueError(f"{key}: GGUF has no type for {value.dtype}")
        return DTYPE_KINDS[value.dtype] + ("[]" if isinstance(value, np.ndarray) else "")
    if isinstance(value, int):
        for bits in (32, 64):
            if 0 <= value < 2**bits:
                return f"uint{bits}"
            if -(2 ** (bits - 1)) <= value < 0:
                return f"int{bits}"
    if isinstance(value, float):
        return "float32"
    if isinstance(value, list | tuple) and value:
        items = {_infer(key, item) for item in value}
        if items <= {"uint32", "int32"}:
            items = {"int32" if "int32" in items else "uint32"}
        if len(items) == 1:
            return items.pop() + "[]"
    raise ValueError(f"{key}: GGUF has no type for {value!r:.80}; say which in `kinds`")


def _value(key: str, value: Any, kind: Kind) -> bytes:
    """The type number and the bytes of one metadata value."""
    if not kind.endswith("[]"):
        return struct.pack("<I", KIND_NUMBERS[kind]) + _scalar(key, value, kind)
    item = kind[:-2]
    head = struct.pack("<IIQ", KIND_NUMBERS["array"], KIND_NUMBERS[item], len(value))
    if item == "string":
        return head + b"".join(map(_text, value))
    dtype = np.dtype("?" if item == "bool" else "<" + SCALARS[item])
    array = np.asarray(value)
    if array.ndim != 1 or dtype.kind != "f" and not np.array_equal(array, array.astype(dtype)):
        raise ValueError(f"{key}: {value!r:.80} is not a one-dimensional array of {item}")
    return head + array.astype(dtype).tobytes()


def _scalar(key: str, value: Any, kind: Kind) -> bytes:
    if kind == "string":
        return _text(value)
    if kind == "bool":
        return bytes([bool(value)])
    try:
        return FIXED[kind].pack(value)
    except (struct.error, OverflowError) as error:
        raise ValueError(f"{key}: {value!r:.80} is not a {kind}: {error}") from None


def _check(name: str, shape: tuple[int, ...], block: BlockType) -> int:
    """The tensor's size in bytes."""
    if not 1 <= len(name.encode()) < NAME_LIMIT:
        raise ValueError(f"the tensor name {name!r} is empty or longer than {NAME_LIMIT - 1} bytes")
    if not 1 <= len(shape) <= DIMS_LIMIT or min(shape) < 1 or shape[-1] % block.block_size:
        raise ValueError(f"{name}: the shape {shape} does not fit {block.name}")
    return math.prod(shape[:-1]) * block.row_bytes(shape[-1])


def _write_tensor(
    file: IO, name: str, shape: tuple[int, ...], block: BlockType, data: np.ndarray | Iterable[np.ndarray], nbytes: int
) -> None:
    if not isinstance(data, np.ndarray):
        written = sum(file.write(np.ascontiguousarray(part)) for part in data)
        if written != nbytes:
            raise ValueError(f"{name}: {written} bytes were written instead of {nbytes}")
    elif data.dtype == np.uint8 and data.nbytes == nbytes:
        file.write(np.ascontiguousarray(data))
    elif data.dtype == np.float32 and data.shape == shape:
        rows = data.reshape(-1, shape[-1])
        step = max(1, PIECE // shape[-1])
        file.writelines(quantize(rows[lo : lo + step], block) for lo in range(0, len(rows), step))
    else:
        raise ValueError(
            f"{name}: {data.dtype} {data.shape} is neither float32 {shape} nor {nbytes} bytes of {block.name} blocks"
        )
