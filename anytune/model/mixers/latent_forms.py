"""Latent attention in files: its metadata, and what Hugging Face calls its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from anytune.engine.base import LatentHeads
from anytune.errors import UserError
from anytune.model.rope import RopeScaling

if TYPE_CHECKING:
    from anytune.model.config import Config

RANK, QUERY_RANK = "attention.kv_lora_rank", "attention.q_lora_rank"
KEY_LENGTH, VALUE_LENGTH = "attention.key_length", "attention.value_length"  # where _mla is used too, of the latent
KEYS, VALUES = f"{KEY_LENGTH}_mla", f"{VALUE_LENGTH}_mla"  # of each head
YARN = "rope.scaling.yarn_log_multiplier"
USED = (RANK, QUERY_RANK, KEYS, VALUES, YARN)
UNADAPTED = ("attn_q", "attn_q_a", "attn_q_b", "attn_kv_a_mqa")
MODULES = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_b": "self_attn.kv_b_proj",
    "attn_k_b": "self_attn.k_b_proj",
    "attn_v_b": "self_attn.v_b_proj",
}
NORMS = {"attn_q_a_norm": "self_attn.q_a_layernorm", "attn_kv_a_norm": "self_attn.kv_a_layernorm"}


def read(get: Callable, c: Config) -> dict[str, Any]:
    """Fields of the Config."""
    split = get(KEYS, 0) > 0
    keys, values = (get(KEYS), get(VALUES)) if split else (c.head_size, get(VALUE_LENGTH, c.head_size))
    shape = LatentHeads(c.heads, get(RANK), keys - c.rope_size, c.rope_size, values)
    if not (0 < shape.nope < 4096 and 0 < values <= 4096 and 0 < shape.rank <= 1 << 16):
        raise UserError(f"{get.where}: the widths of its heads or latents make no sense: the file is damaged")
    return {
        "head_size": shape.size,
        "n_kv_heads": c.heads,
        "latent": shape,
        "split_latent": split,
        "q_rank": 0 if "blk.0.attn_q.weight" in get.tensors else get(QUERY_RANK, 0),
        **_scaled(c.scaling, keys, float(get(YARN, 0.0, float))),
    }


def _scaled(s: RopeScaling, keys: int, log: float) -> dict[str, Any]:
    """The scale of scores, and how angles are stretched, as llama.cpp has them for keys of so many columns.

    log: what the file says, a tenth of config.json's mscale_all_dim.
    """
    yarn, stretch = s.kind == "yarn", math.log(s.factor) if s.kind != "none" else 0.0
    grown = (0.0 if log else max(stretch, 0.0)) if yarn else stretch
    magnitude = s.attention_factor * (1 + 0.1 * grown) * (1 + log * stretch)
    scaling = replace(s, log_factor=float(yarn and log != 0))
    return {"attention_scale": magnitude**2 / math.sqrt(keys), "scaling": scaling}


def config(c: Config) -> dict[str, Any]:
    """What config.json says."""
    s, rope = c.latent, {"rope_type": "default", "rope_theta": c.rope_base}
    if c.scaling.kind == "yarn":
        stretch = 10 * (math.sqrt(c.attention_scale * math.sqrt(s.keys)) - 1) / math.log(c.scaling.factor)
        rope |= {"mscale": stretch, "mscale_all_dim": stretch}
    return {
        "head_dim": s.rope,
        "kv_lora_rank": s.rank,
        "q_lora_rank": c.q_rank or None,
        "qk_nope_head_dim": s.nope,
        "qk_rope_head_dim": s.rope,
        "v_head_dim": s.value,
        "rope_parameters": rope,
    }


def metadata(number: Callable, config: Mapping) -> dict[str, Any]:
    """The file's keys of what config.json says."""
    rank, rope = number("kv_lora_rank", int), number("qk_rope_head_dim", int)
    found = {
        "attention.head_count_kv": 1,
        RANK: rank,
        QUERY_RANK: number("q_lora_rank", int) if config.get("q_lora_rank") else 0,
        KEY_LENGTH: rank + rope,
        VALUE_LENGTH: rank,
        KEYS: number("qk_nope_head_dim", int) + rope,
        VALUES: number("v_head_dim", int),
        "rope.dimension_count": rope,
    }
    if config.get("mscale_all_dim"):
        found[YARN] = 0.1 * float(config["mscale_all_dim"])
    return found
