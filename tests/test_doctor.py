"""doctor and info: what they say is so, and a wrong operation is noticed."""

import numpy as np
import pytest

import anytune
from anytune import doctor
from anytune.info import describe, report
from tests.cli.conftest import cli  # noqa: F401 (a fixture)
from tests.support import tiny


def test_every_operation_gives_known_answers_here(cli):
    facts = cli("doctor", "-t", "1", "--json", code=0).json
    assert facts["ok"] and facts["anytune"] == anytune.__version__
    engine = facts["engines"][0]
    operations = {row["operation"] for row in engine["operations"]}
    for word in (
        "rms_norm",
        "linear",
        "attention",
        "norm_linear",
        "norm_linear_backward",
        "glu_linear",
        "glu_linear_backward",
        "cross_entropy",
        "adamw",
    ):
        assert any(word in operation for operation in operations), operations
    assert all(row["ok"] for row in engine["operations"])
    assert "all good" in doctor.report(facts)


def test_auto_takes_what_the_doctor_found_faster(cli, monkeypatch, tmp_path):
    from anytune.engine import autotune, devices, probe
    from anytune.engine.devices import choose

    monkeypatch.delenv("ANYTUNE_DEVICE")
    monkeypatch.setenv("ANYTUNE_PROBE", str(tmp_path / "deep" / "probe.json"))
    monkeypatch.setattr(probe, "gpu_visible", lambda: False)
    monkeypatch.setattr(devices, "bf16_missing", lambda: None)
    assert choose() == "numpy"
    assert autotune.remember({"numpy": 100.0, "cpu-bf16": 109.0}) == choose() == "numpy"  # not worth its rounding
    assert autotune.remember({"numpy": 100.0, "cpu-bf16": 150.0}) == choose() == "cpu-bf16"
    with monkeypatch.context() as elsewhere:  # where Numba is not installed
        elsewhere.setattr(devices, "bf16_missing", lambda: "there is no Numba")
        assert choose() == "numpy"
    probe.memo().write_text(probe.memo().read_text().replace(probe.cpu_name(), "another processor"))
    assert choose() == "numpy"
    probe.memo().write_text("{")
    assert choose() == "numpy"
    facts = cli("doctor", "-t", "1", "--json", code=0).json
    monkeypatch.setenv("ANYTUNE_DEVICE", "cpu-torch")
    assert choose() == "cpu-torch"
    monkeypatch.delenv("ANYTUNE_DEVICE")
    assert facts["auto"]["device"] == choose() and facts["auto"]["gflops"]["numpy"] > 0


def test_a_wrong_operation_is_found_and_named(cli, monkeypatch):
    from anytune.engine.numpy.engine import NumpyEngine

    right = NumpyEngine.rms_norm

    def wrong(self, x, gain, *args, **kwargs):
        return right(self, x, gain, *args, **kwargs) * np.float32(1.01)

    monkeypatch.setattr(NumpyEngine, "rms_norm", wrong)
    outcome = cli("doctor", "-t", "1", code=1)
    assert "WRONG: " in outcome.out and "rms_norm" in outcome.out and "something is wrong" in outcome.out


@pytest.mark.parametrize("name", ["norm_linear", "glu_linear", "norm_linear_backward", "glu_linear_backward"])
def test_a_wrong_joined_operation_is_found(monkeypatch, name):
    from anytune.engine.check import known_answers
    from anytune.engine.numpy.engine import NumpyEngine

    right = getattr(NumpyEngine, name)

    def wrong(*args):  # only its last result is off
        out = right(*args)
        return (*out[:-1], out[-1] * np.float32(1.01)) if isinstance(out, tuple) else out * np.float32(1.01)

    monkeypatch.setattr(NumpyEngine, name, wrong)
    engine = NumpyEngine(1)
    assert any(name in a.operation for a in known_answers(engine, ("F32",)) if not a.ok)
    engine.workers.close()


def test_a_device_that_fails_is_a_finding(cli, monkeypatch):
    def failing(*_):
        raise RuntimeError("no such device any more")

    monkeypatch.setattr("anytune.engine.check.known_answers", failing)
    facts = cli("doctor", "-t", "1", "--json", code=1).json
    assert not facts["ok"] and "no such device" in facts["engines"][0]["problem"]


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", (("no-such-package-anywhere", "nothing", True),))
    monkeypatch.setattr(
        doctor,
        "_engine",
        lambda *_: {"engine": "numpy", "ok": True, "operations": [], "compiled": False, "seconds": 0, "gflops": None},
    )
    facts = doctor.examine(1)
    assert not facts["ok"] and "no-such-package-anywhere is MISSING" in doctor.report(facts)


@pytest.mark.parametrize("name, type", [("llama", "F32"), ("qwen3-tied", "Q8_0"), ("gemma3", "F32"), ("llama", "Q4_K")])
def test_info_counts_what_is_in_the_file(tmp_path, name, type):
    path, shape = tiny.write(tmp_path / "tiny.gguf", name, type), tiny.SHAPES[name]
    facts = describe(path)
    with anytune.load(path, threads=1).gguf as gguf:
        assert facts["parameters"] == sum(np.prod(t.shape) for t in gguf.tensors.values())
        assert sum(t["bytes"] for t in facts["types"]) == sum(t.nbytes for t in gguf.tensors.values())
        assert {t["type"] for t in facts["types"]} == {t.type.name for t in gguf.tensors.values()}
        wide = sum(sum(gguf.tensors[n].shape) for n in anytune.Lora().tensors(gguf, shape.layers))
    assert facts["bytes"] == path.stat().st_size
    assert facts["model"]["layers"] == shape.layers and facts["model"]["tied"] == shape.tied
    assert facts["tokenizer"]["size"] == shape.vocab
    assert facts["trainable"]["ok"] and facts["trainable"]["lora_parameters"] == 16 * wide
    modules = {m["name"] for m in facts["trainable"]["modules"]}
    assert ("output" in modules) != shape.tied
    text = report(facts)
    assert f"{shape.layers} layers" in text and "attn_q" in text


def test_info_counts_what_experts_would_take(tmp_path):
    path = tiny.write(tmp_path / "tiny.gguf", "glm4moe")
    facts = describe(path)["trainable"]
    with anytune.load(path, threads=1).gguf as gguf:
        shapes = [t.shape for name, t in gguf.tensors.items() if "_exps" in name]
    assert facts["expert_parameters"] == sum(16 * n * (out + inner) for n, out, inner in shapes) > 0
    assert "with all,experts" in report(describe(path))


def test_info_describes_what_it_cannot_train(tmp_path):
    from anytune.gguf import write_gguf

    path = tmp_path / "odd.gguf"
    write_gguf(
        path,
        {"general.architecture": "mamba", "tokenizer.ggml.model": "none"},
        [("token_embd.weight", (4, 32), "F32", np.ones((4, 32), np.float32))],
    )
    facts = describe(path)
    assert not facts["trainable"]["ok"] and "mamba" in facts["trainable"]["reason"]
    assert "not possible" in report(facts)


def test_info_as_json(cli, tmp_path):
    path = tiny.write(tmp_path / "tiny.gguf", "llama")
    shown, known = cli("info", "-m", path, "--json", code=0).json, describe(str(path))
    for facts in (shown, known):
        assert facts["trainable"]["training"].pop("peak_bytes") > 2**20  # depends on what this process holds now
    assert shown == known
    assert "tiny llama" in cli("info", path, code=0).out
