"""The formats that Triton reads, as one table, and what a launch needs to know about a matrix of blocks."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch

from anytune.gguf.blocks import BLOCKS
from anytune.gguf.codebooks import book

from . import formats_32 as small
from . import formats_256 as large
from . import formats_iq as coded


@dataclass(frozen=True)
class Format:
    """`scales` and `octet` are Triton functions: see formats_32.py."""

    scales: Any
    octet: Any
    least: bool = False  # whether the weights are more than scale * q
    book: str | None = None  # the code book
    span: int = 1  # octets of a row that a thread of gemv.py takes at once: in one block, with one scale


FORMATS: dict[str, Format] = {
    "F32": Format(small.scales_one, small.octet_f32),
    "F16": Format(small.scales_one, small.octet_f16),
    "BF16": Format(small.scales_one, small.octet_bf16),
    "Q1_0": Format(small.scales_half, small.octet_q1_0, span=4),
    "Q2_0": Format(small.scales_half, small.octet_q2_0, span=4),
    "Q4_0": Format(small.scales_half, small.octet_q4_0, span=2),
    "Q4_1": Format(small.scales_half_plus, small.octet_q4_1, least=True, span=4),
    "Q5_0": Format(small.scales_half, small.octet_q5_0, span=2),
    "Q5_1": Format(small.scales_half_plus, small.octet_q5_1, least=True, span=4),
    "Q8_0": Format(small.scales_half, small.octet_q8_0),
    "Q2_K": Format(large.scales_q2_k, large.octet_q2_k, least=True, span=2),
    "Q3_K": Format(large.scales_q3_k, large.octet_q3_k, span=2),
    "Q4_K": Format(large.scales_six_bits, large.octet_q4_k, least=True, span=4),
    "Q5_K": Format(large.scales_six_bits, large.octet_q5_k, least=True, span=4),
    "Q6_K": Format(large.scales_q6_k, large.octet_q6_k, span=2),
    "IQ4_NL": Format(small.scales_half, small.octet_iq4_nl, span=2),
    "IQ4_XS": Format(large.scales_iq4_xs, large.octet_iq4_xs, span=4),
    "TQ1_0": Format(large.scales_tq1_0, large.octet_tq1_0),
    "TQ2_0": Format(large.scales_tq2_0, large.octet_tq2_0, span=2),
    "MXFP4": Format(small.scales_mxfp4, small.octet_mxfp4, span=2),
    "NVFP4": Format(small.scales_nvfp4, small.octet_nvfp4, span=2),
    "IQ2_XXS": Format(coded.scales_iq2_xxs, coded.octet_iq2_xxs, book="IQ2_XXS"),
    "IQ2_XS": Format(coded.scales_iq2_xs, coded.octet_iq2_xs, book="IQ2_XS", span=2),
    "IQ2_S": Format(coded.scales_iq2_s, coded.octet_iq2_s, book="IQ2_S", span=2),
    "IQ3_XXS": Format(coded.scales_iq3_xxs, coded.octet_iq3_xxs, book="IQ3_XXS"),
    "IQ3_S": Format(coded.scales_iq3_s, coded.octet_iq3_s, book="IQ3_S"),
    "IQ1_S": Format(coded.scales_iq1_s, coded.octet_iq1_s, book="IQ1_S"),
    "IQ1_M": Format(coded.scales_iq1_m, coded.octet_iq1_m, book="IQ1_S", span=2),
}

ALIGNMENT = {"F32": 4, "MXFP4": 1}  # bytes; two for all others


@functools.cache
def book_bytes(name: str, device: torch.device) -> torch.Tensor:
    """A code book as bytes on a device, four or eight to an entry; the values all fit."""
    return torch.from_numpy(book(name)).to(torch.int8).to(device).view(torch.uint8)


def book_of(raw: torch.Tensor, name: str) -> torch.Tensor:
    """What a kernel takes as `book`; a format without one never reads it."""
    book = FORMATS[name].book
    return raw if book is None else book_bytes(book, raw.device)


def aligned(raw: torch.Tensor, name: str) -> bool:
    """Whether numbers in the blocks are where they can be loaded whole; those of a GGUF always do."""
    return not {raw.data_ptr() % ALIGNMENT.get(name, 2), raw.stride(0) % ALIGNMENT.get(name, 2)} - {0}


def block_of(name: str) -> tuple[int, int]:
    """(weights, bytes) of what a thread finds its octet in: a block, or eight plain numbers."""
    block = BLOCKS[name]
    return (8, 8 * block.type_size) if block.block_size == 1 else (block.block_size, block.type_size)


def constants(raw: torch.Tensor, name: str) -> dict[str, Any]:
    """The compile-time arguments for a matrix of blocks uint8 [rows, row_bytes] with any row stride."""
    weights, size = block_of(name)
    octets = weights // 8
    return {
        "SCALES": FORMATS[name].scales,
        "OCTET": FORMATS[name].octet,
        "SIZE": size,
        "SHIFT": octets.bit_length() - 1,
        "WORD": math.gcd(raw.data_ptr(), raw.stride(0), size, 8),
    }
