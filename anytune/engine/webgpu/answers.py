"""Known answers of the variants, each beside its NumPy twin: the largest relative error to it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from anytune.gguf.blocks import BLOCKS

from .kernel import SUBGROUPS
from .kernels import attention as _attention
from .kernels import gemm as _gemm
from .kernels import gemv as _gemv
from .kernels import optimizer as _optimizer
from .kernels import rows as _rows
from .variants import DOT, GEMV, ROWS, TILES

BLOCK = 32  # weights of a Q8_0 block


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Of the worst row: the largest difference over the largest magnitude wanted."""
    got, want = np.atleast_2d(got).astype(np.float64), np.atleast_2d(want).astype(np.float64)
    most = np.max(np.abs(want), -1) + 1e-300
    return float(np.max(np.max(np.abs(got - want), -1) / most))


def q8_0(random: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """(the bytes of random blocks, padded to words, as int32; float32 [rows, columns] that they mean)."""
    blocks = random.integers(0, 256, (rows, columns // BLOCK, 34), dtype=np.uint8)
    blocks[:, :, :2] = random.uniform(0.004, 0.02, (rows, columns // BLOCK, 1)).astype(np.float16).view(np.uint8)
    scale = blocks[:, :, :2].copy().view(np.float16).astype(np.float32)
    dense = (blocks[:, :, 2:].view(np.int8) * scale).reshape(rows, columns)
    flat = blocks.reshape(-1)
    return np.pad(flat, (0, -flat.size % 4)).view(np.int32), dense


def q4_0(random: np.random.Generator, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """As q8_0."""
    blocks = random.integers(0, 256, (rows, columns // BLOCK, 18), dtype=np.uint8)
    blocks[:, :, :2] = random.uniform(0.1, 0.3, (rows, columns // BLOCK, 1)).astype(np.float16).view(np.uint8)
    scale, bits = blocks[:, :, :2].copy().view(np.float16).astype(np.float32), blocks[:, :, 2:]
    dense = ((np.concatenate([bits & 15, bits >> 4], -1).astype(np.float32) - 8) * scale).reshape(rows, columns)
    flat = blocks.reshape(-1)
    return np.pad(flat, (0, -flat.size % 4)).view(np.int32), dense


def subgroup_rows(e) -> float:
    """Totals of 256 and of 64 invocations, sums and maxima: in a norm, a row of losses, inner products of heads."""
    random, found = np.random.default_rng(0), []
    x, gain = (random.standard_normal(shape).astype(np.float32) for shape in ((5, 700), (700,)))

    def run(kernel, *more):
        e.commands.run(kernel.by_subgroups, *more)

    held, out, gains = e.vector(x), e.zeros(x.size).reshape(x.shape), e.vector(gain)
    run(_rows.rms_norm(False), [held, gains, out], (700, 700, 700, 1e-5), (5,))
    found.append(error(e.host(out), x / np.sqrt(np.mean(x.astype(np.float64) ** 2, -1, keepdims=True) + 1e-5) * gain))

    logits, targets, losses = e.vector(9 * x), np.array([3, 0, 699, -1, 256], np.int32), e.zeros(5)
    wide = 9 * x.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    share = np.exp(wide) / np.exp(wide).sum(-1, keepdims=True)
    hit, real = np.arange(700) == targets[:, None], targets[:, None] >= 0
    run(_optimizer.loss_rows(True), [logits, e.integers(targets), e.vector([0.5]), losses], (700, 700, 0, 0, 0), (5,))
    found.append(error(e.host(losses), np.where(real[:, 0], -np.log(np.sum(share * hit, -1) + ~real[:, 0]), 0.0)))
    found.append(error(e.host(logits), 0.5 * real * (share - hit)))

    delta = e.zeros(35)
    run(_attention.inner(), [held, logits, delta], (100, 700, 700, 0, 5), (7, 5))
    each = (x * e.host(logits).astype(np.float64)).reshape(5, 7, 100).sum(-1).T
    found.append(error(e.host(delta), each.reshape(-1)))
    return float(np.max(found))  # a NaN stays one


def subgroup_gemv(e) -> float:
    """Three rows and one row with Q8_0 blocks, sums that end in the middle of a round."""
    random, n, k = np.random.default_rng(1), 37, 352
    raw, dense = q8_0(random, n, k)
    x, found = random.standard_normal((3, k)).astype(np.float32), []
    for rows, most in ((3, 4), (1, 1)):
        out = e.zeros(rows * n).reshape(rows, n)
        e.commands.run(
            _gemv.gemv("Q8_0", most, subgroups=True),
            [e.vector(x[:rows]), e.integers(raw), out],
            (0, k // BLOCK * 34, rows, n, k, k // 4, n, 0),
            (-(-n // 2),),
        )
        found.append(error(e.host(out), x[:rows].astype(np.float64) @ dense.T))
    return float(np.max(found))  # a NaN stays one


def int8_gemv(e) -> float:
    """Codes within half a step of their numbers (as a share of 0.501 steps, less one),
    and products of these very codes."""
    random, n, k, found = np.random.default_rng(3), 37, 1120, []
    x = (random.standard_normal((3, k)) * 10.0 ** random.integers(-6, 6, (3, k // BLOCK)).repeat(BLOCK, 1)).astype(
        np.float32
    )
    x[1, 64:96] = 0.0
    for kind, (raw, dense) in {"Q8_0": q8_0(random, n, k), "Q4_0": q4_0(random, n, k)}.items():
        for rows, most, subgroups in ((3, 4, False), (1, 1, SUBGROUPS in e.device.features)):
            held, scales = e.integers(np.zeros(rows * k // 4, np.int32)), e.zeros(rows * k // BLOCK)
            out = e.zeros(rows * n).reshape(rows, n)
            e.commands.run(_gemv.codes(), [e.vector(x[:rows]), held, scales], (k // BLOCK, k // 4), (1, rows))
            e.commands.run(
                _gemv.gemv8(kind, most, subgroups=subgroups),
                [held, scales, e.integers(raw), out],
                (0, k // BLOCK * BLOCKS[kind].type_size, rows, n, k, k // BLOCK, n, 0),
                (-(-n // 2),),
            )
            step = e.host(scales).reshape(rows, -1, 1).astype(np.float64)
            back = e.host(held).view(np.int8).reshape(rows, -1, BLOCK) * step
            off = np.abs(back - x[:rows].reshape(back.shape)) / (step + 1e-300)
            found.append(float(np.maximum(np.max(off) / 0.501 - 1.0, 0.0)))
            found.append(error(step, np.max(np.abs(x[:rows].reshape(back.shape)), -1, keepdims=True) / 127.0))
            found.append(error(e.host(out), back.reshape(rows, k) @ dense.T.astype(np.float64)))
    return float(np.max(found))  # a NaN stays one


def half_product(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x wᵀ as a half tile makes it: operands in float16, each row of x brought between 128 and 256 first."""
    _, exponent = np.frexp(np.max(np.abs(x), -1, keepdims=True))
    factor = np.exp2(8.0 - exponent)
    return ((x * factor).astype(np.float16).astype(np.float64) @ w.astype(np.float16).astype(np.float64).T) / factor


def f16_tiles(e, tile: _gemm.Tile = _gemm.Tile(half=True)) -> float:
    """Both directions with a pair: rows that float16 could not hold, rows that it would round to zero."""
    random, m, n, k, rank, found = np.random.default_rng(2), 7, 96, 160, 5, []
    sizes = 10.0 ** np.array([[0], [6], [-9], [3], [-3], [0], [4.5]])
    low = random.standard_normal((m, rank)).astype(np.float32)
    for forward in (True, False):
        raw, dense = q8_0(random, *((n, k) if forward else (k, n)))
        x = (random.standard_normal((m, k)) * sizes).astype(np.float32)
        pair = random.standard_normal((n, rank)).astype(np.float32)
        out, scales, held = e.zeros(m * n).reshape(m, n), e.zeros(m), e.vector(x)
        e.commands.run(_gemm.row_scales(), [held, scales], (k, k, 0), (m,))
        lows = (low * sizes).astype(np.float32)
        e.commands.run(
            _gemm.gemm("Q8_0", forward, tile, True),
            [held, e.integers(raw), out, e.vector(lows), e.vector(pair), scales],
            (
                0,
                dense.shape[1] // BLOCK * 34,
                m,
                n,
                k,
                k,
                k // 4,
                0,
                n // 4,
                0,
                0,
                0,
                rank,
                rank,
                0,
                1 << 30,
                1 << 30,
                0,
                rank,
                1,
            ),
            (-(-n // tile.n), -(-m // tile.m), 1),
        )
        want = half_product(x, dense if forward else dense.T) + lows.astype(np.float64) @ pair.T
        found.append(error(e.host(out), want))
    return float(np.max(found))  # a NaN stays one


ANSWERS: dict[str, Callable[..., float]] = {ROWS: subgroup_rows, GEMV: subgroup_gemv, TILES: f16_tiles, DOT: int8_gemv}
