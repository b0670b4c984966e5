"""Within little memory weights are streamed and layers run again, and the result is the same."""

import tracemalloc

import numpy as np
import pytest

import anytune
from anytune.adapt.closed import ridge
from anytune.adapt.fit import Recipe
from anytune.adapt.job import Settings, Task, Teacher, keeps, prepare, run_fit
from anytune.adapt.statistics import TokenRows, sum_bytes, sums_for
from anytune.engine.algebra import HostAlgebra
from tests.adapt.test_fit import adapter_for, examples_of
from tests.support import tiny


def test_too_little_memory_is_told_before_the_fit(tmp_path):
    model = anytune.load(tiny.write(tmp_path / "m.gguf", "llama"), device="numpy", threads=1, memory=32 << 20)
    task = Task(Teacher(model, adapter_for(model)), examples_of(model, 8), ())
    prepare(model)
    with pytest.raises(anytune.UserError, match=r"[MG]iB for \d+ tokens of this model, and --memory is 32.0 MiB: give"):
        run_fit(model, [task], Recipe(2, 1e-3), Settings(batch=64), {})


@pytest.mark.parametrize("tokens", [100, 1000, 20_000])
def test_the_count_chooses_what_takes_less(tokens):
    dual = isinstance(sums_for(HostAlgebra(), 640, [128], tokens, tight=True), TokenRows)
    assert dual == (tokens < 640) and sum_bytes(640, [128], tokens) <= sum_bytes(640, [128], 10 * tokens)


@pytest.mark.parametrize("tokens", [225, 1125])  # their rows, and sums over them
def test_sums_and_their_solution_take_what_is_said(tokens):
    random, columns, widths = np.random.default_rng(0), 768, [768, 192]
    x, missing = (random.standard_normal((tokens, n)).astype(np.float32) for n in (columns, sum(widths)))
    tracemalloc.start()
    sums = sums_for(HostAlgebra(), columns, widths, tokens, tight=True)
    for at in range(0, tokens, 100):
        sums.add(x[at : at + 100], missing[at : at + 100], 1.0)
    ridge(sums.equations(), widths, 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0.7 < peak / sum_bytes(columns, widths, tokens) < 1.2


def test_a_tight_budget_changes_nothing_but_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr("anytune.adapt.job.check_memory", lambda *_: None)  # it is far below what Python takes
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
