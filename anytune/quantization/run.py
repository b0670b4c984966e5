"""quantize(): one GGUF file into another, rows at a time, by several threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.files import spare_inputs
from anytune.gguf import GGUF
from anytune.quantization.filetypes import file_type
from anytune.quantization.imatrix import read_imatrix
from anytune.quantization.tensor_types import TensorTypes, assign_types
from anytune.quantization.rewrite import FLOATS, carry_out


def quantize(
    source: str | os.PathLike,
    target: str | os.PathLike | None,
    kind: str,
    *,
    imatrix: str | os.PathLike | None = None,
    overrides: Sequence[tuple[str, str]] = (),
    output: str | None = None,
    embedding: str | None = None,
    pure: bool = False,
    keep_output: bool = False,
    requantize: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write `source` quantized to `target`, whole or not at all, and return facts about both.

    kind: a name of filetypes.FILE_TYPES. imatrix: a file of importances. overrides: (pattern of tensor names, format),
    the first that matches wins. output, embedding: formats of output.weight and token_embd.weight. pure: no mix, every
    matrix in the type's own format. keep_output: leave output.weight as it is. requantize: allow tensors that are
    quantized already. target None: only tell what would be done. progress: called with (weights done, of how many).
    Raises UserError.
    """
    source = Path(source)
    spare_inputs([target], [("the model", source), ("the importance file", imatrix)])
    importance = read_imatrix(imatrix) if imatrix is not None else None
    with GGUF.open(source) as file:
        found = file.metadata.get("general.type", "model") if file.tensors else "empty"
        if found != "model":
            raise UserError(f"{source} is not a model, but {found[:40]}: name the model's GGUF file.")
        made = assign_types(
            file,
            file_type(kind),
            importance=importance is not None,
            overrides=overrides,
            output=output,
            embedding=embedding,
            pure=pure,
            keep_output=keep_output,
        )
        if target is not None and not requantize:
            refuse_rounding_twice(file, made)
        return carry_out(file, target, made, {}, {}, importance, threads, progress)


def refuse_rounding_twice(file: GGUF, made: TensorTypes) -> None:
    """UserError if it rounds a tensor that is quantized already. (To F32 nothing is rounded.)"""
    again = [
        name
        for name, t in file.tensors.items()
        if made.formats[name] not in (t.type.name, "F32") and t.type.name not in (*FLOATS, "F64")
    ]
    if again:
        raise UserError(
            f"{file.path} is already quantized ({again[0]} is {file.tensors[again[0]].type.name}), and rounding "
            "twice costs accuracy: start from an F16, BF16 or F32 file, or use --allow-requantize."
        )
