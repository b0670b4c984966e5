"""The bf16 CPU engine: products in bf16 with float32 sums on processors with AVX-512 BF16, all else as in numpy/.

gemm.py has the products (of simd/bf16.py), rowwise.py and attend.py what is between them, compiled with Numba;
linear.py, attention.py, loss.py and engine.py put the operations together.
`from anytune.engine.cpu_bf16 import CpuBf16Engine` compiles them (once, some seconds) or raises a UserError that says
what is missing.
"""

from __future__ import annotations

from anytune.errors import UserError


def missing() -> str | None:
    """Why the engine cannot run here, and what to do; None if it can."""
    try:
        from numba.core.registry import cpu_target
    except ImportError:
        return "--device cpu-bf16 is compiled with Numba, which is not installed: pip install numba"
    features = cpu_target.target_context.codegen().magic_tuple()[-1]  # what compiled code will be allowed to use
    if "+avx512bf16" not in features.split(","):
        return (
            "--device cpu-bf16 needs a processor with AVX-512 BF16 instructions (AMD since Zen 4, Intel Xeon since "
            "Cooper Lake), which this one lacks: use --device numpy"
        )
    return None


def __getattr__(name: str):
    if name != "CpuBf16Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if (problem := missing()) is not None:
        raise UserError(problem)
    from .engine import CpuBf16Engine

    return CpuBf16Engine
