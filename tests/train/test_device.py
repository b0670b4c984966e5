"""Which engine trains where none is named, what is said of it, and that the model has its own engine back."""

import numpy as np
import pytest

import anytune
from anytune.engine import devices, probe
from anytune.engine.numpy.engine import NumpyEngine
from anytune.errors import UserError
from anytune.train import device
from tests.support import tiny

SMALL = {"context": 64, "ubatch": 64, "batch": 64, "max_steps": 1}


class Other(NumpyEngine):
    """Stands for the bf16 engine on processors that have none."""

    name = "cpu-bf16"


@pytest.fixture(autouse=True)
def auto(monkeypatch, tmp_path):
    """A machine without a GPU, on which no doctor was, with a processor that has the instructions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANYTUNE_DEVICE")
    monkeypatch.setenv("ANYTUNE_PROBE", str(tmp_path / "probe.json"))
    monkeypatch.setattr(probe, "gpu_node", lambda: None)
    monkeypatch.setattr(device, "bf16_missing", lambda: None)
    real = devices.engine_for
    monkeypatch.setattr(
        device, "engine_for", lambda name, threads: Other(threads) if name == "cpu-bf16" else real(name, threads)
    )


@pytest.fixture
def file(tmp_path):
    (tmp_path / "d.jsonl").write_text('{"prompt": "the cat", "completion": "sat on a stone"}\n' * 4)
    return tiny.write(tmp_path / "tiny.gguf", "llama")


def run(model, capsys, **options):
    """-> (the Run, its first lines)."""
    capsys.readouterr()
    made = anytune.finetune(
        model, "d.jsonl", **SMALL | {"run_dir": f"runs/{np.random.default_rng().integers(1e9)}"} | options
    )
    return made, capsys.readouterr().err


def test_an_adapter_is_trained_in_bf16_and_the_model_stays_exact(file, capsys):
    model = anytune.load(file, threads=1)
    made, said = run(model, capsys)
    assert "Device: cpu-bf16, because this processor has AVX512-BF16" in said
    assert said.index("Learns the completions") < said.index("Device: ") < said.index("Steps: ")
    assert model.engine.name == "numpy" and model.weights.engine is model.engine
    ids = model.tokenize("the cat")
    exact = anytune.load(file, device="numpy", threads=1)
    np.testing.assert_array_equal(model.logits(ids, made.adapter), exact.logits(ids, made.adapter))


@pytest.mark.parametrize(
    ("options", "engine", "why"),
    [
        ({"device": "numpy"}, "numpy", "because device numpy asks for it"),
        ({"full": True}, "numpy", "small weight updates are lost in bf16"),
        ({"lack": "it has no such instructions"}, "numpy", "is not available: it has no such instructions"),
        ({"doctor": "numpy"}, "numpy", "anytune doctor found it faster"),
        ({"variable": "numpy"}, "numpy", "ANYTUNE_DEVICE"),
    ],
)
def test_the_first_lines_say_which_engine_and_why(file, capsys, monkeypatch, options, engine, why):
    if lack := options.get("lack"):
        monkeypatch.setattr(device, "bf16_missing", lambda: lack)
    if options.get("doctor"):
        from anytune.engine import autotune as race

        race.remember({"numpy": 2.0, "cpu-bf16": 1.0})
    if options.get("variable"):
        monkeypatch.setenv("ANYTUNE_DEVICE", options["variable"])
    full = {"full": anytune.Full(), "output_type": None} if options.get("full") else {}
    _, said = run(anytune.load(file, device=options.get("device", "auto"), threads=1), capsys, **full)
    (line,) = (line for line in said.splitlines() if line.startswith("Device: "))
    assert line.startswith(f"Device: {engine}, because ") and why in line


def test_losses_that_contradict_each_other_are_refused(file):
    with pytest.raises(UserError, match="contradict"):
        anytune.finetune(file, "d.jsonl", loss="all", assistant_loss_only=True, threads=1)


def test_memory_that_does_not_suffice_falls_back(file, capsys, monkeypatch):
    def refuse(self, weights, memory):
        raise UserError("this training needs more memory than there is")

    monkeypatch.setattr(Other, "budget", refuse)
    _, said = run(anytune.load(file, threads=1), capsys)
    assert "Device: numpy, because cpu-bf16, which is faster, needs more memory" in said


def test_a_run_is_continued_on_the_engine_that_began_it(file, capsys, monkeypatch):
    more = {"run_dir": "runs/one", "max_steps": 4, "checkpoint_save_steps": 1}
    monkeypatch.setattr(device, "bf16_missing", lambda: "not yet")
    run(anytune.load(file, threads=1), capsys, **more)
    monkeypatch.setattr(device, "bf16_missing", lambda: None)
    _, said = run(anytune.load(file, threads=1), capsys, **more, resume_from="auto")
    assert "Device: numpy, because the checkpoint was made on it" in said


def test_a_gpu_that_nothing_here_can_use_is_named(monkeypatch):
    monkeypatch.setattr(probe, "gpu_node", lambda: "/dev/nvidia0")
    monkeypatch.setattr(devices, "find_spec", lambda name: None)
    monkeypatch.setattr("anytune.engine.webgpu.detect.installed", lambda: False)
    assert "pip install torch" in devices.gpu_unused("numpy") and "/dev/nvidia0" in devices.gpu_unused("cpu-bf16")
    assert devices.gpu_unused("cuda") == ""


def test_no_layers_on_the_gpu_leaves_the_choice_on_the_cpu(file, capsys):
    from anytune.cli.main import run as command

    args = ["train", "-m", str(file), *"-f d.jsonl -c 64 -ub 64 -b 64 --max-steps 1 -t 1".split()]
    for more, said in (
        (["-ngl", "0"], "Device: cpu-bf16"),
        (["-ngl", "0", "--device", "numpy"], "Device: numpy"),
        (["--device", "cpu"], "Device: numpy"),
    ):
        assert command([*args, *more, "--run-dir", f"runs/{len(more)}{more[0]}{more[1]}"]) == 0
        assert said in capsys.readouterr().err
