"""The dequantizer and the quantizer in the simulator: blocks in, blocks out, and what ggml makes of the same."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from anytune.fpga import simulation
from anytune.gguf.quantizers import bf16


class Core:
    """A core of its own, built into `folder`."""

    def __init__(self, name: str, folder: Path):
        from anytune.fpga import routing
        from anytune.fpga.rtl.verilog import verilog

        top, design = f"anytune_{name}", routing.core(name)
        self.words = -(-design.IN // 32), -(-design.OUT // 32)
        defines = f"-DCORE_CLASS=V{top}", f"-DBEAT_IN={self.words[0]}", f"-DBEAT_OUT={self.words[1]}"
        library = simulation.build(
            verilog(design, top), folder, top=top, defines=defines, bench=Path(__file__).with_name("core_bench.cpp")
        )
        self.code = ctypes.CDLL(str(library))
        self.code.core_run.restype = ctypes.c_int64

    def run(self, data: np.ndarray, stalls: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, int]:
        """Bytes [beats, bytes] in -> (bytes [beats, bytes] out, cycles)."""
        raw = np.zeros((len(data), 4 * self.words[0]), np.uint8)
        raw[:, : data.shape[1]] = data
        out = np.zeros((len(data), 4 * self.words[1]), np.uint8)
        cycles = self.code.core_run(
            ctypes.c_int64(len(data)), raw.ctypes.data_as(ctypes.c_void_p), out.ctypes.data_as(ctypes.c_void_p), *stalls
        )
        if cycles < 0:
            raise RuntimeError("the core stalls")
        return out, cycles


def dequantizer_beats(blocks: np.ndarray, name: str) -> np.ndarray:
    """uint8 [n, 18 or 34] of Q4_0 or Q8_0 -> the dequantizer's beats, [n, 35]."""
    out = np.zeros((len(blocks), 35), np.uint8)
    out[:, : blocks.shape[1]] = blocks
    out[:, 34] = name == "Q8_0"
    return out


def halved(x: np.ndarray) -> np.ndarray:
    """float32 [n, 32] -> the bytes [n, 64] of bfloat16, to nearest even."""
    return bf16(np.ascontiguousarray(x, np.float32)).reshape(len(x), -1)
