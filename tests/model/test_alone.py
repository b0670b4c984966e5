"""Layers that read keys and values of others train adapters; what takes layers by themselves is refused."""

import numpy as np
import pytest

from anytune.adapt.walk import Batch, Side
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from anytune.model import Full, Lora, load
from anytune.quantization.search.curvature import curvature

IDS = np.random.default_rng(4).integers(5, 300, 20)


def test_what_takes_a_layer_by_itself_is_refused(tiny_model):
    model, nothing = tiny_model("gemma4"), np.zeros(0, np.int32)
    with pytest.raises(UserError, match="without --full"):
        model.full_trainee(Full(), ubatch=40)
    with pytest.raises(UserError, match="anytune train"):
        Side(model, [Batch(IDS.astype(np.int32), np.array([0, 20], np.int32), nothing, nothing, nothing)])
    with pytest.raises(UserError, match="Q4_K_M"):
        curvature(model, [IDS.tolist()], {})


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
