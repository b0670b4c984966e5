"""A gated delta net in files: its metadata, and what Hugging Face calls and orders otherwise.

The converter puts value heads that share a key head apart (the first of each, then the second of each), so that key
heads can be repeated as a whole; Hugging Face has them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from anytune.engine.base import DeltaHeads
from anytune.errors import UserError
from anytune.model.architecture import Order, Orders, Other

if TYPE_CHECKING:
    from anytune.model.config import Config

SIZE = "ssm.state_size"
KEYS = ("ssm.conv_kernel", "ssm.inner_size", SIZE, "ssm.time_step_rank", "ssm.group_count", "full_attention_interval")
LISTED = "attention.recurrent_layers"
CONSTANTS = ("ssm_conv1d",)
MODULES = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_out": "linear_attn.out_proj",
}
OTHERS = {
    "ssm_a": Other("linear_attn.A_log", lambda x: np.log(-x), lambda x: -np.exp(x)),
    "ssm_dt.bias": Other("linear_attn.dt_bias"),
    "ssm_conv1d.weight": Other("linear_attn.conv1d.weight", shape=lambda shape: (shape[0], 1, shape[1])),
}


def _values(size: str | None = None, behind_keys: bool = False) -> Order:
    """Rows that belong to value heads, as many each as the key `size` says (None: one)."""

    def order(shape: tuple[int, ...], get: Callable) -> Orders:
        keys, values, each = get("ssm.group_count"), get("ssm.time_step_rank"), get(size) if size else 1
        first = 2 * keys * each if behind_keys else 0
        heads = np.arange(values * each).reshape(values // keys, keys, each).swapaxes(0, 1).reshape(-1)
        return np.concatenate([np.arange(first), first + heads]), None

    return order


def _columns(shape: tuple[int, ...], get: Callable) -> Orders:
    return None, _values(SIZE)(shape, get)[0]


REORDERED = {
    "attn_qkv": _values(SIZE, True),
    "attn_gate": _values(SIZE),
    "ssm_conv1d": _values(SIZE, True),
    "ssm_out": _columns,
    **dict.fromkeys(("ssm_beta", "ssm_alpha", "ssm_a", "ssm_dt"), _values()),
}


def read(get: Callable, c: Config, layers: int) -> dict:
    """Fields of the Config. Each layer but every n-th is a delta net, unless the file lists them."""
    keys, values, size = get("ssm.group_count"), get("ssm.time_step_rank"), get(SIZE)
    period, kernel = get("full_attention_interval", 4), get("ssm.conv_kernel")
    if not 0 < keys <= values or values % keys or get("ssm.inner_size") != values * size or not period or kernel < 2:
        raise UserError(
            f"{values} value heads of {size} over {keys} key heads, of every {period} layers, are invalid: the file "
            "is damaged"
        )
    listed = get.each(LISTED, c.layers, bool)
    recurrent = tuple((i + 1) % period != 0 for i in range(layers)) if listed is None else listed[:layers]
    return {"kernel": kernel, "recurrent": recurrent, "delta": DeltaHeads(keys, values, size, size, c.eps)}


def config(c: Config) -> dict:
    """What config.json says."""
    h = c.delta
    return {
        "layer_types": ["linear_attention" if state else "full_attention" for state in c.recurrent],
        "linear_conv_kernel_dim": c.kernel,
        "linear_num_key_heads": h.keys,
        "linear_num_value_heads": h.values,
        "linear_key_head_dim": h.key_size,
        "linear_value_head_dim": h.value_size,
    }


def metadata(number: Callable, config: Mapping) -> dict:
    """The file's keys of what config.json says."""
    size, values = number("linear_value_head_dim", int), number("linear_num_value_heads", int)
    kinds = config.get("layer_types") or []
    period = kinds.index("full_attention") + 1 if "full_attention" in kinds else 4
    if kinds != ["linear_attention" if (i + 1) % period else "full_attention" for i in range(len(kinds))]:
        raise UserError("config.json has layer_types in an order that llama.cpp cannot express.")
    return {
        "ssm.conv_kernel": number("linear_conv_kernel_dim", int, 4),
        SIZE: size,
        "ssm.group_count": number("linear_num_key_heads", int),
        "ssm.time_step_rank": values,
        "ssm.inner_size": values * size,
        "full_attention_interval": period,
    }
