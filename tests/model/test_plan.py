"""Plans: the one that is found with few dry runs is the best of all that could be."""

from types import SimpleNamespace

import pytest

from anytune.errors import UserError
from anytune.model import Lora, plan
from tests.support import dry, sparse
from tests.support.require import need


def whole(model, spec, budget, layers: int) -> dict[tuple, tuple[int, float]]:
    """{how: (bytes, cost)} of every way with any number of layers that keep all, each in a run of its own."""
    found = {}
    for way in budget.ways:
        counter = plan._Counter(model, spec, 64, 64)
        counter.budget, counter.first = budget, budget.ways[0]
        for keep in range(layers + 1):
            again = counter.run(way, keep)[1] / counter.run(way, layers)[1] - 1
            found[way.hold, way.sizes, keep] = counter.run(way, keep)[0], way.cost + plan.AGAIN * again
    return found


@pytest.mark.parametrize("device", ["numpy", "cpu-torch"])
def test_little_memory_is_used_as_well_as_it_can_be(tmp_path, device, monkeypatch):
    if device == "cpu-torch":
        need("torch")
    from anytune import load

    sparse.write_shape(tmp_path / "m.gguf", sparse.qwen3(256, 512, 5, 8), "Q4_0")
    model = load(tmp_path / "m.gguf", device=device, threads=1)
    monkeypatch.setattr(plan, "prove", lambda *_: None)
    spec = dry.spec_of(SimpleNamespace(lora=Lora(rank=4), model=model, names=Lora().tensors(model.gguf, 5)))
    ways = model.engine.budget(model.weights, 1 << 40).ways
    budget = SimpleNamespace(base=1000, limit=0, place="memory", ways=sorted(ways, key=lambda way: way.cost))
    budget.dry = model.engine.budget(model.weights, 1 << 40).dry
    monkeypatch.setattr(model.engine, "budget", lambda *_: budget)
    every = whole(model, spec, budget, 5)
    least, most = min(every.values())[0], max(every.values())[0]
    for part in (0, 0.02, 0.1, 0.3, 0.5, 0.8, 1):
        budget.limit = 1000 + round(least + part * (most - least))
        made = plan.plan_training(model, spec, 64, 64, None)
        best = min(cost for size, cost in every.values() if size <= budget.limit - 1000)
        assert made.peak_bytes <= budget.limit
        assert every[made.hold, made.sizes, made.keep][1] == pytest.approx(best, abs=1e-9)
    budget.limit = 1000 + least // 2
    with pytest.raises(UserError, match="at least"):
        plan.plan_training(model, spec, 64, 64, None)
