"""Triton's front end on every kernel that an engine launches, without a card: what the interpreter takes the compiler
may refuse, such as a float for a condition. Run as a program, since a process either interprets or compiles.

Nothing is launched: results are whatever memory held. Prints the kernels' names as JSON; a refusal is a traceback.
"""

import inspect
import json
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace


class Driver:
    """Says that there is an H100."""

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def take_over(seen: set[str]) -> None:
    """From now on a launch only makes a kernel's intermediate form, once for each set of types and constants."""
    from triton import compiler
    from triton._C.libtriton import ir
    from triton.runtime import driver, jit

    def front(source, target, options):
        backend = compiler.make_backend(target)
        options = backend.parse_options(dict(options, **source.parse_options()))
        context = ir.context()
        ir.load_dialects(context)
        backend.load_dialects(context)
        codegen, modules = backend.get_codegen_implementation(options), backend.get_module_map()
        assert "context" in inspect.signature(source.make_ir).parameters
        source.make_ir(target, options, codegen, modules, context)
        seen.add(source.fn.__name__)
        return SimpleNamespace()

    run = jit.JITFunction.run
    driver.set_active(Driver())
    compiler.compile = front
    jit.JITFunction.run = lambda self, *a, grid, warmup, **k: run(self, *a, grid=grid, warmup=True, **k)


def main() -> None:
    seen: set[str] = set()
    take_over(seen)
    import numpy as np
    import torch

    from anytune.engine.base import DeltaHeads
    from anytune.engine.check import known_answers
    from anytune.engine.torch.devices import Device
    from anytune.engine.torch.engine import TorchEngine
    from anytune.gguf import GGUF
    from anytune.model.lora import Lora
    from anytune.model.model import Model
    from anytune.text.packing import MicroBatch
    from tests.support import tiny

    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        engine = TorchEngine(Device("cpu-torch", torch.device("cpu"), dtype, True))
        known_answers(engine)
        for heads in (DeltaHeads(1, 1, 64, 64, 1e-6), DeltaHeads(1, 2, 40, 100, 1e-6)):
            engine.begin(np.array([0, 70], np.int32), 70, (0, 0, 0))
            parts = [engine.zeros(70 * n).view(70, n).to(engine.act) for n in (heads.width, heads.values, heads.values)]
            weights = [engine.zeros(n) for n in (heads.values, heads.values, heads.value_size)]
            y, kept = engine.delta(*parts, weights, heads)
            engine.delta_backward(y, *parts, weights, heads, kept, weights)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("qwen35", "gemma2", "gemma4", "gpt-oss", "qwen35moe", "olmo2"):
            engine = TorchEngine(Device("cpu-torch", torch.device("cpu"), torch.bfloat16, True))
            engine.proved = True
            with GGUF.open(tiny.write(Path(folder) / f"{name}.gguf", name)) as gguf:
                model = Model(gguf, engine, None, "cpu-torch")
                trainee = model.trainee(Lora(rank=4), ubatch=64)
                batch = MicroBatch.of([(np.arange(3, 40), np.arange(37) > 5)])
                trainee.accumulate(batch, 1 / batch.loss_tokens, 1, 0)
                trainee.update(1e-4, 1)
                model.decoder(trainee.adapter(), batch=1, context=64).feed([[5]])
    print(json.dumps(sorted(seen)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
