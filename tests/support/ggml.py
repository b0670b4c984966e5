"""llama.cpp's own quantizers and readers of blocks, from the library inside xllamacpp."""

import ctypes
import functools

import numpy as np

from anytune.gguf import BLOCKS
from tests.support.require import need


@functools.cache
def library() -> ctypes.CDLL:
    need("xllamacpp")
    import xllamacpp.xllamacpp as extension

    lib = ctypes.CDLL(extension.__file__)
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_int64,
        ctypes.c_void_p,
    ]
    return lib


def quantize(x: np.ndarray, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    """x: float32 [rows, weights], importance: float32 [weights] or None -> uint8 [rows, row_bytes]."""
    x = np.ascontiguousarray(x)
    out = np.zeros((len(x), BLOCKS[name].row_bytes(x.shape[1])), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    size = library().ggml_quantize_chunk(
        BLOCKS[name].id,
        x.ctypes.data,
        out.ctypes.data,
        0,
        len(x),
        x.shape[1],
        None if weights is None else weights.ctypes.data,
    )
    assert size == out.nbytes
    return out


def dequantize(raw: np.ndarray, name: str) -> np.ndarray:
    """raw: uint8 [n, type_size] -> float32 [n, block_size]."""
    raw, block = np.ascontiguousarray(raw), BLOCKS[name]
    out = np.empty((len(raw), block.block_size), np.float32)
    read = library()["dequantize_row_" + name.lower().replace("_k", "_K")]
    read(ctypes.c_void_p(raw.ctypes.data), ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(out.size))
    return out


def size(name: str) -> tuple[int, int]:
    """(weights, bytes) of a block."""
    of = (library().ggml_blck_size, library().ggml_type_size)
    return of[0](BLOCKS[name].id), of[1](BLOCKS[name].id)


def type_name(number: int) -> str:
    lib = library()
    lib.ggml_type_name.restype = ctypes.c_char_p
    return lib.ggml_type_name(number).decode().upper()
