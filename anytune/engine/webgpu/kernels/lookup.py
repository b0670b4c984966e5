"""Rows of a table of weights: the embedding."""

from __future__ import annotations

import functools

from ..kernel import Kernel, reads, writes
from .blocks import NUMBERS, blocks


@functools.cache
def embed(block: str) -> Kernel:
    """y[t] = scale * row id[t], for rows low…high of the table, which begin where it is bound."""
    return Kernel(
        f"embed, {block}",
        (*reads("w", of="u32"), *reads("id", of="u32"), *writes("y")),
        (*NUMBERS, "n", "ys", "id0", "low", "high", "scale:f32"),
        """
  let c = thread.x * 4u;
  let t = thread.y;
  let row = id[p.id0 + t];
  if (c >= p.n || row < p.low || row >= p.high) { return; }
  let v = weight4(row - p.low, c) * p.scale;
  for (var i = 0u; i < min(4u, p.n - c); i++) { y[t * p.ys + c + i] = v[i]; }
""",
        functions=blocks(block),
    )
