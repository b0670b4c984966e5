"""A compute kernel as text: declarations made from a table, the body in WGSL."""

from __future__ import annotations

import functools
from dataclasses import dataclass


@dataclass(frozen=True)
class Kernel:
    """One WGSL entry point.

    arrays: (name, writable, element type) in binding order, after the parameters; numbers: the parameters, u32 unless
    named with :f32 or :i32; size: invocations of a workgroup (x, y); shared: declarations of workgroup memory;
    functions, body: WGSL. In the body `group`, `local`, `lane` and `thread` are workgroup_id, local_invocation_id,
    local_invocation_index and global_invocation_id.
    """

    name: str
    arrays: tuple[tuple[str, bool, str], ...]
    numbers: tuple[str, ...]
    body: str
    size: tuple[int, int] = (256, 1)
    shared: str = ""
    functions: str = ""

    @functools.cached_property
    def fields(self) -> tuple[tuple[str, str], ...]:
        """(name, type) of each parameter."""
        return tuple((n.partition(":")[0], n.partition(":")[2] or "u32") for n in self.numbers)

    def text(self, all_writable: bool = False) -> str:
        """The whole module. all_writable: for a dispatch that reads and writes the same buffer in different places."""
        known = self.__dict__.setdefault("_texts", {})
        if all_writable not in known:
            known[all_writable] = self._text(all_writable)
        return known[all_writable]

    def _text(self, all_writable: bool) -> str:
        lines = [
            f"// {self.name}",
            "struct Numbers {",
            *(f"  {n}: {t}," for n, t in self.fields),
            "}",
            "@group(0) @binding(0) var<uniform> p: Numbers;",
        ]
        for number, (name, writable, element) in enumerate(self.arrays, 1):
            access = "read_write" if writable or all_writable else "read"
            lines.append(f"@group(0) @binding({number}) var<storage, {access}> {name}: array<{element}>;")
        lines += [
            self.shared,
            self.functions,
            f"@compute @workgroup_size({self.size[0]}, {self.size[1]}, 1)",
            "fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_id) local: vec3<u32>,",
            "        @builtin(local_invocation_index) lane: u32,",
            "        @builtin(global_invocation_id) thread: vec3<u32>) {",
            self.body.strip("\n"),
            "}",
            "",
        ]
        return "\n".join(line for line in lines if line)


def reads(*names: str, of: str = "f32") -> tuple[tuple[str, bool, str], ...]:
    return tuple((name, False, of) for name in names)


def writes(*names: str, of: str = "f32") -> tuple[tuple[str, bool, str], ...]:
    return tuple((name, True, of) for name in names)


# tanh by exp: some drivers' own gives NaN for large arguments
CAPPED = """
fn capped(x: f32, cap: f32) -> f32 { return cap * (1.0 - 2.0 / (exp(2.0 * x / cap) + 1.0)); }
fn slope(y: f32, cap: f32) -> f32 { return 1.0 - (y / cap) * (y / cap); }"""


def total(op: str = "+", size: int = 256, name: str = "sums") -> str:
    """WGSL function total_NAME(value, lane): a reduction over a workgroup of `size`, the same for every invocation, as
    a tree in workgroup memory, the array NAME."""
    combine = {"+": "{0} + {1}", "max": "max({0}, {1})"}[op].format(f"{name}[lane]", f"{name}[lane + step]")
    return f"""
var<workgroup> {name}: array<f32, {size}>;
fn total_{name}(value: f32, lane: u32) -> f32 {{
  {name}[lane] = value;
  workgroupBarrier();
  for (var step = {size // 2}u; step > 0u; step = step >> 1u) {{
    if (lane < step) {{ {name}[lane] = {combine}; }}
    workgroupBarrier();
  }}
  let result = {name}[0];
  workgroupBarrier();
  return result;
}}"""


def strided_total(stride: int) -> str:
    """WGSL function strided_total(value, lane): the sum over those invocations of a workgroup of 256 that lie a
    multiple of `stride` lanes apart, in their order."""
    return f"""
var<workgroup> sums: array<f32, 256>;
fn strided_total(value: f32, lane: u32) -> f32 {{
  sums[lane] = value;
  workgroupBarrier();
  var all = 0.0;
  for (var i = lane % {stride}u; i < 256u; i += {stride}u) {{ all += sums[i]; }}
  workgroupBarrier();
  return all;
}}"""


def element(row: str = "t") -> str:
    """WGSL: one invocation per element, column i of n in a row; those beyond the last column return."""
    return f"""
  let i = thread.x;
  let {row} = thread.y;
  if (i >= p.n) {{ return; }}"""
