"""Sixteen integers or floats in a register, as numba's compiler sees them, and what all operations on them are made of.

Numba does not vectorise loops as short as a block's, so a few operations are given to LLVM as vectors, and it makes
AVX-512, AVX2 or NEON code of them. No operation is fused or reordered, so results are bit-equal to NumPy's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 16
ADDRESS = types.int64
I8, I16, I32, I64, FLOAT = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
WORDS, FLOATS = ir.VectorType(I32, LANES), ir.VectorType(FLOAT, LANES)


class Lanes(types.Type):
    """The numba type of sixteen values that live in registers."""


class Ints(Lanes):
    pass


class Floats(Lanes):
    pass


@register_model(Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, WORDS)


@register_model(Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager, kind):
        super().__init__(manager, kind, FLOATS)


# caches of compiled kernels that an update in place leaves behind name these types by the module where they were
sys.modules.setdefault("anytune.gguf.lanes", sys.modules[__name__])
ints, floats = Ints("ints x 16"), Floats("floats x 16")


def array_address(context, builder, kind, array, at):
    """Element `at` of a flat array."""
    return builder.gep(context.make_array(kind)(context, builder, array).data, [at])


def shuffle(builder, x, y, lanes):
    """The lanes of x and y, one behind the other, with these numbers."""
    lanes = list(lanes)
    return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def splat(builder, value, kind):
    """The value in every lane."""
    lane = builder.insert_element(ir.Constant(kind, ir.Undefined), value, I32(0))
    return shuffle(builder, lane, lane, [0] * LANES)


def everywhere(number):
    """An integer in every lane."""
    return ir.Constant(WORDS, [number] * LANES)


def native(builder, name: str, result, *args):
    """Call an instruction of the processor by LLVM's name for it."""
    module = builder.module
    function = module.globals.get(name) or ir.Function(module, ir.FunctionType(result, [a.type for a in args]), name)
    return builder.call(function, args)


def made(result, *kinds) -> Callable:
    """Make an intrinsic from function(builder, *values) -> value (None where result is void)."""

    def build(function: Callable):
        def code(context, builder, signature, args):
            value = function(builder, *args)
            return context.get_dummy_value() if value is None else value

        names = ", ".join(f"a{i}" for i in range(len(kinds)))  # numba reads an intrinsic's parameters by name
        scope: dict = {"code": code, "signature": result(*kinds)}
        exec(f"def typing(context, {names}):\n    return signature, code", scope)
        return intrinsic(scope["typing"])

    return build
