"""Energy of a step as an interval: an estimate, never a measurement.

    cells    products x (8 x 5 bit multiplication + addition) x activity
    lanes    float32 multiplications and additions of the sums
    memory   bits through the streams x a bit's energy

Energies of operations are of a 45 nm chip at 0.9 V (Horowitz, ISSCC 2014). The least takes them as they are; the most
takes logic 14 times as much, what an FPGA's was found to take beside a chip's (Kuon and Rose, IEEE TCAD 26, 2007).
Activity is the share of wires that change in a cycle in the synthesized netlist of the engine, run on a model's own
weights (gates.py), beside the half of random data, which operations' energies are given for. Clock tree, leakage, host
and memory's idle power are left out, and so are changes that a wire takes back within its cycle.
"""

from __future__ import annotations

from typing import Any

from anytune.fpga.boards import Board
from anytune.fpga.cycles import Cost
from anytune.fpga.formats import BLOCK

MULTIPLY8, ADD32, FLOAT_MULTIPLY, FLOAT_ADD = 0.2, 0.1, 3.7, 0.9  # picojoules
NARROW = 5 / 8  # of an 8 x 8 bit multiplication: the codes have five
FPGA = 14.0
# Changes of a wire of the array and of the lanes, by the cycles in which squares compute: bench/hardware_toggles.py
CELLS_ACTIVITY, LANES_ACTIVITY, RANDOM = 0.41, 0.27, 0.5


def estimate(step: Cost, tokens: int, board: Board) -> dict[str, Any]:
    """Millijoules a token: an interval for each part and for all, and the activity."""
    products, sums = step.squares * BLOCK**3, step.squares * BLOCK**2
    cells = products * (NARROW * MULTIPLY8 + ADD32) * CELLS_ACTIVITY / RANDOM
    lanes = sums * (2 * FLOAT_MULTIPLY + FLOAT_ADD) * LANES_ACTIVITY / RANDOM
    bits = 8 * (step.bytes_in + step.bytes_out)
    each = {
        "cells": (cells, FPGA * cells),
        "lanes": (lanes, FPGA * lanes),
        "memory": tuple(bits * energy for energy in board.picojoules),
    }
    found = {name: [value / tokens * 1e-9 for value in pair] for name, pair in each.items()}
    return {
        "label": "estimate",
        "activity": {"cells": CELLS_ACTIVITY, "lanes": LANES_ACTIVITY, "random": RANDOM},
        "millijoules_per_token": {**found, "all": [sum(pair[at] for pair in found.values()) for at in (0, 1)]},
        "left_out": "clock tree, leakage, host, idle memory",
    }
