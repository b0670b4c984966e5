"""Engines under test: every one that this machine can run, in every mode that computes differently."""

import pytest

from anytune.engine.numpy.engine import NumpyEngine
from anytune.engine.numpy.sizes import LEAN, Sizes

TINY = Sizes(tile=64, wide=64, head=96, scores=64, logits=0)  # so that the smallest shapes fall into tiles
MODES = {
    "plain": dict(threads=1, compiled=False),
    "compiled": dict(threads=1, compiled=True),
    "compiled, 3 threads": dict(threads=3, compiled=True),
}


@pytest.fixture(
    params=[(mode, name) for mode in MODES for name in ("usual", "lean", "tiny")],
    ids=lambda p: f"{p[0]}, {p[1]} pieces",
)
def engine(request):
    mode, sizes = request.param
    made = NumpyEngine(**MODES[mode])
    made.sizes = {"usual": Sizes(), "lean": LEAN, "tiny": TINY}[sizes]
    yield made
    made.workers.close()


@pytest.fixture(autouse=True)
def unraced(monkeypatch, request):
    """On a GPU too WebGPU's tiles are the defaults, but where a test is about their race: who wins is chance while
    several tests share the card, and what a product takes and how it rounds depends on it."""
    if "webgpu" not in request.module.__name__ or request.module.__name__.endswith("webgpu_tune"):
        return
    from anytune.engine.webgpu.autotune import Autotune
    from anytune.engine.webgpu.tune import Tuning

    def choose(self):
        self.rate = Autotune(self.engine, 256, 1).rate(self.default, 64)

    monkeypatch.setattr(Tuning, "_choose", choose)
    if request.module.__name__.endswith("webgpu_full") and "engine" in request.fixturenames:
        request.getfixturevalue("engine").tuning.ensure()  # now: a test may count what a step does
