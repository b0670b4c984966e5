"""The RTL on a layer of a real model: every product of its linears against the twin, to the bit and the cycle."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.fpga import formats, products
from anytune.fpga.cycles import Cost, cost
from anytune.fpga.plan import CELLS
from anytune.fpga.schedule import Shape
from anytune.fpga.simulation import Simulated, cached
from anytune.fpga.twin import Twin
from anytune.gguf.reader import GGUF

# Linears that share an input, by llama.cpp's names
GROUPS = (("attn_q", "attn_k", "attn_v"), ("attn_output",), ("ffn_gate", "ffn_up"), ("ffn_down",))


class Both:
    """The RTL and the twin at once: each product is computed by both and compared."""

    def __init__(self, engine: Simulated, twin: Twin):
        self.engine, self.twin = engine, twin
        self.sums = self.wrong = 0
        self.planned = Cost()

    def rows(self, terms: list) -> np.ndarray:
        return self._both("rows", terms, len(terms[0][0].q))

    def columns(self, terms: list) -> np.ndarray:
        return self._both("columns", terms, len(terms[0][0]))

    def _both(self, direction: str, terms: list, tokens: int) -> np.ndarray:
        mine, theirs = (getattr(device, direction)(terms) for device in (self.engine, self.twin))
        self.sums += mine.size
        self.wrong += int((mine.view(np.uint32) != theirs.view(np.uint32)).sum())
        self.planned += cost(direction, [Shape.of(w) for _, w in terms], tokens)
        return theirs


def simulate(
    path: str,
    layer: int,
    tokens: int,
    rank: int,
    trace: str = "",
    threads: int = 2,
    backward: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """What was computed for each group of linears of a layer: sums, how many differ, cycles counted and planned.

    Operands are random, of a trained model's kind. trace: a VCD file to write; backward: as well as forward. Raises
    UserError.
    """
    gguf = GGUF.open(path)
    found = [[name for name in group if f"blk.{layer}.{name}.weight" in gguf.tensors] for group in GROUPS]
    if not any(found):
        raise UserError(f"{path} has no linears of layer {layer} that the engine knows ({', '.join(sum(GROUPS, ()))}).")
    engine = Simulated(cached(bool(trace)), trace=trace)
    rows, rng = [], np.random.default_rng(0)
    try:
        for names in filter(None, found):
            rows.append(_group(engine, Twin(threads=threads), gguf, layer, names, tokens, rank, rng, backward))
            row = rows[-1]
            say(
                f"{', '.join(names)} ({row['type']}): {row['sums'] - row['wrong']:,} of {row['sums']:,} sums exact, "
                f"{row['cycles']:,} cycles"
            )
    finally:
        engine.close()
    total = {key: sum(row[key] for row in rows) for key in ("sums", "wrong", "cycles", "planned_cycles", "squares")}
    return {
        "layer": layer,
        "tokens": tokens,
        "rank": rank,
        "groups": rows,
        "backward": backward,
        **total,
        "busy": 128 * total["squares"] / total["cycles"],
        "occupancy": sum(row["products"] for row in rows) / (CELLS * total["cycles"]),
        "seconds": sum(row["seconds"] for row in rows),
    }


def _group(
    engine: Simulated,
    twin: Twin,
    gguf: GGUF,
    layer: int,
    names: list[str],
    tokens: int,
    rank: int,
    rng: np.random.Generator,
    with_backward: bool,
) -> dict[str, Any]:
    infos = [gguf.tensor(f"blk.{layer}.{name}.weight") for name in names]
    weights = [formats.matrix(gguf.blocks(info.name), info.type.name) for info in infos]
    k = weights[0].shape[1]
    pairs = [
        products.Pair(rng.standard_normal((rank, k)) / np.sqrt(k), rng.standard_normal((w.rows, rank)) / 100, 2.0)
        if rank
        else None
        for w in weights
    ]
    spread = np.exp(rng.standard_normal(k) / 2)
    x = (rng.standard_normal((tokens, k)) * spread).astype(np.float32)
    dys = [
        (rng.standard_normal((tokens, w.rows)) * 1e-4 * np.exp(rng.standard_normal((tokens, 1)))).astype(np.float32)
        for w in weights
    ]
    both, cycles, squares, start = Both(engine, twin), engine.cycles, engine.squares, time.perf_counter()
    _, saved = products.forward(both, x, weights, pairs, products.terms_of(infos[0].name))
    if with_backward:
        products.backward(both, dys, saved, weights, pairs)
    return {
        "linears": names,
        "type": "/".join(dict.fromkeys(info.type.name for info in infos)),
        "sums": both.sums,
        "wrong": both.wrong,
        "cycles": engine.cycles - cycles,
        "planned_cycles": both.planned.cycles,
        "squares": engine.squares - squares,
        "products": sum(w.codes[0].size for w in weights) * tokens * (2 if with_backward else 1),
        "seconds": time.perf_counter() - start,
    }
