"""GGUF's header, parsed strictly: metadata and the list of tensors.

Every count, length and offset is checked against the bytes that are left before it is used, and the memory
that metadata takes is limited to the file's size + 48 MiB, whatever the file claims. Format: the GGUF
specification in ggml's docs/gguf.md, versions 2 and 3, little-endian.
"""

from __future__ import annotations

import math
import mmap
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from anytune.errors import UserError
from anytune.gguf.blocks import BLOCKS_BY_ID, BlockType

# A metadata value's exact type: a name of SCALARS, "bool", "string", or one of these with "[]" for an array.
Kind = str

SCALARS = {
    "uint8": "B",
    "int8": "b",
    "uint16": "H",
    "int16": "h",
    "uint32": "I",
    "int32": "i",
    "float32": "f",
    "uint64": "Q",
    "int64": "q",
    "float64": "d",
}
KIND_IDS = {
    0: "uint8",
    1: "int8",
    2: "uint16",
    3: "int16",
    4: "uint32",
    5: "int32",
    6: "float32",
    7: "bool",
    8: "string",
    9: "array",
    10: "uint64",
    11: "int64",
    12: "float64",
}
FIXED = {name: struct.Struct("<" + code) for name, code in SCALARS.items()}
COUNT = FIXED["uint64"]
NAME_LIMIT = 64  # bytes of a tensor's name, and the number of dimensions: ggml's own limits
DIMS_LIMIT = 4
KEY_LIMIT = 65535
SPARE_MEMORY = 48 << 20
LONG_STRING = 1024  # shorter ones are counted 1,024 at a time: 5 MiB at most
DEFAULT_ALIGNMENT = 32
# Keys whose types the specification fixes, and which code everywhere relies on.
STANDARD_KINDS = {
    "general.architecture": "string",
    "general.type": "string",
    "general.name": "string",
    "general.alignment": "uint32",
    "adapter.type": "string",
    "tokenizer.ggml.model": "string",
    "tokenizer.ggml.pre": "string",
    "tokenizer.ggml.tokens": "string[]",
    "tokenizer.ggml.merges": "string[]",
    "tokenizer.ggml.add_bos_token": "bool",
    "tokenizer.ggml.add_eos_token": "bool",
    "tokenizer.ggml.add_space_prefix": "bool",
    "tokenizer.chat_template": "string",
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies. `shape` is in NumPy's order: a linear's weight is (out, in)."""

    name: str
    shape: tuple[int, ...]
    type: BlockType
    offset: int  # bytes from the start of the file
    nbytes: int

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.shape[-1])


class SplitModel(UserError):
    """A file that is one of `parts` parts of a model."""

    def __init__(self, path: Path, parts: int) -> None:
        super().__init__(
            f"{path} is one of {parts} parts of a split model; join them first with "
            "`llama-gguf-split --merge FIRST-PART OUTPUT.gguf`."
        )
        self.parts = parts


class Parser:
    """A cursor over the header: nothing is sliced or allocated before it is known to be in the file."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0
        self.memory = self.size + SPARE_MEMORY  # bytes that metadata may still take

    def fail(self, problem: str) -> NoReturn:
        raise UserError(f"{self.path} is damaged or not a GGUF file: {problem:.1000}.")

    def take(self, size: int, what: str) -> int:
        """Move over `size` bytes, and return where they start."""
        start = self.at
        if size > self.size - start:
            self.fail(f"{what} needs {size} bytes at byte {start}, and {self.size - start} are left")
        self.at = start + size
        return start

    def number(self, kind: str, what: str) -> int | float:
        fixed = FIXED[kind]
        return fixed.unpack_from(self.data, self.take(fixed.size, what))[0]

    def charge(self, size: int, what: str) -> None:
        self.memory -= size
        if self.memory < 0:
            self.fail(f"{what} would take more memory than the file's size + {SPARE_MEMORY >> 20} MiB")

    def text(self, limit: int, what: str) -> str:
        """A name: valid, printable UTF-8 of 1 to `limit` bytes."""
        size = self.number("uint64", f"the length of {what}")
        if not 1 <= size <= limit:
            self.fail(f"{what} is {size} bytes long (allowed: 1 to {limit})")
        start = self.take(size, what)
        try:
            text = str(self.data[start : self.at], "utf-8")
        except UnicodeDecodeError:
            self.fail(f"{what} is not valid UTF-8")
        if not text.isprintable():
            self.fail(f"{what} is {text!r}, which has control characters")
        return text

    def header(self) -> tuple[int, int, int]:
        """(version, tensors, metadata values), the counts bounded by the smallest record each could have."""
        if self.data[:4] != b"GGUF":
            self.fail("it does not start with the letters GGUF")
        self.at = 4
        version = self.number("uint32", "the version")
        if version & 0xFFFF == 0 and version:
            raise UserError(f"{self.path} is a big-endian GGUF file; get the little-endian one.")
        if version not in (2, 3):
            raise UserError(
                f"{self.path} has GGUF version {version}, but only versions 2 and 3 can be read; convert it again "
                "with a current llama.cpp."
            )
        n_tensors = self.number("uint64", "the number of tensors")
        n_values = self.number("uint64", "the number of metadata values")
        left = self.size - self.at
        for count, least, what in (
            (n_values, 8 + 1 + 4 + 1, "metadata values"),
            (n_tensors, 8 + 1 + 4 + 8 + 4 + 8, "tensors"),
        ):
            if count > left // least:
                self.fail(f"it claims {count} {what}, but only {left} bytes follow")
        return version, n_tensors, n_values

    def metadata(self, count: int) -> tuple[dict, dict[str, Kind]]:
        values, kinds = {}, {}
        for i in range(count):
            key = self.text(KEY_LIMIT, f"the key of metadata value {i}")
            if key in values:
                self.fail(f"the metadata key {key!r} appears twice")
            self.charge(300 + 4 * len(key), "metadata")  # the key, its value, their place in two dictionaries
            kind = self.kind(key)
            item = self.kind(key) if kind == "array" else None
            kinds[key] = f"{item}[]" if item else kind
            if STANDARD_KINDS.get(key, kinds[key]) != kinds[key]:
                self.fail(f"{key} is of type {kinds[key]}, and must be {STANDARD_KINDS[key]}")
            values[key] = self.array(item, key) if item else self.value(kind, key)
        parts = values.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise SplitModel(self.path, parts)
        return values, kinds

    def kind(self, key: str) -> str:
        number = self.number("uint32", f"the type of {key!r}")
        if number not in KIND_IDS:
            self.fail(f"the metadata value {key!r} has the unknown type {number}")
        return KIND_IDS[number]

    def value(self, kind: str, key: str) -> int | float | bool | str:
        if kind == "string":
            return self.strings(1, key)[0]
        if kind == "bool":
            byte = self.number("uint8", key)
            if byte > 1:
                self.fail(f"the truth value {key!r} is {byte}")
            return bool(byte)
        return self.number(kind, key)

    def array(self, kind: str, key: str) -> list[str] | np.ndarray:
        what = f"the array {key!r}"
        count = self.number("uint64", f"the length of {what}")
        if kind == "string":
            return self.strings(count, key)
        if kind == "array":
            self.fail(f"{what} holds arrays, which models do not use")
        dtype = np.dtype("u1" if kind == "bool" else "<" + SCALARS[kind])
        start = self.take(count * dtype.itemsize, what)
        self.charge(count * dtype.itemsize + 128, what)
        array = np.frombuffer(self.data, dtype, count, start).copy() if count else np.empty(0, dtype)
        if kind != "bool":
            return array
        if array.max(initial=0) > 1:
            self.fail(f"{what} of truth values holds {array.max()}")
        return array.astype(bool)

    def strings(self, count: int, key: str) -> list[str]:
        """Bytes that are not UTF-8 become lone surrogates, so that they can be written back exactly."""
        what = f"the text {key!r}" if count == 1 else f"the array {key!r}"
        if count > (self.size - self.at) // 8:
            self.fail(f"{what} claims {count} strings, and only {self.size - self.at} bytes are left")
        out: list[str] = []
        data, size, unpack = self.data, self.size, COUNT.unpack_from
        for first in range(0, count, 1024):
            part = []
            at = self.at
            for _ in range(min(1024, count - first)):  # the hot loop: a vocabulary of 262k strings
                if at + 8 > size:
                    self.fail(f"{what} ends after the file's end")
                start = at + 8
                at = start + unpack(data, at)[0]
                if at > size:
                    self.fail(f"{what} has a string of {at - start} bytes, and {size - start} are left")
                if at - start > LONG_STRING:  # the bytes, and up to 4 bytes a character
                    self.charge(5 * (at - start), what)
                part.append(str(data[start:at], "utf-8", "surrogateescape"))
                if at - start > LONG_STRING:
                    self.memory += 5 * (at - start)
            self.at = at
            self.charge(sum(map(sys.getsizeof, part)) + 8 * len(part), what)
            out += part
        return out

    def alignment(self, values: dict) -> int:
        """The step that tensor offsets are multiples of: a power of two."""
        alignment = values.get("general.alignment", DEFAULT_ALIGNMENT)
        if alignment < 1 or alignment & (alignment - 1):
            self.fail(f"general.alignment is {alignment}, and must be a power of two")
        return alignment

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        """Table of contents. The data starts at the next multiple of `alignment` after it."""
        found = [self.tensor(i) for i in range(count)]
        base = -(-self.at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, shape, block, offset in found:
            if name in tensors:
                self.fail(f"two tensors have the name {name!r}")
            nbytes = math.prod(shape) // block.block_size * block.type_size
            if offset % alignment:
                self.fail(f"the offset {offset} of tensor {name!r} is not a multiple of {alignment}")
            if base + offset + nbytes > self.size:
                self.fail(
                    f"tensor {name!r} ends at byte {base + offset + nbytes}, and the file has "
                    f"{self.size}; fetch it again if its download broke off"
                )
            tensors[name] = TensorInfo(name, shape, block, base + offset, nbytes)
        end, before = 0, None
        for t in sorted(tensors.values(), key=lambda t: t.offset):
            if t.offset < end:
                forked = before.type.name == "Q2_0"
                hint = "; if its Q2_0 blocks hold 128 weights, fetch the file with blocks of 64, as llama.cpp has them"
                self.fail(f"the tensors {before.name!r} and {t.name!r} overlap{hint if forked else ''}")
            end, before = t.offset + t.nbytes, t
        return tensors

    def tensor(self, index: int) -> tuple[str, tuple[int, ...], BlockType, int]:
        self.charge(700, "the list of tensors")  # TensorInfo, its name, its shape
        name = self.text(NAME_LIMIT, f"the name of tensor {index}")
        n_dims = self.number("uint32", f"the number of dimensions of {name!r}")
        if not 1 <= n_dims <= DIMS_LIMIT:
            self.fail(f"tensor {name!r} has {n_dims} dimensions (allowed: 1 to {DIMS_LIMIT})")
        shape = tuple(self.number("uint64", f"the shape of {name!r}") for _ in range(n_dims))[::-1]
        number = self.number("uint32", f"the type of {name!r}")
        if number not in BLOCKS_BY_ID:
            self.fail(f"tensor {name!r} has the type number {number}, which is unknown")
        block = BLOCKS_BY_ID[number]
        if min(shape) < 1 or math.prod(shape) > 8 * self.size:  # no format puts more than 8 weights in a byte
            self.fail(f"tensor {name!r} claims the shape {shape}, more than the file can hold")
        if shape[-1] % block.block_size:
            self.fail(
                f"the rows of tensor {name!r} have {shape[-1]} weights, not a multiple of the "
                f"{block.block_size} of a {block.name} block"
            )
        return name, shape, block, self.number("uint64", f"the offset of {name!r}")
