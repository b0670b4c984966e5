"""What a device reaches through WebGPU at best: multiply-adds of float32 without memory, and copying. One JSON line.

python bench/webgpu_peak.py [--device webgpu]
"""

from __future__ import annotations

import argparse
import json
import time

import common  # noqa: F401 (the working tree, whether or not it is installed)

from anytune.engine.devices import engine_for
from anytune.engine.webgpu.arrays import bound
from anytune.engine.webgpu.kernel import Kernel, reads, writes

options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
options.add_argument("--device", default="webgpu")
args = options.parse_args()
e = engine_for(args.device)
software = e.device.software
# sums of an invocation, terms of each, workgroups of 256; bytes to copy
SUMS, LOOP, GROUPS, COPIED = (8, 16, 8, 1 << 24) if software else (8, 2048, 132 * 64, 1 << 30)

chain = "\n".join(f"    s{i} = fma(s{i}, vec4<f32>(p.a), vec4<f32>(p.b));" for i in range(SUMS))
fma = Kernel(
    "fma",
    (*writes("out", of="vec4<f32>"),),
    ("a:f32", "b:f32", "n"),
    "\n".join(f"  var s{i} = vec4<f32>(f32(lane + {i}u));" for i in range(SUMS))
    + f"\n  for (var i = 0u; i < p.n; i++) {{\n{chain}\n  }}\n"
    f"  out[thread.x] = {' + '.join(f's{i}' for i in range(SUMS))};",
)
copy = Kernel(
    "copy",
    (*reads("x", of="vec4<f32>"), *writes("out", of="vec4<f32>")),
    ("n",),
    "  let at = thread.y * 16776960u + thread.x;\n  if (at < p.n) { out[at] = x[at]; }",
)


def seconds(kernel, arrays, numbers, grid) -> float:
    """The best of several dispatches, ten at a time."""
    best = float("inf")
    for _ in range(2 if software else 8):
        e.commands.flush()
        e.device.wait()
        begin = time.perf_counter()
        for _ in range(10):
            e.commands.run(kernel, arrays, numbers, grid)
        e.commands.flush()
        e.device.wait()
        best = min(best, (time.perf_counter() - begin) / 10)
    return best


small = e.zeros(4 * 256 * GROUPS)
x, y = (e.device.buffer(COPIED) for _ in range(2))
fmas = 2.0 * 4 * SUMS * LOOP * 256 * GROUPS / seconds(fma, [small], (0.999, 0.5, LOOP), (GROUPS,))
count = COPIED // 16
bytes_ = 2.0 * COPIED / seconds(copy, [bound(b, 0, COPIED) for b in (x, y)], (count,), (65535, -(-count // 16776960)))
print(
    json.dumps({"device": e.device.name, "fma_tflops": round(fmas / 1e12, 2), "copy_gb_per_s": round(bytes_ / 1e9)}),
    flush=True,
)
