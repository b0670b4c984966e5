"""What the processor does with bf16, as numba intrinsics: sixteen sums of pairs at once, rounding, transposing.

VDPBF16PS takes 32 bf16 as sixteen pairs, multiplies two such registers pair by pair and adds each pair's two products
to a float32: twice the arithmetic of a float32 FMA. All operands are therefore pairs, two neighbours along the summed
dimension; a pair is one 32-bit word. Everything here works on addresses (int64) and checks nothing.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types

from anytune.simd.registers import ADDRESS, FLOAT, FLOATS, I16, I32, I64, LANES, WORDS, made, native, shuffle, splat

HALVES = ir.VectorType(I16, LANES)  # sixteen bf16, half a register
PAIRS = ir.VectorType(I16, 2 * LANES)  # 32 bf16
ZEROS = ir.Constant(FLOATS, [0.0] * LANES)


def dot(builder, sums, x, y):
    """sums + both products of each pair of words x and y."""
    return native(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FLOATS, sums, x, y)


def rounded(builder, x):
    """Sixteen float32 to bf16, to nearest even; NaN stays NaN."""
    return native(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", HALVES, x)


def place(builder, address, offset: int, kind):
    """The address plus so many bytes, as a pointer to `kind`."""
    moved = builder.add(address, I64(offset)) if offset else address
    return builder.inttoptr(moved, kind.as_pointer())


def load(builder, address, kind, offset: int = 0, align: int = 2):
    return builder.load(place(builder, address, offset, kind), align=align)


def store(builder, value, address, offset: int = 0, align: int = 2) -> None:
    builder.store(value, place(builder, address, offset, value.type), align=align)


def row(builder, address, stride, number: int):
    return builder.add(address, builder.mul(stride, I64(number))) if number else address


def on_addresses(count: int):
    """Make an intrinsic of `count` addresses or numbers that returns nothing;
    function(builder, *values) writes its code."""
    return made(types.void, *[ADDRESS] * count)


def tile(rows: int, vectors: int, single: bool = False):
    """Make an intrinsic (a, a_stride, b, c, c_stride, pairs, add): c = a b for `rows` x 16*vectors float32 of c, or, if
    add is not 0, c += a b.

    a: rows of bf16, strides in bytes; b: packed pairs, [pairs, 16*vectors] words, aligned; c: rows of float32. single:
    a and b are float32, one number where else there is a pair, at half the speed.
    All sums stay in registers, so each is rounded in one fixed order whatever is around it.
    """
    word, words = (FLOAT, FLOATS) if single else (I32, WORDS)

    def multiply(builder, sums, x, y):
        return native(builder, "llvm.fma.v16f32", FLOATS, x, y, sums) if single else dot(builder, sums, x, y)

    @on_addresses(7)
    def build(builder, a, a_stride, b, c, c_stride, pairs, add):
        before = builder.block
        loop, last, more, write, after = (
            builder.append_basic_block(n) for n in ("pairs", "last", "more", "write", "after")
        )
        left = [row(builder, a, a_stride, r) for r in range(rows)]
        builder.branch(loop)

        builder.position_at_end(loop)
        k = builder.phi(I64)
        k.add_incoming(I64(0), before)
        sums = [[builder.phi(FLOATS) for _ in range(vectors)] for _ in range(rows)]
        here = builder.add(b, builder.mul(k, I64(64 * vectors)))
        right = [load(builder, here, words, 64 * j, 64) for j in range(vectors)]
        shift, results = builder.mul(k, I64(4)), []
        for r in range(rows):
            pair = splat(builder, load(builder, builder.add(left[r], shift), word), words)
            results.append([multiply(builder, sums[r][j], pair, right[j]) for j in range(vectors)])
        following = builder.add(k, I64(1))
        k.add_incoming(following, loop)
        for r in range(rows):
            for j in range(vectors):
                sums[r][j].add_incoming(ZEROS, before)
                sums[r][j].add_incoming(results[r][j], loop)
        builder.cbranch(builder.icmp_signed("<", following, pairs), loop, last)

        builder.position_at_end(last)
        out = [row(builder, c, c_stride, r) for r in range(rows)]
        builder.cbranch(builder.icmp_signed("!=", add, I64(0)), more, write)
        for block, adds in ((more, True), (write, False)):
            builder.position_at_end(block)
            for r in range(rows):
                for j in range(vectors):
                    value = results[r][j]
                    if adds:
                        value = builder.fadd(load(builder, out[r], FLOATS, 64 * j, 4), value)
                    store(builder, value, out[r], 64 * j, 4)
            builder.branch(after)
        builder.position_at_end(after)

    return build


@on_addresses(2)
def round_16(builder, source, target):
    """target: 16 bf16 = the 16 float32 at source."""
    store(builder, rounded(builder, load(builder, source, FLOATS, align=4)), target)


@on_addresses(2)
def round_1(builder, source, target):
    """target: one bf16 = the float32 at source."""
    x = splat(builder, load(builder, source, FLOAT, align=4), FLOATS)
    store(builder, builder.extract_element(rounded(builder, x), I32(0)), target)


@on_addresses(2)
def copy_32(builder, source, target):
    """target: the 32 bits at source."""
    store(builder, load(builder, source, I32), target)


@on_addresses(2)
def copy_16(builder, source, target):
    """target: the 16 bits at source."""
    store(builder, load(builder, source, I16), target)


@on_addresses(1)
def zero_16(builder, target):
    """target: the bf16 0."""
    store(builder, I16(0), target)


@on_addresses(2)
def add_1(builder, source, target):
    """target += the float32 at source."""
    store(
        builder,
        builder.fadd(load(builder, source, FLOAT, align=4), load(builder, target, FLOAT, align=4)),
        target,
        align=4,
    )


def _pair(builder, first, second, narrow: bool):
    """Words (first[i], second[i]) of two rows of 16 float32 (bf16 if narrow) at these addresses."""
    rows = [
        load(builder, at, HALVES) if narrow else rounded(builder, load(builder, at, FLOATS, align=4))
        for at in (first, second)
    ]
    both = shuffle(builder, *rows, [lane for i in range(LANES) for lane in (i, LANES + i)])
    return builder.bitcast(both, WORDS)


def _transpose(builder, rows: list) -> list:
    """Sixteen registers of sixteen words as a square, turned over."""
    for step in (8, 4, 2, 1):  # swap the off-diagonal blocks of 2*step x 2*step squares
        keep = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
        swap = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
        for r in range(LANES):
            if not r & step:
                rows[r], rows[r + step] = (shuffle(builder, rows[r], rows[r + step], lanes) for lanes in (keep, swap))
    return rows


@on_addresses(4)
def pair_columns(builder, source, stride, target, target_stride):
    """16 rows of 32 float32 at source -> at target 16 rows of 16 words:
    word i of row p = elements 2p, 2p+1 of row i."""
    rows = []
    for r in range(LANES):
        at = row(builder, source, stride, r)
        halves = [rounded(builder, load(builder, at, FLOATS, 64 * i, 4)) for i in (0, 1)]
        rows.append(builder.bitcast(shuffle(builder, *halves, range(2 * LANES)), WORDS))
    for p, words in enumerate(_transpose(builder, rows)):
        store(builder, words, row(builder, target, target_stride, p), align=64)


@on_addresses(4)
def turn_words(builder, source, stride, target, target_stride):
    """16 rows of 16 words at source -> the transpose at target."""
    rows = [load(builder, row(builder, source, stride, r), WORDS) for r in range(LANES)]
    for r, words in enumerate(_transpose(builder, rows)):
        store(builder, words, row(builder, target, target_stride, r), align=64)


def _pair_rows(narrow: bool):
    @on_addresses(3)
    def build(builder, first, second, target):
        store(builder, _pair(builder, first, second, narrow), target, align=64)

    return build


def _turn_rows(narrow: bool):
    @on_addresses(4)
    def build(builder, source, stride, target, target_stride):
        rows = [
            _pair(builder, row(builder, source, stride, r), row(builder, source, stride, r + 1), narrow)
            for r in range(0, 2 * LANES, 2)
        ]
        for r, words in enumerate(_transpose(builder, rows)):
            store(builder, words, row(builder, target, target_stride, r))

    return build


# (first, second, target): 16 words at target, word i = the pair (first[i], second[i]); of float32, or of bf16
pair_rows, pair_rows_16 = _pair_rows(False), _pair_rows(True)
# (source, stride, target, target_stride): 32 rows of 16 -> 16 rows of 32 bf16, the transpose; of float32, or of bf16
turn_rows, turn_rows_16 = _turn_rows(False), _turn_rows(True)
