"""anytune quantize lower: the run beside the unrounded one, stages taken back, the files that remain."""

import json

import numpy as np
import pytest

import anytune
from anytune.adapter.adapter import Adapter
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.gguf import GGUF, dequantize
from anytune.gguf.encode import encode
from anytune.quantization.search.lowering import lower
from anytune.text import build_dataset
from tests.support import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a model in F16, a file of text)."""
    folder = tmp_path_factory.mktemp("lower")
    (folder / "d.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    return tiny.write(folder / "m.gguf", "llama", "F16"), folder / "d.txt"


def run(made, device="numpy", **options):
    model = anytune.load(made[0], device=device, threads=1)
    data = build_dataset(made[1], model.tokenizer, model.template, context=48)
    return model, lower(model, data, anytune.Lora(rank=4), every=3, stages=3, ubatch=48, lr=1e-3, threads=1, **options)


def test_types_fall_as_far_as_the_tolerance_lets_them(made):
    _, free = run(made, to=4.5, tolerance=1.0)
    assert all(stage.kept for stage in free.stages) and len(free.stages) == 4
    bits = [stage.bits for stage in free.stages]
    assert bits == sorted(bits, reverse=True) and bits[0] > 16 and bits[-1] <= 5.6
    assert set(free.formats.values()) <= {"Q4_0", "IQ4_NL", "MXFP4", "Q4_1", "Q5_0", "Q5_1", "Q8_0"}
    assert len(free.losses) == len(free.reference) == 12
    assert free.losses[:3] == free.reference[:3] and free.losses[3:] != free.reference[3:]


def test_a_stage_that_leaves_the_tolerance_is_taken_back(made):
    model, none = run(made, to=4.5, tolerance=0.0)
    assert {k for s in none.stages if s.kept for k in s.formats.values()} == {"F16"}
    assert none.losses == none.reference == [pytest.approx(x) for x in none.reference]
    tried = [s for s in none.stages if not s.kept]
    assert len(tried) == 3 and tried[0].bits < tried[1].bits <= tried[2].bits  # each half as far down
    assert set(none.formats.values()) == {"F16"} and none.facts()["mean_apart"] == 0
    for name in none.formats:  # what the model is left with
        assert model.weights.matrices[name].type.name == "F16"


def test_the_model_runs_on_what_the_last_stage_says(made):
    model, found = run(made, to=5.0, tolerance=1.0)
    name = "blk.1.ffn_down.weight"
    exact, out = model.gguf.float32(name), np.empty(model.gguf.tensors[name].shape, np.float32)
    columns = found.importance.of(name, exact.shape)[0]
    model.weights.matrices[name].rows(0, len(out), out, None)
    kind = found.formats[name]
    assert kind != "F16" and np.array_equal(out, dequantize(encode(exact, kind, np.ascontiguousarray(columns)), kind))


def test_the_command_leaves_a_model_and_its_adapter(made, tmp_path, capsys):
    out, adapter = tmp_path / "low.gguf", tmp_path / "a.gguf"
    assert (
        command(
            [
                "quantize",
                "lower",
                "-m",
                str(made[0]),
                "-f",
                str(made[1]),
                "-ub",
                "48",
                "--every",
                "2",
                "--stages",
                "2",
                "--to",
                "5.5",
                "--tolerance",
                "50",
                "-o",
                str(out),
                "--output-adapter",
                str(adapter),
                "-t",
                "1",
                "--json",
            ]
        )
        == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert facts["stages"][-1]["kept"] and facts["path"] == str(out)
    with GGUF.open(out) as file:
        assert Adapter.load(adapter, gguf=file).rank == 16
        weights = sum(t.n_elements for t in file.tensors.values())
        assert 8 * sum(t.nbytes for t in file.tensors.values()) / weights == pytest.approx(facts["bits_per_weight"])
    assert command(["verify", "-m", str(out), "--lora", str(adapter), "-t", "1"]) == 0, capsys.readouterr().out


def test_mistakes(made, tmp_path, capsys):
    with pytest.raises(UserError, match="numpy"):
        run(made, device="cpu-torch")
    base = ["quantize", "lower", "-m", str(made[0]), "-f", str(made[1]), "-t", "1"]
    for args, word in ((["-o", str(made[1])], "the data itself"), (["-f", str(tmp_path / "none.jsonl")], "none.jsonl")):
        assert command(base + args) == 2
        said = capsys.readouterr().err
        assert word in said and "Traceback" not in said
