"""Layers that read keys and values of others."""

import numpy as np

from anytune.gguf import GGUF, write_gguf
from anytune.model import Lora, load

IDS = np.random.default_rng(4).integers(5, 300, 20)


def test_keys_that_nobody_reads_are_left_out(tiny_model, tmp_path):
    """Files may have keys and values of layers that read another's: llama.cpp does not use them."""
    model = tiny_model("gemma4")
    with GGUF.open(model.gguf.path) as file:
        tensors = [(name, t.shape, "F32", file.float32(name).reshape(t.shape)) for name, t in file.tensors.items()]
        more = {"blk.4.attn_k.weight": (16, 64), "blk.4.attn_v.weight": (16, 64), "blk.4.attn_k_norm.weight": (16,)}
        tensors += [(name, shape, "F32", np.ones(shape, np.float32)) for name, shape in more.items()]
        write_gguf(tmp_path / "more.gguf", file.metadata, tensors, kinds=file.kinds)
    other = load(tmp_path / "more.gguf", device="numpy", threads=1)
    np.testing.assert_array_equal(other.logits(IDS), model.logits(IDS))
    assert other.trainee(Lora(rank=2), ubatch=20).names == model.trainee(Lora(rank=2), ubatch=20).names
