"""GLM 4.5 Air: experts chosen by sigmoids with a bias for the choice, one expert for all tokens, dense
layers first. (The larger models' norms of heads are not computed.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from anytune.errors import UserError
from anytune.model.architecture import MODULES, NORMS, Architecture

if TYPE_CHECKING:
    from anytune.model.config import Config


def read(get: Callable, c: Config) -> dict:
    behind = get("nextn_predict_layers", 0)
    if behind >= c.layers:
        raise UserError(f"glm4moe.nextn_predict_layers is {behind}, of {c.layers} blocks: the file is damaged")
    return {"layers": c.layers - behind, "behind": behind}


GLM4MOE = Architecture(
    "glm4moe",
    neox=True,
    experts="all",
    gating="sigmoid",
    normalized=False,
    choice_bias=True,
    ffn_norm="post_attention_norm",
    read=read,
    keys=("nextn_predict_layers",),
    kind="glm4_moe",
    model_class="Glm4MoeForCausalLM",
    # peft takes its names of feed-forwards for those of experts
    modules={part: module for part, module in MODULES.items() if part.startswith("attn")},
    norms={name: module for name, module in NORMS.items() if name != "ffn_norm"}
    | {"post_attention_norm": "post_attention_layernorm"},
    partial_rope=True,
)
