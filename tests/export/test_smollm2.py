"""A real model once: four bits lose a small change, eight hold it, and llama.cpp computes with the merged file."""

import json

import numpy as np

from anytune.adapter.adapter import Adapter
from anytune.cli.main import run as command
from anytune.gguf import GGUF
from anytune.llamacpp.judge import llamacpp_logprobs
from tests.support import models
from tests.support.distributions import kl
from tests.support.require import need

IDS = list(range(1000, 1040))


def test_eight_bits_hold_what_four_lose(tmp_path, capsys):
    need("xllamacpp")
    base, rng, tensors = models.smollm2(), np.random.default_rng(0), {}
    with GGUF.open(base) as file:
        for layer in range(0, 30, 3):
            for part in ("attn_q", "attn_k", "ffn_down"):
                name = f"blk.{layer}.{part}.weight"
                out, width = file.tensors[name].shape
                pair = rng.standard_normal((4, width)) / width**0.5, 0.15 * rng.standard_normal((out, 4))
                tensors[name] = tuple(part.astype(np.float32) for part in pair)
    Adapter(tensors, 4, 4.0).save(tmp_path / "a.gguf")
    assert (
        command(
            [
                "export",
                "merge",
                "-m",
                str(base),
                "--lora",
                str(tmp_path / "a.gguf"),
                "--json",
                "-t",
                "2",
                "-o",
                str(tmp_path / "m.gguf"),
                "--candidates",
                "same,Q8_0",
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    four, eight = told["types"]
    assert (four["type"], eight["type"], told["taken"]["type"]) == ("same", "Q8_0", "Q8_0")
    assert four["kept"] < 0.7 and eight["kept"] > 0.97
    assert eight["kl"] < 0.05 * told["adapter_kl"] < four["kl"]
    assert told["checks"][0]["ok"]
    with GGUF.open(base) as before, GGUF.open(tmp_path / "m.gguf") as after:
        for name, t in before.tensors.items():
            changed = name in tensors
            assert after.tensors[name].type.name == ("Q8_0" if changed else t.type.name)
            assert changed or np.array_equal(after.blocks(name), before.blocks(name))
    apart, merged, alone = (
        llamacpp_logprobs(path, [IDS], vocab=49152, adapter=lora, threads=2)[0]
        for path, lora in ((base, tmp_path / "a.gguf"), (tmp_path / "m.gguf", None), (base, None))
    )
    assert kl(apart, merged).mean() < 0.5 * kl(apart, alone).mean()  # llama.cpp rounds activations
