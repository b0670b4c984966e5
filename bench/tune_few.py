"""Which configuration of kernels/few_product.py is fastest for each product of a step at 1 x 128 tokens, beside cuBLAS.

    python bench/tune_few.py --out few.json [--seconds 150] [--jobs 16]

Shapes are Qwen3-1.7B's with LoRA of rank 16. Each product is checked against float32 (its output full of NaN
beforehand, and twice with the same bits), then timed in a CUDA graph over as many different matrices as the model has
layers, so that the L2 cache holds none of them. First one depth of the pipeline for every tile, then variations of the
best. Prints a table, sums over a step, and the lines for few_product.TABLE.

The work is a child process's: a configuration that breaks the CUDA context, takes forever or ends the process is noted,
and another child goes on behind it. --resume goes on where an earlier run's time was up.

"early" (overlapping launches) is timed apart: between launches of itself it looks better than between others.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
import triton  # noqa: E402

from anytune.engine.torch.kernels import few_product as few  # noqa: E402
from anytune.engine.torch.kernels import gemv  # noqa: E402
from anytune.engine.torch.kernels.few_product import Config  # noqa: E402
from anytune.engine.torch.kernels.shares import counters  # noqa: E402

LAYERS = 28
GROUPS = {"qkv": (4096, 2048, 48), "o": (2048, 2048, 16), "gate_up": (12288, 2048, 32), "down": (2048, 6144, 16),
          "head": (151936, 2048, 0), "head piece": (16384, 2048, 0)}      # width, in, LoRA's columns
# (group, rows, uses in a step forward, backward); the last layer's MLP has loss rows only, the first layer needs no dx
SHAPES = [("gate_up", 128, 27, 27), ("down", 128, 27, 27), ("qkv", 128, 28, 27), ("o", 128, 28, 28), ("head", 64, 1, 1),
          ("gate_up", 64, 1, 1), ("down", 64, 1, 1), ("gate_up", 256, 0, 0), ("qkv", 256, 0, 0), ("down", 256, 0, 0),
          ("head piece", 64, 0, 0)]
SHARED, REGISTERS = 233472, 65536   # bytes of shared memory and registers of a multiprocessor
DEVICE, DTYPE = "cuda", torch.bfloat16
BROKEN = 75                         # a child's exit status: another is to go on


def align(n: int) -> int:
    return -(-n // 64) * 64


class Shape:
    """One product: a [rows, inner] · b [inner, columns], with strides as the engine has them."""

    def __init__(self, group: str, rows: int, turned: bool, uses: int):
        width, features, rank = GROUPS[group]
        self.name = f"{group} {'forward' if turned else 'backward'}"
        self.turned, self.rows, self.uses = turned, rows, uses
        self.columns, self.inner = (width, features + rank) if turned else (features, width + rank)
        self.lines, self.stride = width + rank, align(features + rank)
        self.copies = LAYERS if self.lines * self.stride < 1 << 27 else 2
        self.used = (width if turned else width + rank, features + rank if turned else features)
        self.bytes = 2 * self.used[0] * self.used[1]

    def matrix(self, arena, number: int):
        """b, the number-th of the matrices."""
        size = self.lines * self.stride
        m = arena[number * size:(number + 1) * size].view(self.lines, self.stride)[:self.used[0], :self.used[1]]
        return m.t() if self.turned else m

    def others(self, device):
        """(a, out)"""
        a = torch.empty((self.rows, align(self.inner)), dtype=DTYPE, device=device)[:, :self.inner]
        out = torch.empty((self.rows, align(self.columns + 48)), dtype=DTYPE, device=device)[:, :self.columns]
        return a, out

    def meta(self):
        """(a, b, out) without memory."""
        a, out = self.others("meta")
        arena = torch.empty(self.lines * self.stride, dtype=DTYPE, device="meta")
        return a, self.matrix(arena, 0), out

    def key(self, processors: int) -> tuple:
        return processors, self.turned, next(n for n in few.CLASSES if self.rows <= n), self.columns, self.inner


# ---- candidates --------------------------------------------------------------------------------------------

def resident(c: Config) -> int:
    """Programs that fit on a multiprocessor, about."""
    tiles = c.stages * (c.rows + c.columns) * c.step * 2
    each = c.rows * c.columns // (32 * c.warps) + 56   # registers of a thread
    return min(SHARED // (tiles + 2048), REGISTERS // (32 * c.warps * each), 8) if each <= 256 else 0


def estimate(shape: Shape, c: Config, processors: int) -> float:
    """Microseconds, roughly: what orders the candidates."""
    tiles = triton.cdiv(shape.rows, c.rows) * triton.cdiv(shape.columns, c.columns)
    programs = c.programs or tiles
    most = few.shares_of(tiles, programs)
    shared = 8.0 * shape.rows * shape.columns * max(programs / tiles, 1) if most > 1 else 0.0
    reading = tiles * c.rows * shape.inner * 2.0 + shape.bytes
    slots = processors * resident(c)
    waves = max(1, triton.cdiv(programs, slots)) * slots / programs if programs > slots else 1.0
    idle = max(1.0, processors / programs)
    beside = min(programs, slots)
    uneven = triton.cdiv(beside, processors) * processors / beside if programs > processors else 1.0
    stream = max(shape.bytes / 3.0e6, (reading + shared) / 5.5e6) * waves * idle ** 0.7 * uneven ** 0.5
    return stream + (most * c.rows * c.columns * 4 / 1e5 if most > 1 else 0.0) + 3.0


def heights(rows: int) -> tuple[int, ...]:
    return (64,) if rows <= 64 else (128,) if rows <= 128 else (256, 128)


def first_candidates(shape: Shape, processors: int, most: int) -> list[Config]:
    """Every tile and division of the work through descriptors, with the deepest pipeline of those that fit."""
    found = {}
    for height in heights(shape.rows):
        for columns in (32, 64, 128, 256):
            tiles = triton.cdiv(shape.rows, height) * triton.cdiv(shape.columns, columns)
            for step in (64, 128):
                warps = 8 if height * columns >= 16384 else 4
                counts = {tiles * n for n in (1, 2, 3, 4, 6, 8, 12, 16)} | {processors * n for n in (1, 2, 3, 4)}
                for programs in sorted(counts):
                    if tiles > few.COUNTERS and programs != tiles or programs > 6 * processors and programs != tiles:
                        continue
                    for stages in (6, 5, 4, 3):
                        c = Config(height, columns, step, warps, stages, 0 if programs == tiles else programs)
                        want = min(triton.cdiv(programs, processors), 4)   # programs beside each other
                        if resident(c) >= want or (stages == 3 and resident(c)):
                            found[c] = estimate(shape, c, processors)
                            break
    return sorted(found, key=found.get)[:most]


def second_candidates(best: list[Config]) -> list[Config]:
    """Around the best: other depths, warps, steps, pointers instead of descriptors."""
    found = []
    for c in best:
        found += [c._replace(stages=n) for n in (2, 3, 4, 5, 6, 7, 8) if abs(n - c.stages) <= 2]
        found += [c._replace(warps=12 - c.warps), c._replace(described=False),
                  c._replace(described=False, stages=max(3, c.stages - 1)), c._replace(step=192 - c.step),
                  c._replace(step=c.step // 2, stages=2 * c.stages)]
        if c.programs:
            found += [c._replace(programs=c.programs + n) for n in (-c.programs // 4, c.programs // 4)]
    return [c for c in dict.fromkeys(found) if c not in best and resident(c)]


# ---- compiling, in processes without a GPU ------------------------------------------------------------------

class Target:
    """Triton's driver, as far as compiling needs one."""

    def __init__(self, target):
        self.target = target

    def get_current_target(self):
        return self.target

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def start_worker(target) -> None:
    triton.runtime.driver.set_active(Target(target))


def compile_one(shape_args: tuple, config: Config) -> tuple[int, str]:
    """Into Triton's cache on disk: (bytes of shared memory, what went wrong)."""
    try:
        return few.launch(*Shape(*shape_args).meta(), config, only_compile=True).metadata.shared, ""
    except Exception as error:
        return 0, f"{type(error).__name__}: {str(error)[:200]}"


def compiled_form(shape: Shape, c: Config) -> tuple:
    """What tells compiled kernels apart."""
    tiles = triton.cdiv(shape.rows, c.rows) * triton.cdiv(shape.columns, c.columns)
    programs = c.programs or tiles
    return shape.turned, c._replace(programs=0), programs % tiles == 0, few.shares_of(tiles, programs) > 1


class Compiler:
    """Compiles ahead with several processes; where that fails, the launch itself compiles."""

    def __init__(self, jobs: int, target):
        self.known, self.pool = {}, None
        if jobs > 1:
            context = multiprocessing.get_context("spawn")
            self.pool = concurrent.futures.ProcessPoolExecutor(jobs, context, start_worker, (target,))

    def prepare(self, jobs: list[tuple[tuple, Config]], until: float) -> None:
        if self.pool is None:
            return
        pending = {}
        for args, config in jobs:
            form = compiled_form(Shape(*args), config)
            if form not in self.known and form not in pending:
                pending[form] = self.pool.submit(compile_one, args, config)
        for form, future in pending.items():
            try:
                self.known[form] = future.result(timeout=max(0.1, until - time.time()))
            except Exception as error:   # late, or the pool is broken
                future.cancel()
                if isinstance(error, concurrent.futures.process.BrokenProcessPool):
                    print(f"compiling one by one: {error}", flush=True)
                    self.pool = None
                    return

    def refused(self, shape: Shape, config: Config) -> str:
        shared, error = self.known.get(compiled_form(shape, config), (0, ""))
        return error or (f"{shared} bytes of shared memory" if shared > 232448 else "")

    def close(self) -> None:
        if self.pool is not None:
            for process in (self.pool._processes or {}).values():
                process.kill()


# ---- measuring ---------------------------------------------------------------------------------------------

class Graph:
    """`call(i)` for every matrix, recorded."""

    def __init__(self, call, copies: int):
        self.copies = copies
        call(0)
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for number in range(copies):
                call(number)
        self.time()

    def time(self, replays: int = 1) -> float:
        """Microseconds of one product."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.graph.replay()   # the card is busy while what follows is launched
        begin.record()
        for _ in range(replays):
            self.graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / (replays * self.copies)


class Bench:
    """One shape on the card."""

    def __init__(self, shape: Shape, arena):
        self.shape, self.b = shape, [shape.matrix(arena, n) for n in range(shape.copies)]
        self.a, self.out = shape.others(DEVICE)
        self.a.copy_(torch.randn(self.a.shape, device=DEVICE))
        self.want = {n: self.a.float() @ self.b[n].float() for n in (0, shape.copies - 1)}
        self.cublas = Graph(lambda n: torch.mm(self.a, self.b[n], out=self.out), shape.copies)
        self.cublas_us = min(self.cublas.time(2) for _ in range(5))

    def check(self, config: Config) -> float:
        """The larger relative error; raises if the second run's bits differ."""
        errors = []
        counters(self.out.device).zero_()   # whatever a configuration before this one has left
        for number, want in self.want.items():
            outs = []
            for _ in range(2):
                self.out.fill_(float("nan"))
                few.launch(self.a, self.b[number], self.out, config)
                outs.append(self.out.clone())
            if not torch.equal(*outs):
                raise ArithmeticError("other bits the second time, or NaN")
            errors.append(float((self.out.float() - want).norm() / want.norm()))
        if not max(errors) < 1e-2:
            raise ArithmeticError(f"relative error {max(errors):.1e}")
        return max(errors)

    def graph(self, config: Config) -> Graph:
        return Graph(lambda n: few.launch(self.a, self.b[n], self.out, config), self.shape.copies)

    def blocks(self) -> float:
        """Microseconds of the product with Q8_0 blocks that decoding uses, forward only, without LoRA's columns."""
        rows, features = self.shape.columns, self.shape.inner // 64 * 64
        raw = torch.full((self.shape.copies, rows, features // 32 * 34), 17, dtype=torch.uint8, device=DEVICE)
        graph = Graph(lambda n: gemv.gemv(self.a[:, :features], raw[n], "Q8_0", self.out), self.shape.copies)
        return min(graph.time() for _ in range(3))


class Run:
    def __init__(self, options):
        self.options, self.until = options, options.until or time.time() + options.seconds
        self.out = Path(options.out)
        self.state = {"rows": [], "cublas": {}}
        if options.resume and self.out.exists():
            self.state = json.loads(self.out.read_text())
        self.processors = torch.cuda.get_device_properties(0).multi_processor_count
        self.state |= {"device": torch.cuda.get_device_name(0), "processors": self.processors,
                       "torch": torch.__version__, "triton": triton.__version__}
        target = triton.runtime.driver.active.get_current_target() if options.jobs > 1 else None
        self.compiler = Compiler(options.jobs, target)
        self.note(self.state.pop("now", None), "the process ended")

    def save(self) -> None:
        self.out.write_text(json.dumps(self.state))

    def note(self, now, why: str) -> None:
        """What was under way failed: it is not tried again."""
        if now is not None:
            name, rows, config = now
            print(f"given up: {name} {rows} {tuple(config or ())}: {why[:150]}", flush=True)
            if config is None:
                self.state.setdefault("skipped", []).append([name, rows])
            else:
                self.state["rows"].append({"shape": name, "rows": rows, "config": list(config), "error": why[:200]})

    def leave(self, why: str) -> None:
        """The CUDA context is lost, or does not answer."""
        self.note(self.state.pop("now", None), why)
        self.save()
        self.compiler.close()
        os._exit(BROKEN)

    def guarded(self, name: str, rows: int, config: Config | None, work, seconds: float = 30):
        """work(), or a text if it fails."""
        self.state["now"] = (name, rows, config)
        self.save()
        watch = threading.Timer(seconds, self.leave, ("no answer",))
        watch.daemon = True
        watch.start()
        try:
            return work()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            try:
                torch.cuda.synchronize()
            except Exception:
                watch.cancel()
                self.leave(text)
            return text
        finally:
            watch.cancel()
            self.state.pop("now", None)

    def measure(self, bench: Bench, config: Config) -> None:
        shape = bench.shape
        row = {"shape": shape.name, "rows": shape.rows, "config": list(config)}
        if any(all(r[key] == value for key, value in row.items()) for r in self.state["rows"]):
            return

        def work():
            row["error_size"] = bench.check(config)
            graph = bench.graph(config)
            row["us"] = graph.time()
            if row["us"] < 1.3 * bench.cublas_us:
                row["us"] = min(graph.time() for _ in range(3))
        refused = self.compiler.refused(shape, config) or self.guarded(shape.name, shape.rows, config, work)
        if refused:
            row.pop("us", None)
            row["error"] = refused[:200]
        self.state["rows"].append(row)

    def best(self, shape: Shape, early: bool, count: int) -> list[dict]:
        rows = [r for r in self.state["rows"] if r["shape"] == shape.name and r["rows"] == shape.rows and "us" in r
                and Config(*r["config"]).early == early]
        return sorted(rows, key=lambda r: r.get("confirmed_us", r["us"]))[:count]

    def shape(self, args: tuple, arena, until: float) -> None:
        """All candidates of one product, as far as time allows; then the best three and cuBLAS by turns."""
        shape = Shape(*args)
        bench = self.guarded(shape.name, shape.rows, None, lambda: Bench(shape, arena))
        if isinstance(bench, str):
            print(f"{shape.name}: {bench[:300]}", flush=True)
            return
        name = f"{shape.name} {shape.rows}"
        self.state["cublas"][name] = bench.cublas_us
        for candidates in (lambda: first_candidates(shape, self.processors, 48),
                           lambda: second_candidates([Config(*r["config"]) for r in self.best(shape, False, 4)]),
                           lambda: [Config(*r["config"])._replace(early=True) for r in self.best(shape, False, 3)]):
            configs = candidates()
            self.compiler.prepare([(args, c) for c in configs], until)
            for config in configs:
                if time.time() > until:
                    break
                self.measure(bench, config)
            self.save()
        rows = self.best(shape, False, 3)
        graphs = [self.guarded(shape.name, shape.rows, c, lambda c=c: bench.graph(c))
                  for c in (Config(*r["config"]) for r in rows)]
        rows, graphs = zip(*[(r, g) for r, g in zip(rows, graphs) if isinstance(g, Graph)]) if rows else ((), ())
        times = self.guarded(shape.name, shape.rows, None,
                             lambda: [[g.time(2) for g in (bench.cublas, *graphs)] for _ in range(9)])
        if not isinstance(times, str):
            middle = [sorted(column)[len(column) // 2] for column in zip(*times)]
            self.state["cublas"][name] = middle[0]
            for row, us in zip(rows, middle[1:]):
                row["confirmed_us"] = us
        if shape.turned and shape.rows in (64, 128) and shape.copies == LAYERS and time.time() < until + 2:
            self.state.setdefault("blocks", {})[name] = self.guarded(shape.name, shape.rows, None, bench.blocks)
        self.save()
        self.report(shape)

    def report(self, shape: Shape) -> None:
        cublas = self.state["cublas"].get(f"{shape.name} {shape.rows}")
        if cublas is None:
            return
        rows, early = self.best(shape, False, 3), self.best(shape, True, 1)
        mine = [r for r in self.state["rows"] if r["shape"] == shape.name and r["rows"] == shape.rows]
        blocks = self.state.get("blocks", {}).get(f"{shape.name} {shape.rows}")
        print(f"\n{shape.name}, {shape.rows} x {shape.columns} x {shape.inner}: cuBLAS {cublas:.2f} us "
              f"{shape.bytes / cublas / 1e3:.0f} GB/s; {sum('us' in r for r in mine)} of {len(mine)} configs ran"
              + (f"; Q8_0 blocks {blocks:.2f} us" if isinstance(blocks, float) else ""))
        for row in rows + early:
            us = row.get("confirmed_us", row["us"])
            print(f"  {us:7.2f} us {shape.bytes / us / 1e3:6.0f} GB/s  {100 * us / cublas:4.0f} %  "
                  f"{tuple(row['config'])}")
        for text in sorted({r["error"][:110] for r in mine if "error" in r})[:4]:
            print(f"  failed: {text}")
        sys.stdout.flush()

    def summary(self, shapes: list[tuple]) -> None:
        """Sums over a step, and the table."""
        cublas = ours = ahead = 0.0
        lines = []
        for args in shapes:
            shape = Shape(*args)
            theirs, rows = self.state["cublas"].get(f"{shape.name} {shape.rows}"), self.best(shape, False, 1)
            if theirs is None:
                if shape.uses:
                    print(f"not in the sums: {shape.name} {shape.rows}")
                continue
            us = rows[0].get("confirmed_us", rows[0]["us"]) if rows else theirs
            early = self.best(shape, True, 1)
            cublas, ours = cublas + shape.uses * theirs, ours + shape.uses * min(us, theirs)
            ahead += shape.uses * min([us, theirs] + [r["us"] for r in early])
            if us < 0.97 * theirs:
                lines.append(f"    {shape.key(self.processors)}: Config{tuple(rows[0]['config'])},"
                             f"  # {shape.name}: {us:.1f} us, cuBLAS {theirs:.1f}")
        print(f"\nproducts of a step: cuBLAS {cublas / 1e3:.3f} ms, the best of both {ours / 1e3:.3f} ms, with "
              f"overlapping launches at best {ahead / 1e3:.3f} ms")
        print("TABLE (what is faster by 3 % or more):\n" + "\n".join(lines), flush=True)
        self.state["step_ms"] = {"cublas": cublas / 1e3, "best": ours / 1e3, "early": ahead / 1e3}
        self.state["table"] = lines
        self.save()

    def all(self) -> None:
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False   # as the engine has it
        shapes = [(group, rows, turned, forward if turned else backward) for group, rows, forward, backward in SHAPES
                  for turned in (True, False)]
        size = max(shape.copies * shape.lines * shape.stride for shape in (Shape(*args) for args in shapes))
        arena = torch.empty(size, dtype=DTYPE, device=DEVICE)
        for piece in arena.split(1 << 26):
            piece.copy_(torch.randn(piece.shape, device=DEVICE)).mul_(0.02)
        # everything that the first look at the shapes of a step needs is compiled meanwhile
        started = time.time()
        early = [(args, c) for args in shapes if args[3] for c in first_candidates(Shape(*args), self.processors, 48)]
        self.compiler.prepare(early, min(self.until, started + 0.4 * self.options.seconds))
        print(f"{self.state['device']}: {len(self.compiler.known)} kernels compiled in {time.time() - started:.0f} s",
              flush=True)
        for number, args in enumerate(shapes):
            left = [2 if a[3] else 1 for a in shapes[number:]]    # shapes of the step get twice the time
            shape, now = Shape(*args), time.time()
            if [shape.name, shape.rows] in self.state.get("skipped", []):
                continue
            if now < self.until:
                try:
                    self.shape(args, arena, now + (self.until - now) * left[0] / sum(left))
                except Exception:   # what is known so far is worth a table
                    traceback.print_exc()
        self.summary(shapes)
        self.compiler.close()


def parent(argv: list[str], until: float) -> int:
    """Children, one after the other, until one comes to the end."""
    for turn in range(12):
        more = ["--resume"] if turn else []
        status = subprocess.run([sys.executable, __file__, *argv, *more, "--until", str(until)]).returncode
        if status in (0, 1, 2):   # 1 and 2: Python's own complaints, which would only come again
            return status
        print(f"a child ended with {status}", flush=True)
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="all rows, as JSON")
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--jobs", type=int, default=min(16, os.cpu_count() or 1), help="processes that compile")
    parser.add_argument("--resume", action="store_true", help="go on with --out")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.until is None:
        sys.exit(parent(sys.argv[1:], time.time() + chosen.seconds))
    Run(chosen).all()
