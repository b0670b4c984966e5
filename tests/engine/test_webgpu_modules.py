"""Kernels as modules: checked ones compute what trusted ones do, all keep to WebGPU's default limits, and the second
software device, a stricter one, gives the same answers."""

import re

import numpy as np
import pytest

from anytune.engine.webgpu.kernels.every import every, write
from tests.engine.test_torch_engine import gradients, trainee_of
from tests.model.conftest import stream
from tests.support import tiny
from tests.support.webgpu import need_webgpu, on_swiftshader

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from anytune.engine.check import known_answers
from anytune.engine.devices import engine_for
from tests.engine.test_torch_engine import gradients, trainee_of
from tests.model.conftest import stream
engine = engine_for("webgpu")
answers = known_answers(engine, ("F32", "Q4_0"))
made = [gradients(trainee_of(Path(path), "webgpu"), stream([17, 1, 22, 24])) for path in sys.argv[2:]]
np.savez(sys.argv[1], *[found for _, found in made])
losses, worst = [loss for loss, _ in made], float(np.max([a.error for a in answers]))
print(json.dumps({"device": engine.device.name, "answers": len(answers), "worst": worst, "losses": losses}))
"""


def shared_bytes(text):
    """Workgroup memory of a module: its declarations are arrays of constants."""
    sizes = {"f32": 4, "u32": 4, "vec4<f32>": 16, "vec2<u32>": 8, "vec4<u32>": 16}
    found = re.findall(r"var<workgroup> \w+: (?:array<([^;]+), (\d+)>|(vec[24]<u32>));", text)
    assert len(found) == text.count("var<workgroup>")
    return sum(sizes[kind] * int(count) if kind else sizes[one] for kind, count, one in found)


def test_kernels_keep_to_the_default_limits():
    from anytune.engine.webgpu.device import WORDS

    seen = set()
    for kernel in every():
        assert len(kernel.arrays) <= 8, kernel.name
        assert kernel.size[0] * kernel.size[1] <= 256 and len(kernel.numbers) <= WORDS, kernel.name
        assert shared_bytes(kernel.text()) <= 16384, kernel.name
        seen.add(kernel.name)
    assert len(seen) > 100


def test_kernels_can_be_read(tmp_path):
    count = write(tmp_path / "wgsl")
    files = list((tmp_path / "wgsl").glob("*.wgsl"))
    assert len(files) == count and all("@compute" in f.read_text("utf-8") for f in files)


def test_kernels_compile_with_all_checks():
    """Also those that no other test's shapes need; naga validates each."""
    need_webgpu()
    from anytune.engine.webgpu.adapters import open_device

    device = open_device(trusted=False)
    for kernel in every():
        device._module(kernel.text())
        device._module(kernel.text(all_writable=True))


@pytest.mark.parametrize("name", ["qwen3", "gpt-oss"])
def test_checked_and_trusted_modules_agree(tmp_path, monkeypatch, name):
    need_webgpu()
    path, found = tiny.write(tmp_path / "m.gguf", name), []
    for checked in ("", "1"):
        monkeypatch.setenv("ANYTUNE_WEBGPU_CHECKED", checked)
        trainee = trainee_of(path, "webgpu")
        assert trainee.engine.device.trusted == (not checked)
        found.append(gradients(trainee, stream([17, 1, 22])))
    if trainee.engine.device.software:
        assert found[0][0] == found[1][0]
        np.testing.assert_array_equal(found[0][1], found[1][1])
    else:  # a GPU's compiler contracts other products and sums where there are checks between them
        assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
        assert np.linalg.norm(found[0][1] - found[1][1]) <= 1e-6 * np.linalg.norm(found[1][1])


def test_swiftshader_gives_the_same_answers(tmp_path):
    near = {"qwen3": 1e-5, "qwen35": 1e-4, "lfm2": 1e-5, "gpt-oss": 1e-5}
    paths = [tiny.write(tmp_path / f"{name}.gguf", name) for name in near]
    wanted = [gradients(trainee_of(path, "numpy"), stream([17, 1, 22, 24])) for path in paths]
    facts = on_swiftshader(SCRIPT, tmp_path / "g.npz", *paths)
    found = np.load(tmp_path / "g.npz").values()
    assert facts["answers"] > 40 and facts["worst"] < 1e-5
    for most, loss, got, (exact, want) in zip(near.values(), facts["losses"], found, wanted):
        assert loss == pytest.approx(exact, rel=1e-5)
        assert np.linalg.norm(got - want) <= most * np.linalg.norm(want)


def test_more_rows_with_loss_never_take_fewer_rows_of_logits():
    """The estimate is made for the most rows that a stream can have, and must be enough for any."""
    from anytune.engine.webgpu.kernels.gemm import Tile
    from anytune.engine.webgpu.loss import chunk_rows
    from anytune.engine.webgpu.sizes import LEAN, Sizes

    for tile in (Tile(), Tile(128, 64, 16, 8, 4)):

        def tiling(forward, m, n, k, tile=tile):
            return tile, 1, k

        for sizes in (Sizes(), LEAN):
            for vocabulary in (320, 49_152, 262_144):
                steps = [chunk_rows(sizes, tiling, rows, vocabulary, 64) for rows in range(1, 3000)]
                assert steps == sorted(steps) and all(0 < step <= rows for rows, step in enumerate(steps, 1))
                assert all(step <= 16 or step * vocabulary <= sizes.logits for step in steps)
                assert steps[127] == min(max(64, tile.m), max(16, sizes.logits // vocabulary // 16 * 16))
