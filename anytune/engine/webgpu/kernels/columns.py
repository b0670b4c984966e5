"""Sums over rows, column by column: gradients of biases, gains and convolutions."""

from __future__ import annotations

from ..kernel import strided_total

COLUMNS = 32  # that a workgroup of 256 sums; eight invocations share a column's rows
FUNCTIONS = strided_total(COLUMNS)


def column_sum(row: str, first: str, end: str, body: str) -> str:
    """WGSL: `all`, what `body` adds to `sum` over rows first…end, in the one invocation that goes on for `column`.

    i is the column within n, for reading. grid: (columns / COLUMNS, …); needs FUNCTIONS.
    """
    return f"""
  let column = group.x * {COLUMNS}u + lane % {COLUMNS}u;
  let i = min(column, p.n - 1u);
  var sum = 0.0;
  for (var {row} = {first} + lane / {COLUMNS}u; {row} < {end}; {row} += {256 // COLUMNS}u) {{{body}
  }}
  let all = strided_total(sum, lane);
  if (lane >= {COLUMNS}u || column >= p.n) {{ return; }}"""
