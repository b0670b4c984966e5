"""Estimates of memory: the torch engine run dry, against what torch allocates, and what a card took."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from anytune.engine.budget import Way
from anytune.gguf import GGUF
from anytune.memory import parse_bytes
from anytune.model import Full, Lora, dry_run, load, plan
from anytune.model.model import Model
from anytune.model.spec import LoraSpec
from tests.model.conftest import stream
from tests.support import dry, sparse, tiny
from tests.support.require import need

torch = need("torch")
from anytune.engine.torch import budget as torch_budget  # noqa: E402
from anytune.engine.torch.devices import Device  # noqa: E402
from anytune.engine.torch.dry import dry as run_dry  # noqa: E402
from anytune.engine.torch.engine import TorchEngine  # noqa: E402
from anytune.engine.torch.sizes import AWAY, Sizes  # noqa: E402

MEASURED = json.loads((Path(__file__).parents[2] / "bench" / "results" / "train_gpu.json").read_text())["anytune"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimate")
    return {name: tiny.write(folder / f"{name}.gguf", name) for name in ("llama", "gemma3", "qwen35", "qwen3moe")}


def trainee_of(path, how, dtype="f32", **options):
    model = load(path, device="cpu-torch", dtype=dtype, threads=1)
    return model.full_trainee(how, **options) if isinstance(how, Full) else model.trainee(how, **options)


DROPPED = Lora(rank=4, dropout=0.1)


@pytest.mark.parametrize("name, how", [("gemma3", DROPPED), ("qwen35", DROPPED), ("gemma3", Full(layers=2))])
def test_layers_that_repeat_run_once(files, name, how, monkeypatch):
    """And nothing is lost by it: the whole run takes the same, to the byte and to the operation."""
    trainee, found = trainee_of(files[name], how, ubatch=48), []
    for every in (False, True):
        if every:
            monkeypatch.setattr(dry_run, "representatives", lambda around: list(range(len(around))))
        run = dry.dry_run(trainee, "blocks", 48)
        layers = len(run.layers)
        found.append([run.measure(sizes, keep) for sizes, keep in ((Sizes(), layers), (AWAY, 0), (AWAY, 2))])
    assert found[0] == found[1]


def test_a_dozen_layers_alike_are_three():
    assert dry_run.representatives(["first", *"x" * 10, "last"]) == [0, 1, 11]
    assert dry_run.representatives(["first", *"abc" * 5, "last"]) == [0, 1, 2, 3, 16]


def peak(trainee, batch) -> int:
    with torch.profiler.profile(profile_memory=True) as watched:
        trainee.accumulate(batch, 0.1, 1, 0)
    events = ((e.start_ns(), e.nbytes()) for e in watched.profiler.kineto_results.events() if e.name() == "[memory]")
    return max(itertools.accumulate(size for _, size in sorted(events)))


@pytest.mark.parametrize(
    "name, how",
    [
        *((name, Lora(rank=4)) for name in ("llama", "gemma3", "qwen35", "qwen3moe")),
        *((name, Full("attn_q,ffn_down")) for name in ("llama", "gemma3")),
    ],
)
def test_a_step_takes_what_the_dry_run_said(files, name, how):
    trainee, batch = trainee_of(files[name], how, ubatch=96), stream([96], silent=0)
    trainee.accumulate(batch, 0.1, 1, 0)  # what stays is there
    run = dry.dry_run(trainee, trainee.estimate.hold, 96)
    for keep in (0, len(run.layers)):
        trainee.keep = keep
        assert run.measure(trainee.engine.sizes, keep)[0] - dry.prepared(run) == pytest.approx(
            peak(trainee, batch), rel=0.1
        )


def holes(folder, kind):
    """A file of Qwen3-1.7B's shape."""
    sparse.write_shape(folder / "model.gguf", sparse.qwen3(2048, 6144, 28, 16), kind)
    return folder / "model.gguf"


@pytest.mark.parametrize("name", [name for name, row in MEASURED.items() if "estimate_gib" in row])
def test_a_card_took_what_the_dry_run_says(name, tmp_path, monkeypatch):
    """Peaks that bench/train_gpu.py measured, against plans that are made here, without a card."""
    need("triton")
    row = MEASURED[name]
    engine = TorchEngine(Device("cuda", torch.device("meta"), torch.bfloat16, True, row["dtype"] == "fp8"))
    model = Model(GGUF.open(holes(tmp_path, row["blocks"])), engine)
    examples, length = map(int, row["shape"].split("x"))
    lora = Lora(rank=row["rank"])
    spec = LoraSpec(lora, {n: tuple(model.gguf.tensors[n].shape) for n in lora.tensors(model.gguf, 28)})

    class Budget:
        base, place = torch_budget.WORKSPACE, "the card's memory"
        limit = parse_bytes(row["memory"]) if row["memory"] else 130 << 30
        ways = [
            Way(cost + more, hold, sizes, text + words, sizes.attended)
            for hold, cost, text in torch_budget.HOLDS
            for sizes, more, words in torch_budget.PIECES
        ]

        def dry(self, way, capacity):
            return run_dry(engine, way.sizes)

    monkeypatch.setattr(plan, "prove", lambda *_: None)
    monkeypatch.setattr(engine, "budget", lambda *_: Budget())
    made = plan.plan_training(model, spec, examples * length, length, None)
    assert made.peak_bytes / 2**30 == pytest.approx(row["peak_gib"], rel=0.06)
    assert row["how"].endswith(made.text.rpartition("; ")[2])


def test_processes_that_share_weights_take_their_slices(tmp_path):
    need("triton")
    engine = TorchEngine(Device("cuda", torch.device("meta"), torch.bfloat16, True))
    model = Model(GGUF.open(holes(tmp_path, "Q8_0")), engine)
    spec = LoraSpec(Lora(), {n: tuple(model.gguf.tensors[n].shape) for n in Lora().tensors(model.gguf, 28)})

    class Two:
        size = 2

    engine.process_group = Two()
    sizes = replace(Sizes(turned=True), attended=True)
    run = dry_run.DryRun(model, spec, run_dry(engine, sizes), "shard", 0, 8192, 1024)
    measured = json.loads((Path(__file__).parents[2] / "bench" / "results" / "two_gpus.json").read_text())
    assert run.measure(sizes, 28)[0] / 2**30 == pytest.approx(measured["runs"]["two_sharded"]["peak_gib"], rel=0.02)
