"""rewrite(): what is named changes, everything else stays byte for byte."""

import threading

import numpy as np
import pytest

from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from anytune.gguf.encode import encode
from anytune.quantization import quantize
from anytune.quantization.rewrite import rewrite
from tests.support import tiny

NAME = "blk.1.ffn_down.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("rewrite") / "q.gguf", "qwen3", "Q8_0")
    with GGUF.open(path) as file:
        yield file


def test_nothing_changed_is_the_same_file(source, tmp_path):
    rewrite(source, tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == source.path.read_bytes()


@pytest.mark.parametrize("kind", [None, "Q4_0"])
def test_values_take_the_place_of_rows(source, tmp_path, kind):
    new = np.random.default_rng(1).standard_normal(source.tensors[NAME].shape).astype(np.float32)
    seen, lock = [], threading.Lock()

    def values(lo, hi):
        with lock:
            seen.append((lo, hi))
        return new[lo:hi]

    facts = rewrite(source, tmp_path / "new.gguf", kind, values={NAME: values}, threads=2)
    block = {t["name"]: t["to"] for t in facts["tensors"]}
    with GGUF.open(tmp_path / "new.gguf") as file:
        assert np.array_equal(file.blocks(NAME), encode(new, block[NAME]))
        for name in source.tensors:
            if name != NAME and (kind is None or "norm" in name):
                assert np.array_equal(file.blocks(name), source.blocks(name))
    ends = sorted(seen)
    assert ends[0][0] == 0 and ends[-1][1] == len(new) and all(a[1] == b[0] for a, b in zip(ends, ends[1:]))


def test_a_type_alone_is_what_quantize_does(source, tmp_path):
    rewrite(source, tmp_path / "a.gguf", "Q4_K_M", overrides=[("attn_v", "Q5_0")])
    quantize(source.path, tmp_path / "b.gguf", "Q4_K_M", overrides=[("attn_v", "Q5_0")], requantize=True)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_settled_tensors_change_only_to_what_is_smaller(source, tmp_path):
    settled = [name for name in source.tensors if "ffn_up" in name]
    rewrite(source, tmp_path / "finer.gguf", "F16", settled=settled)
    rewrite(source, tmp_path / "smaller.gguf", "Q4_0", settled=settled)
    with GGUF.open(tmp_path / "finer.gguf") as finer, GGUF.open(tmp_path / "smaller.gguf") as smaller:
        assert {finer.tensors[name].type.name for name in settled} == {"Q8_0"}
        assert all(np.array_equal(finer.blocks(name), source.blocks(name)) for name in settled)
        assert finer.tensors[NAME].type.name == "F16"
        assert {smaller.tensors[name].type.name for name in settled} == {"Q4_0"}


def test_metadata_is_changed_added_and_removed(source, tmp_path):
    rewrite(
        source,
        tmp_path / "m.gguf",
        overrides=[("ffn_up", "Q4_0")],
        metadata={
            "general.name": "another",
            "general.author": "me",
            "tokenizer.chat_template": None,
            "tokenizer.ggml.eos_token_id": 1,
        },
    )
    with GGUF.open(tmp_path / "m.gguf") as file:
        assert file.metadata["general.name"] == "another" and file.metadata["general.author"] == "me"
        assert "tokenizer.chat_template" not in file.metadata and file.metadata["tokenizer.ggml.eos_token_id"] == 1
        assert file.kinds["tokenizer.ggml.eos_token_id"] == source.kinds["tokenizer.ggml.eos_token_id"]
        assert {t.type.name for n, t in file.tensors.items() if "ffn_up" in n} == {"Q4_0"}


def test_values_that_fail_leave_nothing(source, tmp_path):
    bad = np.full(source.tensors[NAME].shape, np.nan, np.float32)
    with pytest.raises(UserError, match=r"blk\.1\.ffn_down"):
        rewrite(source, tmp_path / "new.gguf", "F32", values={NAME: lambda lo, hi: bad[lo:hi]})
    with pytest.raises(ValueError, match="came as"):
        rewrite(source, tmp_path / "new.gguf", values={NAME: lambda lo, hi: bad[:1, :1]})
    with pytest.raises(ValueError, match="no tensor"):
        rewrite(source, tmp_path / "new.gguf", values={"gone": lambda lo, hi: bad[lo:hi]})
    assert not list(tmp_path.iterdir())


def test_formats_that_cannot_be_written_anew(tmp_path):
    blocks = np.zeros((4, 66), np.uint8)
    write_gguf(
        tmp_path / "iq.gguf",
        {"general.architecture": "llama"},
        [
            ("blk.0.ffn_up.weight", (4, 256), "IQ2_XXS", blocks),
            ("blk.1.ffn_up.weight", (4, 256), "F32", np.ones((4, 256), np.float32)),
        ],
    )
    with GGUF.open(tmp_path / "iq.gguf") as file:
        ones = {"blk.0.ffn_up.weight": lambda lo, hi: np.ones((hi - lo, 256), np.float32)}
        with pytest.raises(UserError, match="IQ2_XXS, which cannot be written"):
            rewrite(file, tmp_path / "out.gguf", values=ones)
        rewrite(file, tmp_path / "out.gguf", values=ones, overrides=[("blk.0", "Q4_K")])
        rewrite(file, tmp_path / "kept.gguf", overrides=[("blk.1", "Q8_0")])
    with GGUF.open(tmp_path / "kept.gguf") as file:
        assert np.array_equal(file.blocks("blk.0.ffn_up.weight"), blocks)
