"""The tensor types of each mix, against those that llama.cpp's tool chose (mixes.json)."""

import json
import re
from pathlib import Path

import pytest

from anytune.gguf.blocks import BLOCKS
from anytune.gguf.header import TensorInfo
from anytune.quantization import mix
from anytune.quantization.filetypes import FILE_TYPES, file_type
from tests.support import tiny

GOLDEN = json.loads((Path(__file__).parent / "mixes.json").read_text("utf-8"))["models"]


def tensors(model: dict) -> dict[str, TensorInfo]:
    """A model's matrices, as float32."""
    shape = tiny.Shape(
        "llama",
        model["layers"],
        model["width"],
        model["heads"],
        model["key_heads"],
        model["width"] // model["heads"],
        model["hidden"],
        model["tied"],
    )
    found = {}
    for name, (dims, _, _) in tiny.tensor_table(shape).items():
        if model["experts"] and "ffn_" in name and "norm" not in name:
            name, dims = name.replace(".weight", "_exps.weight"), (model["experts"], *dims)
        found[name] = TensorInfo(name, dims, BLOCKS["F32"], 0, 0)
    return found


def layers(text: str) -> set[int]:
    """'0-2,7' -> {0, 1, 2, 7}; '-1' is a tensor outside the layers."""
    if text == "-1":
        return {-1}
    parts = [part.split("-") for part in text.split(",")]
    return {layer for part in parts for layer in range(int(part[0]), int(part[-1]) + 1)}


@pytest.mark.parametrize("model", GOLDEN, ids=lambda m: f"{m['layers']} layers")
def test_mixes_are_llama_cpps(model):
    infos = tensors(model)
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": model["layers"],
        "llama.attention.head_count": model["heads"],
        "llama.attention.head_count_kv": model["key_heads"],
        "llama.expert_count": model["experts"],
    }
    facts = mix.facts(metadata, infos, model["importance"])
    assert len(model["differ"]) > 20
    for kind, differ in model["differ"].items():
        for name, block in mix.choose(infos, file_type(kind), facts).items():
            found = re.match(r"blk\.(\d+)\.(.*)\.weight", name)
            part, layer = (found[2], int(found[1])) if found else (name.removesuffix(".weight"), -1)
            blocks = differ.get(part, {})
            want = next((b for b, which in blocks.items() if layer in layers(which)), FILE_TYPES[kind].block)
            assert block == want, (kind, name)


def test_only_matrices_are_quantized():
    assert mix.may_quantize("blk.0.ffn_up.weight", (8, 4))
    assert mix.may_quantize("blk.0.ffn_up_exps.weight", (2, 8, 4))
    for name, shape in (
        ("blk.0.attn_norm.weight", (4,)),
        ("blk.0.attn_q.bias", (4, 4)),
        ("blk.0.x.weight", (1, 4)),
        ("blk.0.ffn_gate_inp.weight", (8, 4)),
        ("rope_freqs.weight", (32,)),
    ):
        assert not mix.may_quantize(name, shape), name
