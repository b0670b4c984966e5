"""What a file can be quantized to: llama.cpp's names, their numbers in general.file_type, each one's main format."""

from __future__ import annotations

from dataclasses import dataclass

from anytune.errors import UserError, did_you_mean
from anytune.gguf.encode import NAMES


@dataclass(frozen=True)
class FileType:
    """number: general.file_type; block: the format of tensors that the mix (mix.py) does not give another."""

    name: str
    number: int
    block: str


FILE_TYPES = {
    name: FileType(name, number, block)
    for name, number, block in (
        ("F32", 0, "F32"),
        ("F16", 1, "F16"),
        ("BF16", 32, "BF16"),
        ("Q8_0", 7, "Q8_0"),
        ("Q4_0", 2, "Q4_0"),
        ("Q4_1", 3, "Q4_1"),
        ("Q5_0", 8, "Q5_0"),
        ("Q5_1", 9, "Q5_1"),
        ("Q2_K", 10, "Q2_K"),
        ("Q2_K_S", 21, "Q2_K"),
        ("Q3_K_S", 11, "Q3_K"),
        ("Q3_K_M", 12, "Q3_K"),
        ("Q3_K_L", 13, "Q3_K"),
        ("Q4_K_S", 14, "Q4_K"),
        ("Q4_K_M", 15, "Q4_K"),
        ("Q5_K_S", 16, "Q5_K"),
        ("Q5_K_M", 17, "Q5_K"),
        ("Q6_K", 18, "Q6_K"),
        ("IQ4_NL", 25, "IQ4_NL"),
        ("IQ4_XS", 30, "IQ4_XS"),
        ("Q1_0", 40, "Q1_0"),
        ("Q2_0", 41, "Q2_0"),
        ("TQ1_0", 36, "TQ1_0"),
        ("TQ2_0", 37, "TQ2_0"),
        ("MXFP4", 38, "MXFP4"),
        ("MXFP4_MOE", 38, "MXFP4"),
    )
}
ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


def file_type(name: str) -> FileType:
    """The type of that name, upper or lower case. UserError with all names for another."""
    upper = name.upper()
    found = FILE_TYPES.get(ALIASES.get(upper, upper))
    if found is None:
        raise UserError(
            f"There is no quantization type {name!r}; the types are {', '.join(FILE_TYPES)}."
            + did_you_mean(name, FILE_TYPES)
        )
    return found


def block_name(name: str) -> str:
    """The format of that name, upper or lower case. UserError with all names for another."""
    if name.upper() not in NAMES:
        raise UserError(
            f"There is no tensor type {name!r}; the types are {', '.join(NAMES)}." + did_you_mean(name, NAMES)
        )
    return name.upper()
