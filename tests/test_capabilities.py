"""Which architecture can do what: docs/models.md has what a tiny model of each does here, or why it does not."""

import re

import numpy as np
import pytest

import anytune
from anytune.adapt.batching import batches
from anytune.adapt.data import text_examples
from anytune.adapt.fit import Couple, Recipe, fit
from anytune.adapt.job import as_adapter
from anytune.adapt.walk import Side
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.export.huggingface import save
from anytune.export.merge import Merge
from anytune.likelihood.windows import windows
from anytune.model import Full, Lora
from anytune.quantization.collect import collect
from anytune.quantization.search.curvature import curvature
from anytune.quantization.search.run import candidates
from tests.model.conftest import stream
from tests.support import tiny
from tests.test_docs import ROOT

TEXT = "the cat in the hat ate an orange on the mat and then the rat ran. " * 12
PAGE = ROOT / "docs" / "models.md"
NAMES = (*tiny.EACH, "mixtral", "gemma4-experts")
WORDS = {"mixtral": "`llama` with experts", "gemma4-experts": "`gemma4` with experts"}


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


CAPABILITIES = {
    "adapters": lora,
    "`--full`": full,
    "`generate`, `chat`": generate,
    "`adapt`": adapt,
    "`imatrix`": imatrix,
    "`quantize search`": search,
    "`export merge`": merge,
    "`export hf`": folder_of,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[tuple[str, str], str | None]:
    """(row, column) -> the sentence that refuses it, or None."""
    cells: dict[tuple[str, str], str | None] = {}
    for name in NAMES:
        folder = tmp_path_factory.mktemp(name)
        path = tiny.write(folder / "model.gguf", name)
        row = WORDS.get(name, f"`{tiny.SHAPES[name].arch}`")
        for column, does in CAPABILITIES.items():
            with anytune.load(path, device="numpy", threads=1) as model:
                try:
                    does(model, folder)
                    cells[row, column] = None
                except UserError as error:
                    cells[row, column] = re.sub(r"\S+\.gguf", "the file", str(error))
    return cells


def page_of(cells: dict[tuple[str, str], str | None]) -> str:
    """The table and its notes, as docs/models.md has them."""
    rows = list(dict.fromkeys(row for row, _ in cells))
    notes = list(dict.fromkeys(filter(None, cells.values())))
    lines = [f"| | {' | '.join(CAPABILITIES)} |", "| --- " * (1 + len(CAPABILITIES)) + "|"]
    for row in rows:
        words = [cells[row, column] for column in CAPABILITIES]
        lines.append(f"| {row} | {' | '.join('yes' if w is None else f'no ({notes.index(w) + 1})' for w in words)} |")
    return "\n".join([*lines, *([""] if notes else []), *(f"({i}) {note}" for i, note in enumerate(notes, 1))]) + "\n"


def test_the_table_of_the_docs_is_what_happens(found):
    wanted = page_of(found)
    assert wanted in PAGE.read_text("utf-8"), f"docs/models.md should have:\n{wanted}"
