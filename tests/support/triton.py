"""Triton for the tests: on the card where there is one, in Triton's interpreter on CPU tensors elsewhere."""

import functools
import os
import sys
from pathlib import Path

from tests.support.require import need

DEVICE = "cuda" if Path("/dev/nvidia0").exists() else "cpu"
if DEVICE == "cpu" and "triton" not in sys.modules:
    os.environ["TRITON_INTERPRET"] = "1"  # here already, before the tests collected after this import Triton


def triton_module():
    """Triton, imported in the right mode; where it is missing, the test fails or is skipped as need() says.

    The mode is read when Triton and the kernels are imported, so call this before importing any kernel.
    """
    if DEVICE == "cuda":
        return need("triton")
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("Triton was imported before TRITON_INTERPRET could be set")
    triton = need("triton")
    _repair_interpreter()
    return triton


@functools.cache
def _repair_interpreter() -> None:
    """Let loops have bounds known only at run time: Triton 3.6 takes int() of a one-element array there, which
    NumPy 2.4 refuses. And let e4m3 be rounded right: a mantissa that is rounded up to the next power of two is lost
    there, and what is too large becomes none, which a card cuts off."""
    import numpy as np
    import torch
    import triton.language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(values, source, target, rounding):
        if target != tl.float8e4nv or source != tl.float32:
            return convert(values, source, target, rounding)
        x = torch.from_numpy(np.frombuffer(values.tobytes(), np.float32).reshape(values.shape).copy())
        return x.clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    interpreter._convert_float = converted
    patch = interpreter._patch_lang_tensor

    def repaired(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = repaired
