"""What docs/models.md says works with every architecture, on a tiny model of each."""

import numpy as np
import pytest

import anytune
from anytune.adapt.batching import batches
from anytune.adapt.data import text_examples
from anytune.adapt.fit import Couple, Recipe, fit
from anytune.adapt.job import as_adapter
from anytune.adapt.walk import Side
from anytune.adapter.adapter import Adapter
from anytune.export.huggingface import save
from anytune.export.merge import Merge
from anytune.likelihood.windows import windows
from anytune.model import Full, Lora
from anytune.quantization.collect import collect
from anytune.quantization.search.curvature import curvature
from anytune.quantization.search.run import candidates
from tests.model.conftest import stream
from tests.support import tiny

TEXT = "the cat in the hat ate an orange on the mat and then the rat ran. " * 12
NAMES = (*tiny.EACH, "mixtral", "gemma4-experts")


def trained(trainee) -> None:
    loss = trainee.accumulate(stream([17, 1, 22]), 0.1, 1, 0)
    assert np.isfinite(float(loss)) and np.isfinite(float(trainee.update(1e-3, 1)))


def lora(model, folder) -> None:
    trained(model.trainee(Lora(rank=2, modules="all,experts" if model.config.router else "all"), ubatch=40))


def full(model, folder) -> None:
    trained(model.full_trainee(Full(), ubatch=40))


def generate(model, folder) -> None:
    assert isinstance(model.generate("the cat", max_tokens=3, temperature=0.0), str)


def adapt(model, folder) -> None:
    """Every pair that is made acts, and is taken by the adapter's own check."""
    examples = text_examples(model, TEXT, 16, most=4)
    (found, _), other = batches(examples, 64, False, False), model.trainee(Lora(rank=1), ubatch=8).adapter()
    for _, b in other.tensors.values():
        b += 0.1
    made = fit([Couple(Side(model, found, (), pairs={}), Side(model, found, (), adapter=other))], Recipe(1, 1e-2))
    adapter = as_adapter(model, made)
    assert isinstance(adapter, Adapter) and len(adapter.tensors) > 0
    adapter.check(model.gguf)
    adapter.save(folder / "a.gguf")
    assert np.isfinite(model.logits([5, 6, 7], adapter)).all()


def imatrix(model, folder) -> None:
    found = collect(model, TEXT, context=32, chunks=1)
    assert all(np.isfinite(total).all() for total in found.sums.values())


def search(model, folder) -> None:
    """Every matrix that may get a type has a cost."""
    types = {name: ["Q8_0"] for name in candidates(model, ["Q8_0"])}
    costs = curvature(model, windows(model, TEXT, 16, 2, 1), types, draws=1)
    assert costs.keys() == types.keys() and all(np.isfinite(c["Q8_0"]) for c in costs.values())


def merge(model, folder) -> None:
    Merge(model.gguf, model.trainee(Lora(rank=1), ubatch=8).adapter(), anytune.load).write(folder / "m.gguf", "Q8_0")


def folder_of(model, folder) -> None:
    save(model.gguf, None, folder / "hf", dtype="f32", tokenizer=False)


@pytest.mark.parametrize("does", [lora, full, generate, adapt, imatrix, search, merge, folder_of])
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_can_do_it(paths, tmp_path, name, does):
    with anytune.load(paths[name], device="numpy", threads=1) as model:
        does(model, tmp_path)


@pytest.fixture(scope="module")
def paths(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("models")
    return {name: tiny.write(folder / f"{name}.gguf", name) for name in NAMES}
