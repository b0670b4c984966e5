"""BitNet b1.58 of 1bitLLM: Llama's layers with weights of three values and a norm before each part's last product."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from anytune.errors import UserError
from anytune.model.architecture import NORMS, Architecture
from anytune.model.ffn.sub_normed import SubNormedGated
from anytune.model.mixers.sub_normed import SubNormedAttention


def metadata(number: Callable, config: Mapping) -> dict:
    if config.get("hidden_act") != "silu":
        raise UserError(
            f"config.json has the activation {config.get('hidden_act')!r:.40}, and llama.cpp's bitnet computes silu."
        )
    return {}


BITNET = Architecture(
    "bitnet",
    neox=True,
    parts=lambda c, layer: (SubNormedAttention, SubNormedGated),
    biases=(),
    kind="bitnet",
    model_class="BitNetForCausalLM",
    norms=NORMS | {"attn_sub_norm": "self_attn.attn_sub_norm", "ffn_sub_norm": "mlp.ffn_sub_norm"},
    metadata=metadata,
)
