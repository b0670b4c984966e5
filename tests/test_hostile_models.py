"""A model whose metadata lies: each value in turn is missing, of another type, or senseless.

CVE-2024-8063 was of this kind (a block_count of a crafted type, and a division by zero). Loading and one
forward pass must either work or end in a UserError.
"""

import math

import numpy as np
import pytest

import anytune
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from tests.support import tiny

MISSING = object()
LIES = [
    MISSING,
    0,
    -1,
    1,
    2**31,
    2**63,
    "x",
    0.0,
    math.nan,
    math.inf,
    -1.5,
    True,
    np.array([1, 2], np.int32),
    ["a", "b"],
    np.zeros(0, np.float32),
]


@pytest.mark.parametrize(
    "metadata, message",
    [
        ({"general.type": "imatrix"}, "not a model, but imatrix"),
        ({"general.type": "adapter", "general.architecture": "llama"}, "an adapter, not a model"),
        ({"general.architecture": "gpt2"}, "architecture 'gpt2', which anytune cannot run yet"),
    ],
)
def test_a_file_of_something_else_is_named(metadata, message, tmp_path):
    write_gguf(tmp_path / "m.gguf", metadata, [("a", (1,), "F32", np.zeros(1, np.float32))])
    with pytest.raises(UserError, match=message):
        anytune.load(tmp_path / "m.gguf", device="numpy", threads=1)


@pytest.mark.parametrize("name", ["llama-yarn", "gemma3"])
def test_senseless_metadata_ends_in_a_sentence(name, tmp_path):
    path = tiny.write(tmp_path / "good.gguf", name)
    with GGUF.open(path) as gguf:
        metadata, kinds = dict(gguf.metadata), dict(gguf.kinds)
        tensors = [(t.name, t.shape, t.type.name, gguf.blocks(t.name)) for t in gguf.tensors.values()]
    refused = worked = 0
    for key in metadata:
        for lie in LIES:
            changed = {k: v for k, v in metadata.items() if k != key} | ({} if lie is MISSING else {key: lie})
            write_gguf(tmp_path / "bad.gguf", changed, tensors, {k: v for k, v in kinds.items() if k != key})
            try:
                model = anytune.load(tmp_path / "bad.gguf", device="numpy", threads=1)
                ids = model.tokenize("hello")[:8]
                logits = model.logits(ids)
                assert logits.shape == (len(ids), model.config.vocabulary)
                worked += 1
            except UserError as error:
                assert "\n" not in str(error)
                refused += 1
            except Exception as error:
                raise AssertionError(f"{key} = {lie!r}: {error!r}") from error
    assert refused > 50 and worked > 50
