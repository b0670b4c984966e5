"""What training a model on the cores takes: cycles, bytes, tokens a second, memory, and energy as an interval.

Cycles follow from the schedule, as the RTL's do; everything else follows from them and from a board's figures, and each
says whether it is counted, synthesized or assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytune.errors import UserError
from anytune.fpga import energy
from anytune.fpga.boards import LUTS, RAMS, Board
from anytune.fpga.cycles import Cost, cost
from anytune.fpga.formats import BLOCK, FORMATS
from anytune.fpga.products import listed, terms_of
from anytune.fpga.schedule import PLANES, Shape, parts
from anytune.gguf import BLOCKS, GGUF, TensorInfo

GROUPS = (("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up"))  # parts of a layer that share an input
HEADS = ("output.weight", "token_embd.weight")
FILES = ("F16", "Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q4_0", "IQ4_XS", "Q3_K", "Q2_K", "TQ2_0", "IQ1_S")
CELLS = 256  # of an engine
LOGITS = 32  # tokens whose logits exist at a time
MB = 1e6


@dataclass(frozen=True)
class Linear:
    """One matrix on the engine. kind: as the file has it; stored: as the cores read it; products: Costs by name."""

    name: str
    shape: Shape
    kind: str
    stored: str
    nbytes: int
    forward: Cost
    backward: Cost
    parts: int


def shape_of(tensor: TensorInfo, kind: str) -> Shape:
    """A matrix [N, K] in blocks, with the planes of a type that the cores read."""
    n, k = tensor.shape
    return Shape(-(-n // BLOCK), -(-k // BLOCK), *PLANES[kind])


def stored_as(kind: str) -> str:
    """The type that the cores read in place of `kind`."""
    return kind if kind in FORMATS else "Q8_0"


def price(tensor: TensorInfo, kind: str, tokens: int, tied: bool = True) -> int | None:
    """Cycles of a matrix's own forward and backward in a type, for a step of `tokens`; None: the cores do not read it.
    tied: the table of embeddings is the head too, else it is only looked up, and costs nothing."""
    if len(tensor.shape) != 2 or tensor.name == "token_embd.weight" and not tied:
        return 0
    if kind not in FORMATS:
        return None
    shape = shape_of(tensor, kind)
    return (cost("rows", [shape] * terms_of(tensor.name), tokens) + cost("columns", [shape], tokens)).cycles


def linears(file: GGUF, tokens: int, rank: int) -> list[Linear]:
    """Every matrix that the engine multiplies by, the head last. UserError if there is none."""
    head = next((name for name in HEADS if name in file.tensors), None)
    names = [name for name, t in file.tensors.items() if name.startswith("blk.") and len(t.shape) == 2]
    if not names or head is None:
        raise UserError(f"{file.path} has no layers of matrices that the engine could run: name a model's GGUF file.")
    return [_linear(file.tensors[name], tokens, rank if name != head else 0) for name in (*names, head)]


def _linear(tensor: TensorInfo, tokens: int, rank: int) -> Linear:
    kind = stored_as(tensor.type.name)
    shape = shape_of(tensor, kind)
    nbytes = tensor.rows * (
        BLOCKS[kind].row_bytes(shape.columns * BLOCK) if kind != tensor.type.name else tensor.row_bytes
    )
    terms = terms_of(tensor.name)
    pieces = max(len(parts("rows", [shape] * terms)), len(parts("columns", [shape])))
    return Linear(tensor.name, shape, tensor.type.name, kind, nbytes, *together([(shape, rank)], tokens, terms), pieces)


def together(shapes: Sequence[tuple[Shape, int]], tokens: int, terms: int = 1) -> tuple[Cost, Cost]:
    """(forward, backward) of linears (shape, rank of the pair or 0) that share an input, for `tokens` of it. terms: of
    Q8_0 that the input is rounded to."""
    blocks, rank = -(-tokens // BLOCK), max(rank for _, rank in shapes)
    found = []
    for products in listed(shapes, terms=terms):
        total = Cost(0, 0, 0, 0)
        for _, direction, operands, own in products:
            if not own:  # of X or dY as stored rows, one block of tokens each: the left operand has the pair's rows
                operands = [Shape(s.rows * blocks, s.columns, s.planes) for s in operands]
            total += cost(direction, operands, tokens if own else BLOCK * -(-rank // BLOCK))
        found.append(total)
    return found[0], found[1]


def whole(each: Sequence[Linear], tokens: int, rank: int) -> tuple[Cost, Cost]:
    """(forward, backward) of layers' linears: those of GROUPS share their input, and their gradients one sum."""
    groups: dict[tuple[str, str], list[tuple[Shape, int]]] = {}
    for linear in each:
        groups.setdefault(_group(linear), []).append((linear.shape, rank))
    ahead = back = Cost(0, 0, 0, 0)
    for (_, part), shapes in groups.items():
        more = together(shapes, tokens, terms_of(part))
        ahead, back = ahead + more[0], back + more[1]
    return ahead, back


def plan(
    file: GGUF,
    board: Board,
    *,
    tokens: int = 128,
    rank: int = 16,
    mhz: float | None = None,
    bandwidth: float | None = None,
) -> dict[str, Any]:
    """Facts, JSON-able, for one step of `tokens` on a board, one layer's activations at a time (forward twice).

    mhz, bandwidth (bytes a second): in place of the board's. Raises UserError.
    """
    each = linears(file, tokens, rank)
    layers, head = each[:-1], each[-1]
    clock, speed = mhz or board.mhz, bandwidth or board.bandwidth
    ahead, back = whole(layers, tokens, rank)
    step = ahead + ahead + back + head.forward + head.backward
    rates = rate(step, tokens, board.engines, clock, speed)
    return {
        "model": file.path.name,
        "board": {**vars(board), "engines": board.engines, "engine_luts": LUTS, "engine_rams": RAMS},
        "tokens": tokens,
        "rank": rank,
        "mhz": clock,
        "bandwidth": speed,
        "tensors": [
            {
                "name": x.name,
                "type": x.kind,
                "stored": x.stored,
                "bytes": x.nbytes,
                "planes": x.shape.planes,
                "tile_parts": x.parts,
                "forward": vars(x.forward),
                "backward": vars(x.backward),
            }
            for x in each
        ],
        "cycles": {
            "forward": ahead.cycles,
            "forward_again": ahead.cycles,
            "backward": back.cycles,
            "head": head.forward.cycles + head.backward.cycles,
            "step": step.cycles,
        },
        "squares": step.squares,
        "stream_bytes": step.bytes_in + step.bytes_out,
        **rates,
        "decode": decode(each, rank, board.engines, clock, speed),
        "grid": [
            {"mhz": f, "gigabytes_per_second": b / 1e9, **rate(step, tokens, board.engines, f, b)}
            for f in (62.5, 125.0, 250.0)
            for b in (0.4e9, 1.6e9, 6.4e9, 19.2e9)
        ],
        "footprint": footprint(file, layers, head, tokens, rank),
        "files": files(file),
        "energy": energy.estimate(step, tokens, board),
    }


def decode(each: Sequence[Linear], rank: int, engines: int, mhz: float, bandwidth: float) -> dict[str, Any]:
    """One token's pass through all linears and the head, as in generation: forward alone, with the pairs.

    The engine works on tiles of 32 tokens, so one token takes the cycles of 32; occupancy is the share of the cells'
    cycles that multiply by the token's own numbers. Latency is in milliseconds.
    """
    layers, head = each[:-1], each[-1]
    one, many = (whole(layers, n, rank)[0] + together([(head.shape, 0)], n)[0] for n in (1, BLOCK))
    rates, weights = rate(one, 1, engines, mhz, bandwidth), sum(x.shape.rows * x.shape.columns for x in each) * BLOCK**2
    return {
        "cycles": one.cycles,
        "squares": one.squares,
        "stream_bytes": one.bytes_in + one.bytes_out,
        "occupancy": weights / (CELLS * one.cycles),
        "latency_ms": 1e3 / rates["tokens_per_second"],
        **rates,
        "sequences_32_tokens_per_second": rate(many, BLOCK, engines, mhz, bandwidth)["tokens_per_second"],
    }


def rate(step: Cost, tokens: int, engines: int, mhz: float, bandwidth: float) -> dict[str, float]:
    """Tokens a second that the cells, and that the memory's bandwidth, allow; and the lesser of the two."""
    cells = tokens * engines * mhz * 1e6 / step.cycles
    memory = tokens * bandwidth / (step.bytes_in + step.bytes_out)
    return {
        "cells_tokens_per_second": cells,
        "memory_tokens_per_second": memory,
        "tokens_per_second": min(cells, memory),
    }


def footprint(file: GGUF, layers: list[Linear], head: Linear, tokens: int, rank: int) -> dict[str, int]:
    """Bytes that are in memory at once while training, the weights streamed from the file: those of two groups of
    linears that share an input (one runs, one arrives) and an eighth of the head; pairs, their gradients and AdamW's
    moments in float32; every layer's input and one layer's activations; logits of some tokens. `resident` has all
    weights in memory instead."""
    count = len({x.name.split(".")[1] for x in layers})
    widths = {x.name.split(".")[2]: (x.shape.rows * BLOCK, x.shape.columns * BLOCK) for x in layers}
    width = (
        max(columns for part, (_, columns) in widths.items() if part in ("attn_q", "ffn_gate"))
        if {"attn_q", "ffn_gate"} & widths.keys()
        else min(columns for _, columns in widths.values())
    )
    weights = sum(x.nbytes for x in layers)
    pairs = sum(rank * (n + k) for n, k in widths.values()) * count
    heads = int(file.metadata.get(f"{file.metadata.get('general.architecture')}.attention.head_count", 1) or 1)
    found = {
        "weights": 2 * _largest_group(layers) + head.nbytes // 8,
        "pairs": 4 * 4 * pairs,
        "layer_inputs": 4 * count * tokens * width,
        "activations": 4 * tokens * (2 * sum(n for n, _ in widths.values()) + 4 * width) + 4 * heads * tokens**2,
        "logits": 2 * 4 * min(LOGITS, tokens) * head.shape.rows * BLOCK,
    }
    total = sum(found.values())
    return {**found, "streamed": total, "resident": total - found["weights"] + weights + head.nbytes}


def _largest_group(layers: Sequence[Linear]) -> int:
    """Bytes of the largest set of one layer's linears that share an input."""
    found: dict[tuple[str, str], int] = {}
    for x in layers:
        found[_group(x)] = found.get(_group(x), 0) + x.nbytes
    return max(found.values())


def _group(linear: Linear) -> tuple[str, str]:
    """(layer, the first of the parts that share this one's input)."""
    _, layer, part, *_ = linear.name.split(".")
    return layer, next((group[0] for group in GROUPS if part in group), part)


def files(file: GGUF) -> dict[str, Any]:
    """The file's size in types, and how far each is below F16; what 300 MB of file would take."""
    weights = sum(t.n_elements for t in file.tensors.values() if len(t.shape) > 1)
    sizes: Mapping[str, float] = {k: BLOCKS[k].type_size * 8 / BLOCKS[k].block_size for k in FILES}
    return {
        "weights": weights,
        "types": {
            kind: {"bits_per_weight": bits, "bytes": int(weights * bits / 8), "below_f16": 1 - bits / 16}
            for kind, bits in sizes.items()
        },
        "bits_for_75_percent": 4.0,
        "bits_for_300_MB": 300 * MB * 8 / weights,
    }
