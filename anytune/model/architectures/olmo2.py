"""OLMo 2 and 3: norms behind each part, none before it, and norms of all queries and of all keys together.

OLMo 3 is OLMo 2 with windows: three of four layers, which turn by the base alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from anytune.model.architecture import LAYER_TYPES, NORMS, PATTERN, WINDOW, Architecture, layer_types
from anytune.model.rope import Rope

if TYPE_CHECKING:
    from anytune.model.config import Config


def read(get: Callable, c: Config) -> dict:
    return {"local": Rope(c.rope_size, c.local.base)} if c.local else {}


def config(c: Config) -> dict:
    if not c.window:
        return {}
    return {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "sliding_window": c.window,
        "layer_types": layer_types(c),
    }


def metadata(number: Callable, config: Mapping) -> dict[str, Any]:
    kinds = config.get("layer_types")
    if not kinds:
        return {}
    return {WINDOW: number("sliding_window", int), PATTERN: [LAYER_TYPES[0] == kind for kind in kinds]}


OLMO2 = Architecture(
    "olmo2",
    neox=True,
    wide_norms=True,
    pre_norms=False,
    post_norms=True,
    window_period=4,
    biases=(),
    read=read,
    keys=(WINDOW, PATTERN, "rope.freq_base_swa"),
    kind="olmo2",
    model_class="Olmo2ForCausalLM",
    other_classes=("Olmo3ForCausalLM",),
    norms={name: module for name, module in NORMS.items() if name not in ("attn_norm", "ffn_norm")}
    | {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"},
    config=config,
    metadata=metadata,
)
