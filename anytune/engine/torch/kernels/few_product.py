"""out = a · b for some dozens to hundreds of rows: products whose time is that of reading b once.

All rows of a fit one tile (or two), so that b is read from memory once. The work, tiles of b's columns times steps
along the inner axis, is divided evenly between as many programs as fill the card, wherever a tile ends: a program may
finish one tile and begin the next. Tiles that programs share are summed as in shares.py, always in the same order.

Which configuration a shape gets is written in TABLE and never found by a race: a resumed run has to round as the first.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import plain_low
from .shares import COUNTERS, deposit, partials

LEAST, MOST = 33, 256     # rows of a
CLASSES = (64, 128, 256)  # configurations are for rows up to these
LINE = tl.constexpr(64)   # elements of a 128-byte line
AHEAD = tl.constexpr(8)   # steps whose part of b is asked for before the kernel may begin


class Config(NamedTuple):
    """Tiles of rows x columns, `step` of the inner axis at a time.

    programs: in all, 0 for one a tile. described: operands come through the copy engine instead of pointers. early: the
    launch may overlap the end of the kernel before it, and has b brought to the L2 cache meanwhile.
    """
    rows: int
    columns: int
    step: int
    warps: int
    stages: int
    programs: int = 0
    described: bool = True
    early: bool = False


# (multiprocessors, b turned, rows' class, columns, inner axis) -> Config; other shapes are left to torch.mm.
# Filled from what bench/tune_few.py prints.
TABLE: dict[tuple[int, bool, int, int, int], Config] = {}


@triton.jit
def _sum(a, b, row, column, first, last, tokens, columns, inner, a_row, b_row, ROWS: tl.constexpr,
         COLUMNS: tl.constexpr, STEP: tl.constexpr, TURNED: tl.constexpr, DESCRIBED: tl.constexpr):
    """float32 [ROWS, COLUMNS]: the tile at (row, column), summed over steps first … last-1 of the inner axis."""
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    i, j, k = tl.arange(0, ROWS), tl.arange(0, COLUMNS), tl.arange(0, STEP)
    if not DESCRIBED:
        # rows that do not exist read one that does, since nobody stores them; so only the inner axis needs masks
        a_tile = a + tl.minimum(row + i, tokens - 1)[:, None] * a_row + k[None, :]
        if TURNED:
            b_row_of = tl.minimum(j, columns - 1 - column)[None, :]
            b_tile = b + tl.cast(column, tl.int64) * b_row + (b_row_of * b_row + k[:, None])
        else:
            b_tile = b + column + (k[:, None] * b_row + j[None, :])
    for step in range(first, last):
        start = step * STEP
        if DESCRIBED:  # what lies outside is zero
            xs = a.load([row, start])
            ws = b.load([column, start]).T if TURNED else b.load([start, column])
        else:
            here = start + k < inner
            xs = tl.load(a_tile + start, mask=here[None, :], other=0)
            if TURNED:
                ws = tl.load(b_tile + start, mask=here[:, None], other=0)
            else:
                there = here[:, None] & (column + j < columns)[None, :]
                ws = tl.load(b_tile + tl.cast(start, tl.int64) * b_row, mask=there, other=0)
        total = tl.dot(xs, ws, total)
    return total


@triton.jit
def _put(total, out, row, column, tokens, columns, out_row):
    i, j = row + tl.arange(0, total.shape[0])[:, None], column + tl.arange(0, total.shape[1])[None, :]
    tl.store(out + i * out_row + j, total.to(out.dtype.element_ty), mask=(i < tokens) & (j < columns))


@triton.jit
def _ask(b, column, first, last, columns, inner, b_row, COLUMNS: tl.constexpr, STEP: tl.constexpr,
         TURNED: tl.constexpr):
    """Have the first steps' part of b fetched into the L2 cache; nobody waits for it."""
    RUN: tl.constexpr = STEP if TURNED else COLUMNS
    LINES: tl.constexpr = COLUMNS if TURNED else STEP
    line, at = tl.arange(0, LINES)[:, None], (tl.arange(0, (RUN + LINE - 1) // LINE) * LINE)[None, :]
    for step in range(first, tl.minimum(last, first + AHEAD)):
        if TURNED:
            i, j = tl.minimum(column + line, columns - 1), tl.minimum(step * STEP + at, inner - 1)
        else:
            i, j = tl.minimum(step * STEP + line, inner - 1), tl.minimum(column + at, columns - 1)
        tl.inline_asm_elementwise("prefetch.global.L2 [$1]; mov.b32 $0, 0;", "=r,l", [b + i.to(tl.int64) * b_row + j],
                                  dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _collect(parts, shares, N: tl.constexpr, M: tl.constexpr):
    """As shares.collect, one share after the other: tiles are so large that registers do not hold two."""
    element = parts + (tl.arange(0, N)[:, None] * M + tl.arange(0, M)[None, :])
    total = tl.zeros([N, M], tl.float32)
    for number in tl.range(0, shares, num_stages=1):
        total += tl.load(element + number * (N * M), cache_modifier=".cg")
    return total


@triton.jit
def _part(a, b, out, parts, counter, tile, begin, end, program, programs, units, steps, down, tokens, columns,
          inner, most, a_row, b_row, out_row, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr,
          TURNED: tl.constexpr, DESCRIBED: tl.constexpr, SHARED: tl.constexpr):
    """This program's part of a tile."""
    before = tile * steps
    row, column = tile % down * ROWS, tile // down * COLUMNS  # tiles of the same columns are neighbours
    total = _sum(a, b, row, column, tl.maximum(begin - before, 0), tl.minimum(end - before, steps), tokens, columns,
                 inner, a_row, b_row, ROWS, COLUMNS, STEP, TURNED, DESCRIBED)
    if SHARED:
        owner = ((before + 1) * programs - 1) // units  # the program that has the tile's first step
        shares = ((before + steps) * programs - 1) // units - owner + 1
        if shares == 1:
            _put(total, out, row, column, tokens, columns, out_row)
        else:
            place = parts + tl.cast(tile, tl.int64) * most * (ROWS * COLUMNS)
            if deposit(total, place, counter + tile, 0, program - owner, shares):
                _put(_collect(place, shares, ROWS, COLUMNS), out, row, column, tokens, columns, out_row)
    else:
        _put(total, out, row, column, tokens, columns, out_row)


@triton.jit(do_not_specialize=["tokens", "most"])
def _product(a, b, lines, out, parts, counter, tokens, columns, inner, most, a_row, b_row, out_row,
             ROWS: tl.constexpr, COLUMNS: tl.constexpr, STEP: tl.constexpr, TURNED: tl.constexpr,
             DESCRIBED: tl.constexpr, EARLY: tl.constexpr, WHOLE: tl.constexpr, SHARED: tl.constexpr):
    """Grid (programs). Units, the steps of all tiles one after the other, are divided between them evenly.

    b: [inner, columns], or [columns, inner] if TURNED; lines: its pointer. WHOLE: no program has more than one tile.
    SHARED: a tile may have several programs, at most `most`.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    down, steps = tl.cdiv(tokens, ROWS), tl.cdiv(inner, STEP)
    units = down * tl.cdiv(columns, COLUMNS) * steps
    begin, end = program * units // programs, (program + 1) * units // programs
    tile = begin // steps
    if EARLY:
        tl.extra.cuda.gdc_launch_dependents()
        first = begin - tile * steps
        # the L2 cache is coherent: lines that still change are right when they are read
        _ask(lines, tile // down * COLUMNS, first, tl.minimum(first + end - begin, steps), columns, inner, b_row,
             COLUMNS, STEP, TURNED)
        tl.extra.cuda.gdc_wait()  # what kernels before this one write is not read before this
    if WHOLE:
        _part(a, b, out, parts, counter, tile, begin, end, program, programs, units, steps, down, tokens, columns,
              inner, most, a_row, b_row, out_row, ROWS, COLUMNS, STEP, TURNED, DESCRIBED, SHARED)
    else:
        for number in range(tile, tl.cdiv(end, steps)):
            _part(a, b, out, parts, counter, number, begin, end, program, programs, units, steps, down, tokens,
                  columns, inner, most, a_row, b_row, out_row, ROWS, COLUMNS, STEP, TURNED, DESCRIBED, SHARED)


def turned(b: torch.Tensor) -> bool:
    """Whether b [inner, columns] lies in memory column by column."""
    return b.stride(0) == 1 != b.stride(1)


@functools.cache
def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0


def config_of(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> Config | None:
    """The table's configuration for a product, if it has one and the operands lie as the kernel needs them."""
    rows, inner = a.shape
    if not TABLE or not LEAST <= rows <= MOST or a.element_size() != 2:
        return None
    over = next(n for n in CLASSES if rows <= n)
    config = TABLE.get((processors(a.device), turned(b), over, b.shape[1], inner))
    return config if config is not None and fits(a, b, out, config) else None


def fits(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, config: Config) -> bool:
    lines = b.t() if turned(b) else b
    if not a.dtype == b.dtype == out.dtype or any(t.stride(1) != 1 for t in (a, lines, out)):
        return False
    return not config.described or all(t.data_ptr() % 16 == 0 and t.stride(0) % 8 == 0 for t in (a, lines))


def few_product(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """See plain_low.few_product."""
    config = config_of(a, b, out)
    return plain_low.few_product(a, b, out) if config is None else launch(a, b, out, config)


def shares_of(tiles: int, programs: int) -> int:
    """How many programs share a tile at most."""
    return programs // tiles if programs % tiles == 0 else triton.cdiv(programs, tiles) + 1


def launch(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor, c: Config, only_compile: bool = False):
    """out = a · b as `c` says; -> out, or the compiled kernel."""
    (tokens, inner), columns = a.shape, b.shape[1]
    lines = b.t() if turned(b) else b
    tiles, steps = triton.cdiv(tokens, c.rows) * triton.cdiv(columns, c.columns), triton.cdiv(inner, c.step)
    programs = min(c.programs or tiles, tiles * steps)
    most = shares_of(tiles, programs)
    if most > 1 and tiles > COUNTERS or tiles * steps * programs >= 1 << 31:
        raise ValueError(f"{tiles} tiles are too many to be shared by {programs} programs")
    parts, counter = partials(most, tiles, c.rows * c.columns, out)
    x, w = a, lines
    if c.described:
        x = TensorDescriptor.from_tensor(a, [c.rows, c.step])
        w = TensorDescriptor.from_tensor(lines, [c.columns, c.step] if turned(b) else [c.step, c.columns])
    more = {"launch_pdl": True} if c.early else {}
    call = functools.partial(_product.warmup, grid=(programs,)) if only_compile else _product[(programs,)]
    made = call(x, w, lines, out, parts, counter, tokens, columns, inner, most, a.stride(0), lines.stride(0),
                out.stride(0), ROWS=c.rows, COLUMNS=c.columns, STEP=c.step, TURNED=turned(b), DESCRIBED=c.described,
                EARLY=c.early, WHOLE=programs % tiles == 0, SHARED=most > 1, num_warps=c.warps, num_stages=c.stages,
                **more)
    return made if only_compile else out
