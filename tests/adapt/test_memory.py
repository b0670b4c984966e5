"""Within little memory weights are streamed and layers run again, and the result is the same."""

import numpy as np

import anytune
from anytune.adapt.fit import Recipe
from anytune.adapt.job import Settings, Task, Teacher, keeps, prepare, run_fit
from tests.adapt.test_fit import adapter_for, examples_of
from tests.support import tiny


def test_a_tight_budget_changes_nothing_but_the_way(tmp_path):
    path = tiny.write(tmp_path / "m.gguf", "llama", "Q4_0")
    found = []
    for memory in (None, 1 << 20):
        model = anytune.load(path, device="numpy", threads=1, memory=memory)
        prepare(model)
        holds = {matrix.hold for name, matrix in model.weights.matrices.items() if name != "token_embd.weight"}
        examples = examples_of(model, 8)
        task = Task(Teacher(model, adapter_for(model)), examples, ())
        assert keeps(model, [task]) == (memory is None) and (holds == {"stream"}) == (memory is not None)
        found.append(run_fit(model, [task], Recipe(2, 1e-3), Settings(batch=64), {}).pairs)
    for name, pair in found[0].items():
        whole, other = pair.b @ pair.a, found[1][name].b @ found[1][name].a
        assert np.abs(whole - other).max() < 1e-4 * np.abs(whole).max(), name
