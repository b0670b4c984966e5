"""Keys and tensors of a model's file: llama.cpp computes the same from it, or it is refused by the key's name."""

from dataclasses import replace

import numpy as np
import pytest

import anytune
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from anytune.llamacpp.judge import llamacpp_logprobs
from anytune.model.architectures import deepseek2
from anytune.model.config import ARCHITECTURES, read_config
from anytune.model.reader import Reader
from anytune.model.keys import _UNREAD, CHECKED, USED
from tests.support import tiny
from tests.support.distributions import kl
from tests.support.require import need

IDS = np.random.default_rng(6).integers(5, 300, 40).tolist()
READ_BY_ALL = {"rope.scaling.finetuned": True, "rope.scaling.alpha": 2.0, "pooling_type": 1, "embedding_length_out": 32}


def varied(path, name, keys=None, drop=(), tensors=None, rows=None):
    """The tiny model `name` with other metadata, further tensors, or a shorter vocabulary's matrices."""
    base = tiny.write(path.with_suffix(".base"), name)
    with GGUF.open(base) as gguf:
        start = f"{gguf.metadata['general.architecture']}."
        meta = {key: value for key, value in gguf.metadata.items() if key.removeprefix(start) not in drop}
        meta |= {start + key: value for key, value in (keys or {}).items()}
        arrays = {t.name: gguf.float32(t.name) for t in gguf.tensors.values()} | (tensors or {})
        if rows:
            arrays |= {n: arrays[n][:rows] for n in ("token_embd.weight", "output.weight") if n in arrays}
        write_gguf(
            path,
            meta,
            [(n, a.shape, "F32", np.ascontiguousarray(a, np.float32)) for n, a in arrays.items()],
            kinds={key: kind for key, kind in gguf.kinds.items() if key in meta},
        )
    return path


def distance(path) -> float:
    """The largest KL of a position, from llama.cpp's to ours."""
    need("xllamacpp")
    mine = anytune.load(path, device="numpy", threads=1).logits(IDS)
    return float(kl(llamacpp_logprobs(path, [IDS], vocab=320, threads=1)[0], mine).max())


ROPES = {
    "no type, a factor": ("llama", {"rope.scaling.factor": 4.0}, ()),
    "none, a factor": ("llama", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, ()),
    "the old factor": ("qwen2", {"rope.scale_linear": 2.0}, ()),
    "none, the old factor": ("qwen2", {"rope.scale_linear": 2.0, "rope.scaling.type": "none"}, ()),
    "both factors": ("qwen3", {"rope.scale_linear": 2.0, "rope.scaling.factor": 4.0}, ()),
    "a factor of 0": ("llama-yarn", {"rope.scaling.factor": 0.0, "rope.scaling.attn_factor": 1.5}, ()),
    "yarn below 1": ("llama-yarn", {"rope.scaling.factor": 0.5}, ()),
    "yarn, its magnitude": ("llama-yarn", {"rope.scaling.attn_factor": 0.7}, ()),
    "magnitude alone": ("qwen3", {"rope.scaling.attn_factor": 1.4}, ()),
    "latents, magnitude": ("deepseek3", {"rope.scaling.attn_factor": 1.2}, ()),
    "latents, another logarithm": ("deepseek3", {"rope.scaling.yarn_log_multiplier": 0.07}, ()),
    "latents, no logarithm": ("deepseek3", {}, ("rope.scaling.yarn_log_multiplier",)),
    "latents, yarn below 1": ("deepseek3", {"rope.scaling.factor": 0.5}, ()),
    "latents, linear": ("deepseek2-old", {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, ()),
    "no base": ("llama", {}, ("rope.freq_base",)),
    "gemma3, magnitude": ("gemma3", {"rope.scaling.attn_factor": 2.0}, ()),
    "gemma3, local base": ("gemma3", {"rope.freq_base_swa": 500.0}, ()),
    "gemma3, yarn": (
        "gemma3-linear",
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64},
        (),
    ),
    "gemma3, all windows": ("gemma3", {"attention.sliding_window_pattern": 0}, ()),
    "gemma3, every third": ("gemma3", {"attention.sliding_window_pattern": 3}, ()),
    "gemma3, no window": ("gemma3", {"rope.freq_base_swa": 500.0}, ("attention.sliding_window",)),
    "gemma3, no cap": ("gemma3", {"final_logit_softcapping": 0.0}, ()),
}


@pytest.mark.parametrize("case", ROPES)
def test_keys_that_change_the_graph_are_used(tmp_path, case):
    name, keys, drop = ROPES[case]
    assert distance(varied(tmp_path / "v.gguf", name, keys, drop)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_keys_that_llamacpp_does_not_read_change_nothing(tmp_path, name):
    """All of them at once, with values that would change what they are for."""
    arch = ARCHITECTURES[name]
    unread = {key: 7 for key in _UNREAD if key not in READ_BY_ALL and key not in arch.keys and key not in arch.zero}
    assert len(unread) > 70
    assert distance(varied(tmp_path / "v.gguf", name, unread | READ_BY_ALL | {"vision.block_count": 3})) < 1e-5


WRONG = {
    "attention.causal": False,
    "expert_count": 2,
    "attention.key_length_swa": 64,
    "rope.dimension_count_swa": 8,
    "nextn_predict_layers": 1,
}


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3", "gemma3"])
def test_keys_that_would_change_the_graph_are_refused_by_name(tmp_path, name):
    arch = ARCHITECTURES[name]
    wrong = {
        **{key: WRONG.get(key, 3) for key in CHECKED},
        **dict.fromkeys(arch.zero, 5.0),
        "key_of_tomorrow": 1,
        "rope.local.freq_base": 500.0,
    }
    for key, value in wrong.items():
        for bad in (value, [value, value]):
            with pytest.raises(UserError, match=key):
                anytune.load(varied(tmp_path / "v.gguf", name, {key: bad}), device="numpy", threads=1)
    usual = {
        "attention.causal": True,
        "expert_count": 0,
        "attention.key_length_swa": 16 if name == "qwen2" else 32,
        "key_of_tomorrow": 0,
    }
    anytune.load(varied(tmp_path / "v.gguf", name, usual), device="numpy", threads=1)


def test_no_key_is_in_two_tables():
    assert not USED & set(CHECKED) and not USED & _UNREAD and not set(CHECKED) & _UNREAD
    for arch in ARCHITECTURES.values():
        assert not set(arch.keys) & USED and not set(arch.zero) & (USED | set(arch.keys))


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("blk.0.attn_q.scale", (1,)),
        ("blk.1.ffn_down.input_scale", (1,)),
        ("output.scale", (1,)),
        ("cls.output.weight", (2, 64)),
        ("dense_2.weight", (64, 64)),
        ("blk.0.attn_norm.bias", (64,)),
        ("blk.2.attn_q.weight", (128, 64)),
        ("v.patch_embd.weight", (4, 4)),
        ("blk.0.attn_q.bias", (3,)),
        ("output.bias", (319,)),
        ("blk.1.ffn_up.bias", (96, 1)),
    ],
)
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_tensors_that_are_not_used_are_refused_by_name(tmp_path, name, tensor, shape):
    path = varied(tmp_path / "v.gguf", name, tensors={tensor: np.full(shape, -1.7, np.float32)})
    with pytest.raises(UserError, match=tensor):
        anytune.load(path, device="numpy", threads=1)


@pytest.mark.parametrize("name", ["llama", "qwen2"])
@pytest.mark.parametrize(("half", "other"), [("q", "k"), ("k", "q")])
def test_half_of_a_pair_of_norms_names_the_other(tmp_path, name, half, other):
    path = varied(tmp_path / "v.gguf", name, tensors={f"blk.{i}.attn_{half}_norm.weight": np.ones(32) for i in (0, 1)})
    with pytest.raises(UserError, match=rf"lacks the tensor blk.0.attn_{other}_norm.weight"):
        anytune.load(path, device="numpy", threads=1)


@pytest.mark.parametrize(
    ("name", "bias", "size"),
    [
        ("llama", "output", 320),
        ("qwen2", "blk.0.attn_output", 64),
        ("qwen3", "blk.0.ffn_up", 96),
        ("gemma3", "output", 320),
    ],
)
def test_biases_that_llamacpp_does_not_read_are_refused(tmp_path, name, bias, size):
    path = varied(tmp_path / "v.gguf", name, tensors={f"{bias}.bias": np.ones(size, np.float32)})
    with pytest.raises(UserError, match=rf"has the tensor {bias}.bias"):
        anytune.load(path, device="numpy", threads=1)


def test_a_llama_that_rotates_a_part_of_its_heads_is_refused(tmp_path):
    path = varied(tmp_path / "v.gguf", "llama", {"rope.dimension_count": 8})
    with pytest.raises(UserError, match="llama.cpp would not load this file"):
        anytune.load(path, device="numpy", threads=1)


def test_biases_are_llamacpps(tmp_path):
    rng = np.random.default_rng(1)
    sizes = {"attn_q": 128, "attn_k": 64, "attn_v": 64, "attn_output": 64, "ffn_gate": 96, "ffn_up": 96, "ffn_down": 64}
    biases = {f"blk.{i}.{name}.bias": 0.3 * rng.standard_normal(n) for i in (0, 1) for name, n in sizes.items()}
    assert distance(varied(tmp_path / "v.gguf", "llama", tensors=biases)) < 1e-5


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_more_tokens_than_rows_is_a_sentence(tmp_path, name):
    with pytest.raises(UserError, match="320 tokens and 300 rows in token_embd.weight"):
        anytune.load(varied(tmp_path / "v.gguf", name, rows=300), device="numpy", threads=1)


DAMAGED = [
    {"rope.dimension_count": 48},
    {"attention.kv_lora_rank": 0},
    {"attention.kv_lora_rank": 64},
    {"attention.kv_lora_rank": 1 << 31},
    {"attention.value_length_mla": 0},
    {"attention.value_length_mla": 1 << 20},
    {"attention.q_lora_rank": 0},
    {"expert_group_count": 3},
    {"expert_group_count": 8},
    {"expert_group_used_count": 5},
    {"expert_group_used_count": 1, "expert_used_count": 3},
    {"attention.temperature_scale": 0.1},
]


@pytest.mark.parametrize("keys", DAMAGED, ids=lambda keys: "-".join(f"{k}={v}" for k, v in keys.items()))
def test_latents_and_groups_that_make_no_sense_are_refused(tmp_path, keys):
    with pytest.raises(UserError):
        anytune.load(varied(tmp_path / "v.gguf", "deepseek3", keys), device="numpy", threads=1)


def test_first_files_of_flash_choose_by_sigmoids(tmp_path):
    """They do not say so: llama.cpp knows them by their layers and tokens."""
    path = varied(tmp_path / "v.gguf", "deepseek2", drop=("expert_gating_func",))
    with GGUF.open(path) as gguf:
        config = read_config(gguf)
        assert config.router.kind == "softmax"
        flash = replace(config, vocabulary=deepseek2.FLASH, layers=47)
        assert deepseek2.read(Reader(gguf, "deepseek2"), flash)["router"].kind == "sigmoid"
