"""What a search may spend: bytes of the file, bits a weight, or a device's cycles."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from anytune.errors import UserError
from anytune.gguf import BLOCKS, GGUF, TensorInfo
from anytune.memory import parse_bytes

# the price of a tensor in a type: bytes or cycles; None where the device cannot take it
Price = Callable[[TensorInfo, str], int | None]
ALIGNED, KEYS = 32, 256  # bytes that a tensor's place may be rounded up by, and that new metadata may take
CYCLES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True)
class Budget:
    """amount: bytes of the file, bits a weight, or cycles, as `unit` (bytes, bpw, cycles) says."""

    amount: float
    unit: str

    @property
    def text(self) -> str:
        return f"{self.amount:,.0f} {self.unit}" if self.unit != "bpw" else f"{self.amount:g} bits a weight"

    def limit(self, file: GGUF) -> int:
        """What all tensors together may take: bytes, or cycles."""
        if self.unit == "cycles":
            return int(self.amount)
        if self.unit == "bpw":
            return int(self.amount * file.n_parameters / 8)
        beside = file.path.stat().st_size - sum(t.nbytes for t in file.tensors.values())
        return int(self.amount) - beside - ALIGNED * len(file.tensors) - KEYS


def parse(text: str) -> Budget:
    """'300MiB', '4.0bpw', '120Mcycles' -> a Budget. Raises UserError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:(bpw)|([kMG]?)cycles)\s*", text)
    if found is not None:
        budget = Budget(float(found[1]) * CYCLES[found[3] or ""], found[2] or "cycles")
    else:
        try:
            budget = Budget(float(parse_bytes(text)), "bytes")
        except UserError:
            raise UserError(
                f"{text!r} is not a budget: give a file size such as 300MiB, bits a weight such as 4.0bpw, or "
                "cycles such as 120Mcycles."
            ) from None
    if not (math.isfinite(budget.amount) and budget.amount > 0):
        raise UserError(f"A budget of {text} is too small: give more.")
    return budget


def bytes_of(tensor: TensorInfo, kind: str) -> int:
    """The price of a tensor in a type, in bytes of the file."""
    return tensor.rows * BLOCKS[kind].row_bytes(tensor.shape[-1])
