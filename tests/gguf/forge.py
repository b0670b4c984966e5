"""GGUF files byte by byte, so that any field can lie."""

import struct

NUMBERS = {
    "uint8": 0,
    "int8": 1,
    "uint16": 2,
    "int16": 3,
    "uint32": 4,
    "int32": 5,
    "float32": 6,
    "bool": 7,
    "string": 8,
    "array": 9,
    "uint64": 10,
    "int64": 11,
    "float64": 12,
}


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A string; `length` is what it claims to be."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def value(key: str | bytes, kind: str | int, payload: bytes) -> bytes:
    """A metadata record."""
    return text(key) + struct.pack("<I", NUMBERS.get(kind, kind)) + payload


def array(key: str, kind: str | int, payload: bytes, count: int) -> bytes:
    return value(key, "array", struct.pack("<IQ", NUMBERS.get(kind, kind), count) + payload)


def tensor(
    name: str | bytes = "w", dims: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    """A tensor record; dims in ggml's order (the row first)."""
    count = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def file(
    values: list[bytes] = (),
    tensors: list[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_values: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A whole file; n_values and n_tensors are what the header claims."""
    head = magic + struct.pack(
        "<IQQ", version, len(tensors) if n_tensors is None else n_tensors, len(values) if n_values is None else n_values
    )
    body = head + b"".join(values) + b"".join(tensors)
    return body + bytes(-len(body) % alignment) + data if data else body
