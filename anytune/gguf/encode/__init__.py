"""From float32 to blocks of every format that can be written: compiled where numba is, the same bytes without it.

Formats without a search (nearest.py) are bit-equal to llama.cpp's; the others (searched.py) minimise a weighted
error by a search of their own. simd/vectors.py says how one source serves both ways of running.
"""

from anytune.gguf.encode.encode import NAMES, encode

__all__ = ["NAMES", "encode"]
