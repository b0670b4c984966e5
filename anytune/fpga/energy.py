"""Energy of a step as an interval: an estimate, never a measurement.

    cells    products x (8 x 5 bit multiplication + addition) x activity
    lanes    float32 multiplications and additions of the sums
    memory   bits through the streams x a bit's energy

Energies of operations are of a 45 nm chip at 0.9 V (Horowitz, ISSCC 2014). The least takes them as they are; the most
takes logic 14 times as much, what an FPGA's was found to take beside a chip's (Kuon and Rose, 2007). Activity is
counted on the model: the share of the weights' code bits that change from one square of a cell to the next, beside the
half that random codes would change. Clock tree, leakage, host and memory's idle power are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anytune.fpga.boards import Board
from anytune.fpga.cycles import Cost
from anytune.fpga.formats import BLOCK, FORMATS, matrix, stored
from anytune.gguf import GGUF, dequantize

MULTIPLY8, ADD32, FLOAT_MULTIPLY, FLOAT_ADD = 0.2, 0.1, 3.7, 0.9  # picojoules
NARROW = 5 / 8  # of an 8 x 8 bit multiplication: the codes have five
FPGA = 14.0
ROWS = 256  # of a matrix that activity is counted on


def activity(file: GGUF) -> float:
    """The share of code bits that change between consecutive squares, over the first layer's matrices."""
    changed = total = 0
    for name, t in file.tensors.items():
        if name.startswith("blk.0.") and len(t.shape) == 2:
            rows = min(ROWS, t.shape[0])
            raw = np.empty(rows * t.row_bytes, np.uint8)
            file.read_into(name, 0, rows, raw)
            raw = raw.reshape(rows, -1)
            made = matrix(raw, t.type.name) if t.type.name in FORMATS else stored(dequantize(raw, t.type))
            codes = made.codes.astype(np.uint8)[..., : made.codes.shape[2] // BLOCK * BLOCK]
            squares = codes.reshape(*codes.shape[:2], -1, BLOCK)
            differ = (squares[:, :, 1:] ^ squares[:, :, :-1]) & np.uint8(31)
            changed += int(np.unpackbits(differ).sum())
            total += 5 * squares[:, :, 1:].size
    return changed / total if total else 0.5


def estimate(file: GGUF, step: Cost, tokens: int, board: Board) -> dict[str, Any]:
    """Millijoules a token: an interval for each part and for all, and the activity."""
    share = activity(file)
    products, sums = step.squares * BLOCK**3, step.squares * BLOCK**2
    cells = products * (NARROW * MULTIPLY8 + ADD32) * share / 0.5
    lanes = sums * (2 * FLOAT_MULTIPLY + FLOAT_ADD)
    bits = 8 * (step.bytes_in + step.bytes_out)
    each = {
        "cells": (cells, FPGA * cells),
        "lanes": (lanes, FPGA * lanes),
        "memory": tuple(bits * energy for energy in board.picojoules),
    }
    found = {name: [value / tokens * 1e-9 for value in pair] for name, pair in each.items()}
    return {
        "label": "estimate",
        "activity": share,
        "millijoules_per_token": {**found, "all": [sum(pair[at] for pair in found.values()) for at in (0, 1)]},
        "left_out": "clock tree, leakage, host, idle memory",
    }
