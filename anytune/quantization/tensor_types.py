"""What becomes of each tensor of a file, decided before anything is written."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from anytune.errors import UserError
from anytune.gguf import BLOCKS, GGUF, TensorInfo
from anytune.quantization import mix
from anytune.quantization.filetypes import FileType, block_name


@dataclass(frozen=True)
class TensorTypes:
    """What becomes of each tensor: `formats` has all names, in the file's order. kind None: what they are already."""

    kind: FileType | None
    formats: Mapping[str, str]

    def nbytes(self, tensors: Mapping[str, TensorInfo]) -> int:
        return sum(t.rows * BLOCKS[self.formats[name]].row_bytes(t.shape[-1]) for name, t in tensors.items())


def assign_types(
    file: GGUF,
    kind: FileType | None,
    *,
    importance: bool = False,
    overrides: Sequence[tuple[str, str]] = (),
    output: str | None = None,
    embedding: str | None = None,
    pure: bool = False,
    keep_output: bool = False,
    settled: Collection[str] = (),
) -> TensorTypes:
    """Decide on every tensor's format. See `quantize` for the arguments; kind None keeps what no option changes.

    settled: tensors that change only to what is smaller. Raises UserError.
    """
    patterns = [(_pattern(pattern), block_name(block)) for pattern, block in overrides]
    if kind is None:
        chosen = {name: t.type.name for name, t in file.tensors.items() if mix.may_quantize(name, t.shape)}
    else:
        chosen = mix.choose(file.tensors, kind, mix.facts(file.metadata, file.tensors, importance))
    used: set[int] = set()
    formats = {}
    for name, t in file.tensors.items():
        matching = next((i for i, (pattern, _) in enumerate(patterns) if pattern.search(name)), None)
        if name not in chosen or name == "output.weight" and keep_output or _is_integer(t):
            formats[name] = t.type.name
            continue
        wanted = chosen[name] if kind is None or not pure else mix.fitting(kind.block, t.shape[-1])
        if matching is not None:
            used.add(matching)
            wanted = patterns[matching][1]
        elif output and name == "output.weight":
            wanted = block_name(output)
        elif embedding and name in ("token_embd.weight", "per_layer_token_embd.weight"):
            wanted = block_name(embedding)
        if mix.fitting(wanted, t.shape[-1]) != wanted and (matching is not None or wanted in (output, embedding)):
            raise UserError(
                f"{name} cannot become {wanted}: its rows have {t.shape[-1]} weights, not a multiple of "
                f"{BLOCKS[wanted].block_size}."
            )
        if name in settled and BLOCKS[wanted].row_bytes(t.shape[-1]) >= t.row_bytes:
            wanted = t.type.name
        formats[name] = wanted
    for i, (pattern, _) in enumerate(patterns):
        if i not in used:
            raise UserError(
                f"No tensor that can be quantized matches {pattern.pattern!r}: see the names with "
                f"`anytune quantize --dry-run`."
            )
    return TensorTypes(kind, formats)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{text!r} is not a pattern for tensor names: {error}.") from None


def _is_integer(t: TensorInfo) -> bool:
    return t.type.name in ("I8", "I16", "I32", "I64")
