"""llama.cpp's own quantizers, from the library inside xllamacpp."""

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
