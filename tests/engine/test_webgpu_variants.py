"""Variants that need a device's further features: their known answers, training and generation with them, which of them
a race takes, and what the environment may say."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anytune.engine.devices import engine_for
from anytune.engine.webgpu import answers, autotune, tune, variants
from anytune.engine.webgpu.kernels import every
from anytune.engine.webgpu.kernels.gemm import Tile
from anytune.errors import UserError
from anytune.model import load
from tests.engine.test_torch_engine import cosines, gradients, trainee_of
from tests.model.conftest import stream
from tests.support import tiny
from tests.support.webgpu import need_webgpu, swiftshader

ROOT = Path(__file__).parents[2]
SUBGROUPS = f"{variants.ROWS},{variants.GEMV}"
# of the second device, whose subgroups have another size; run in a process of its own
SCRIPT = """
import json, sys
from anytune.engine.devices import engine_for
from anytune.engine.webgpu.answers import ANSWERS
from anytune.engine.webgpu.device import features
from anytune.engine.webgpu.variants import NEEDS
from anytune.errors import UserError
engine = engine_for("webgpu")
engine.tuning.ensure()
try:
    refused = str(engine_for("webgpu", dtype="fp16"))
except UserError as error:
    refused = str(error)
print(json.dumps({"device": engine.device.name, "features": features("webgpu"), "refused": refused,
                  "variants": engine.identity()["variants"], "tiles": engine.identity()["tiles"],
                  "found": [ANSWERS[v](engine) for v, need in NEEDS.items() if need != "f16"]}))
"""


@pytest.fixture(scope="module", autouse=True)
def device():
    need_webgpu()


def made(half=False, **how):
    from anytune.engine.webgpu.device import open_device
    from anytune.engine.webgpu.engine import WebGpuEngine

    opened = open_device(**how)
    if missing := {"subgroups", *(["f16"] if half else [])} - opened.features:
        pytest.skip(f"{opened.name} has no {' and no '.join(missing)}")
    return WebGpuEngine(opened, half)


@pytest.mark.parametrize("variant", variants.NEEDS)
@pytest.mark.parametrize("trusted", (True, False))
def test_known_answers(variant, trusted):
    engine = made(variant == variants.TILES, trusted=trusted)
    assert answers.ANSWERS[variant](engine) < 2e-6


def test_known_answers_of_another_half_tile():
    assert answers.f16_tiles(made(True), Tile(64, 32, 32, 4, 4, True, half=True)) < 2e-6


def test_no_kernel_relies_on_a_size_or_an_order_of_subgroups():
    """Only operations whose result is the same however invocations are dealt to subgroups of whatever size."""
    for kernel in every.variants():
        if "subgroups" in kernel.needs:
            used = set(re.findall(r"subgroup\w+\b|num_subgroups", kernel.text())) - {"subgroups"}
            assert used <= {"subgroupAdd", "subgroupMax", "subgroupBroadcastFirst", "subgroup_id", "num_subgroups"}
            assert "subgroupAdd" in used or "subgroupMax" in used
            assert all("subgroup" not in plain.text() for plain in every.every() if plain.name == kernel.name)


@pytest.mark.parametrize("name", ("gemma3",))
def test_training_and_generation_with_subgroups(tmp_path, monkeypatch, name):
    path, batch = tiny.write(tmp_path / "m.gguf", name), stream([17, 1, 22, 24])
    loss, want = gradients(trainee_of(path, "numpy"), batch)
    monkeypatch.setenv(variants.VARIABLE, "none")
    plain = trainee_of(path, "webgpu")
    before = gradients(plain, batch)
    monkeypatch.setenv(variants.VARIABLE, SUBGROUPS)
    made()
    trainee = trainee_of(path, "webgpu")
    found, got = gradients(trainee, batch)
    assert trainee.engine.tuning.variants == {variants.ROWS, variants.GEMV} and trainee.engine.commands.subgroups
    assert found == pytest.approx(loss, rel=1e-5) and np.linalg.norm(got - want) <= 1e-5 * np.linalg.norm(want)
    assert trainee.engine.identity() != plain.engine.identity() and not np.array_equal(got, before[1])
    assert np.isfinite(float(trainee.update(1e-3, 1)))
    feeds, adapter = [[[5, 6, 7], [9]], [[8], [4]], [[7], [7]]], trainee_of(path, "numpy").adapter()
    results = []
    for device in ("numpy", "webgpu"):
        decoder = load(path, device=device, threads=1).decoder(adapter=adapter, batch=2, context=30)
        results.append([decoder.feed(tokens) for tokens in feeds])
    for one, other in zip(*results):
        np.testing.assert_allclose(other, one, atol=2e-4, rtol=1e-4)


def counted(trainee, tokens):
    """Bytes that a step takes from the pool, by the engine's count."""
    from anytune.engine.webgpu.budget import Way
    from anytune.model.plan import _Counter
    from anytune.model.spec import LoraSpec

    shapes = {p.name: (p.out_features, p.in_features) for p in trainee.layout.pairs}
    counter = _Counter(trainee.model, LoraSpec(trainee.lora, shapes), tokens, tokens)
    counter.budget = trainee.engine.budget(trainee.model.weights, None)
    count = counter.budget.counter(Way(0.0, "blocks", trainee.engine.sizes, ""), tokens)
    counter._run(count, "blocks", trainee.config.layers)
    return count.bytes


@pytest.mark.parametrize("name", ("llama", "gemma3"))
def test_training_with_float16_operands(tmp_path, name):
    made(True)
    path, batch = tiny.write(tmp_path / "m.gguf", name), stream([17, 1, 22, 24], silent=0.0)
    loss, want = gradients(trainee_of(path, "numpy"), batch)
    trainee = trainee_of(path, "webgpu", "fp16")
    for _ in range(2):
        found, got = gradients(trainee, batch)
        assert found == pytest.approx(loss, rel=1e-3) and found != loss
        assert min(cosine for _, cosine in cosines(trainee, got, want)) >= 0.9999
    engine, held = trainee.engine, trainee.engine.recorder.pool.bytes
    assert held == pytest.approx(counted(trainee, 64), rel=0.02)  # the estimate knows what scales take
    assert engine.tuning.default.half and engine.identity()["dtype"] == "float16" and engine.tolerance == 2e-3


@pytest.mark.parametrize("name, type", (("qwen3", "Q8_0"), ("gemma3", "Q4_0")))
def test_generation_with_8_bit_activations(tmp_path, monkeypatch, name, type):
    """As llama.cpp rounds them on its CPU. The NumPy engine's logits up to that, whatever else is in use."""
    made(True)
    path, feeds, results = tiny.write(tmp_path / "m.gguf", name, type), [[[5, 6, 7]], [[8]], [[4]], [[7]]], []
    monkeypatch.setenv(variants.VARIABLE, ",".join(variants.NEEDS))
    adapter = trainee_of(path, "numpy").adapter()
    for device, dtype in (("numpy", "auto"), ("webgpu", "fp16"), ("webgpu", "fp16")):
        decoder = load(path, device=device, threads=1, dtype=dtype).decoder(adapter=adapter, batch=1, context=30)
        results.append(np.array([decoder.feed(tokens)[0] for tokens in feeds]))
        monkeypatch.setenv(
            variants.VARIABLE, ",".join([*variants.NEEDS][:3]) if len(results) == 2 else os.environ[variants.VARIABLE]
        )
    want, eight, half = results
    assert 1e-4 < answers.error(eight, want) < 3e-2 and answers.error(half, want) < 3e-3


def test_known_answers_of_operations_with_everything(monkeypatch):
    from anytune.engine.check import known_answers

    monkeypatch.setenv(variants.VARIABLE, ",".join(variants.NEEDS))
    engine = made(True)
    found = known_answers(engine, ("Q8_0", "Q4_0"))
    assert engine.tuning.variants == set(variants.NEEDS) and engine.tolerance == 1e-2
    assert all(a.ok for a in found) and max(a.error for a in found) > 1e-4


def test_8_bit_codes_show_what_is_not_finite():
    from anytune.engine.webgpu.kernels import gemv

    engine, x = made(), np.ones((1, 96), np.float32)
    x[0, 5], x[0, 70] = np.nan, np.inf
    codes, scales = engine.integers(np.zeros(24, np.int32)), engine.zeros(3)
    engine.commands.run(gemv.codes(), [engine.vector(x), codes, scales], (3, 24), (1, 1))
    got = engine.host(scales)
    assert np.isnan(got[0]) and got[1] == pytest.approx(1 / 127) and np.isinf(got[2])


def test_activations_and_gradients_beyond_float16(tmp_path):
    """Rows of 1e7 and of 1e-12 beside each other come out as exact as others do, and a NaN shows."""
    from anytune.engine import reference as ref
    from anytune.gguf import GGUF, write_gguf

    engine, random = made(True), np.random.default_rng(0)
    sizes = (10.0 ** np.array([0, 7, -12, 3])).astype(np.float32)[:, None]
    x, dy = (random.standard_normal((4, n)).astype(np.float32) * sizes for n in (96, 70))
    values = random.standard_normal((70, 96)).astype(np.float32)
    write_gguf(tmp_path / "w.gguf", {}, [("w", values.shape, "F32", values)])
    with GGUF.open(tmp_path / "w.gguf") as gguf:
        group = engine.group([engine.weight(gguf, "w")])
        xs, dys = (engine.gather(engine.vector(z), engine.integers(np.arange(4))) for z in (x, dy))
        y, dx = (engine.host(z) for z in (engine.linear(xs, group)[0], engine.linear_backward((dys,), xs, group)))
        assert answers.error(y, ref.linear(x, [(values, None, None)])[0]) < 2e-3
        assert answers.error(dx, dy.astype(np.float64) @ values) < 2e-3
        x[0, 5] = np.nan
        again = engine.host(engine.linear(engine.gather(engine.vector(x), engine.integers(np.arange(4))), group)[0])
        assert np.isnan(again[0]).all() and np.isfinite(again[1:]).all()


def test_swiftshader(tmp_path):
    driver = swiftshader()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "VK_DRIVER_FILES": str(driver),
        "VK_ICD_FILENAMES": str(driver),
        variants.VARIABLE: SUBGROUPS,
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=170, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert "SwiftShader" in facts["device"] and facts["features"] == ["subgroups"] and "no float16" in facts["refused"]
    assert facts["variants"] == "subgroup-gemv, subgroup-rows" and facts["tiles"] != "default"
    assert len(facts["found"]) == 3 and max(facts["found"]) < 2e-6


# ---- the race


@pytest.fixture
def hardware(monkeypatch, tmp_path):
    """A software device that says that it is none."""
    from anytune.engine.webgpu.device import Device

    made()
    monkeypatch.setattr(Device, "software", False)
    monkeypatch.setattr(tune, "MANY", 48)
    for name, value in (
        ("WIDTH", 128),
        ("TOKENS", (32, 64)),
        ("TILES", (Tile(),)),
        ("WORKGROUPS", (0,)),
        ("BUSY", 0.0),
        ("LASTS", 0.0),
    ):
        monkeypatch.setattr(autotune, name, value)
    monkeypatch.setenv("ANYTUNE_CACHE", str(tmp_path))
    return monkeypatch


def times(monkeypatch, fast=(), half=1.0):
    """Pretend that the variants in `fast` are, and that half tiles take `half` of the time."""
    real = autotune.Autotune.variant

    def variant(self, name):
        assert all(seconds > 0 for seconds in real(self, name))
        return 2e-3, 1e-3 if name in fast else 2e-3

    monkeypatch.setattr(autotune.Autotune, "variant", variant)
    monkeypatch.setattr(
        autotune.Autotune, "seconds", lambda self, products, tile, groups: 1e-3 * (half if tile.half else 1.0)
    )


@pytest.mark.parametrize("fast", ((), (variants.GEMV,), (variants.ROWS, variants.GEMV)))
def test_what_is_faster_is_taken_and_remembered(hardware, fast):
    times(hardware, fast)
    engine = made()
    engine.tuning.ensure()
    assert engine.tuning.variants == set(fast) and engine.commands.subgroups == (variants.ROWS in fast)
    hardware.setattr(tune.Tuning, "autotune_variants", lambda *_: pytest.fail("the file was not read"))
    again = made()
    again.tuning.ensure()
    assert again.tuning.variants == set(fast) and again.identity() == engine.identity()
    assert not any(tile.half for tile, _ in again.tuning.choices.values())


@pytest.mark.parametrize("fast", ((), (variants.DOT,), (variants.DOT, variants.GEMV)))
def test_8_bits_only_for_those_who_ask_for_fp16(hardware, fast):
    times(hardware, fast)
    engines = made(True), made(False)
    for engine in engines:
        engine.tuning.ensure()
    assert engines[0].tuning.variants == {variants.TILES, *fast}
    assert engines[1].tuning.variants == {*fast} - {variants.DOT}


@pytest.mark.parametrize("half, wins", ((0.5, True), (2.0, False)))
def test_half_tiles_race_the_others(hardware, half, wins):
    times(hardware, half=half)
    engine = made(True)
    engine.tuning.ensure()
    assert {tile.half for tile, _ in engine.tuning.choices.values()} == {wins}
    hardware.setenv(variants.VARIABLE, variants.TILES)
    forced = made(True)
    forced.tuning.ensure()
    assert {tile.half for tile, _ in forced.tuning.choices.values()} == {True}
    hardware.setenv(variants.VARIABLE, "-" + variants.TILES)
    with pytest.raises(UserError, match="--dtype fp16.*forbids"):
        engine_for("webgpu", dtype="fp16")


@pytest.mark.parametrize("error", (1e-3, float("nan")))
def test_what_computes_wrongly_is_never_taken(hardware, error):
    times(hardware, (variants.ROWS, variants.GEMV), 0.5)
    for name in variants.NEEDS:
        hardware.setitem(answers.ANSWERS, name, lambda e: error)
    engine = made(True)
    engine.tuning.ensure()
    assert not engine.tuning.variants and not engine.tuning.default.half and not engine.commands.subgroups
    assert not any(tile.half for tile, _ in engine.tuning.choices.values())
    hardware.setenv(variants.VARIABLE, variants.GEMV)
    with pytest.raises(UserError, match="subgroup-gemv, which computes wrongly"):
        made().tuning.ensure()


def test_a_wrong_kernel_fails_its_known_answer(monkeypatch):
    """Totals that lose a subgroup, a product that forgets its rows' scales."""
    from anytune.engine.webgpu.kernel import Kernel

    engine, right = made(True), Kernel._text
    for wrong, instead, variant in (
        ("i = 1u; i < sub_count", "i = 2u; i < sub_count", variants.ROWS),
        ("i = 1u; i < sub_count", "i = 2u; i < sub_count", variants.GEMV),
        ("1.0 / scales[", "0.5 / scales[", variants.TILES),
        ("- 0x08080808u", "- 0x08070808u", variants.DOT),
    ):
        monkeypatch.setattr(
            Kernel, "text", lambda self, writable=False, a=wrong, b=instead: right(self, writable).replace(a, b)
        )
        assert not answers.ANSWERS[variant](engine) <= variants.LIMIT


@pytest.mark.parametrize("variant", variants.NEEDS)
def test_no_nan_passes_for_a_known_answer(monkeypatch, variant):
    """Wherever among what is read back it is."""
    from anytune.engine.webgpu.engine import WebGpuEngine

    engine, right, reads = made(variant == variants.TILES), WebGpuEngine.host, []

    def host(self, x):
        got = right(self, x)
        reads.append(0)
        if len(reads) == bad:
            got.reshape(-1)[-1] = np.nan
        return got

    monkeypatch.setattr(WebGpuEngine, "host", host)
    bad = 0
    assert answers.ANSWERS[variant](engine) <= variants.LIMIT
    count = len(reads)
    for bad in range(1, count + 1):
        reads.clear()
        # codes are integers, four to a number: a NaN's are wrong ones
        assert not answers.ANSWERS[variant](engine) <= variants.LIMIT, bad


def test_software_devices_get_what_is_forced_only(monkeypatch):
    from anytune.engine.webgpu.device import Device

    monkeypatch.setattr(Device, "software", True)
    engine = made(True)
    engine.tuning.ensure()
    assert engine.tuning.variants == {variants.TILES} and engine.tuning.choices == {}


def test_what_the_environment_says(monkeypatch):
    assert variants.asked() == {}
    monkeypatch.setenv(variants.VARIABLE, "none")
    assert not any(variants.asked().values()) and variants.features_wanted() == set()
    assert engine_for("webgpu").device.features == frozenset()
    monkeypatch.setenv(variants.VARIABLE, "-subgroup-rows subgroup-gemv")
    assert variants.asked() == {variants.ROWS: False, variants.GEMV: True}
    monkeypatch.setenv(variants.VARIABLE, "warp")
    with pytest.raises(UserError, match="'warp'.*subgroup-rows"):
        made()


@pytest.mark.parametrize(
    "flags, said, words",
    [
        (["--dtype", "bf16"], "", "--dtype bf16 means nothing"),
        (["--tf32"], "", "--tf32 means nothing"),
        (["--dtype", "fp16"], "none", "computes no float16"),
        ([], variants.TILES, "--dtype fp16"),
        ([], "subgroups", "no variant is called 'subgroups'"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_sentence(tmp_path, monkeypatch, capsys, flags, said, words):
    from anytune.cli.main import run

    path = tiny.write(tmp_path / "m.gguf", "llama")
    monkeypatch.setenv(variants.VARIABLE, said)
    assert run(["generate", "-m", str(path), "-p", "a", "-n", "1", "--device", "webgpu", *flags]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_doctor_shows_features_and_what_is_in_use(monkeypatch):
    from anytune import doctor
    from anytune.engine.webgpu import detect, device

    monkeypatch.setattr(detect, "gpu_visible", lambda: True)
    monkeypatch.setattr(device, "available", lambda: [("webgpu", "a card (Vulkan)", False)])
    monkeypatch.setattr("anytune.engine.probe.gpu_visible", lambda: False)
    monkeypatch.setenv(variants.VARIABLE, variants.GEMV)
    (row,) = [d for d in doctor._devices() if d["device"] == "webgpu"]
    assert row["features"] == device.features("webgpu") and "subgroups" in row["features"]
    facts = doctor._engine("webgpu", 1)
    assert facts["ok"] and facts["variants"] == variants.GEMV
    text = doctor.report(
        {
            "anytune": "",
            "python": "",
            "system": "",
            "devices": [row],
            "packages": [],
            "blas": [],
            "ok": True,
            "threads": {"gflops": {}, "best": 1},
            "engines": [facts],
        }
    )
    assert "a card (Vulkan); has subgroups" in text and ", subgroup-gemv, " in text and "all good" in text
