"""An adapter of experts goes into their matrices."""

import numpy as np

import anytune
from anytune.export.adapters import merged_rows
from anytune.model import Lora
from tests.support import tiny


def test_rows_of_experts_take_their_pairs(tmp_path):
    model = anytune.load(tiny.write(tmp_path / "m.gguf", "qwen3moe"), device="numpy", threads=1)
    adapter = model.trainee(Lora(rank=2, modules="ffn_gate_exps,ffn_down_exps"), ubatch=8).adapter()
    random = np.random.default_rng(0)
    for _, b in adapter.tensors.values():
        b[...] = random.standard_normal(b.shape)
    for name, rows in merged_rows(model.gguf, adapter).items():
        a, b = adapter.tensors[name]
        want = (model.gguf.float32(name) + adapter.scale * b @ a).reshape(-1, a.shape[-1])
        cuts = [0, 1, *sorted(random.integers(2, len(want), 4).tolist()), len(want)]
        got = [rows(lo, hi) for lo, hi in zip(cuts, cuts[1:]) if hi > lo]
        np.testing.assert_allclose(np.concatenate(got), want, rtol=1e-5, atol=1e-5)
