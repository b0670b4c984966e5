"""Granite 3, dense: Llama's layers with four multipliers.

What a part adds to the residual stream is scaled by s. The stream over s is kept instead, to which parts add as they
are: embeddings are divided by s, and the norms, which alone read the stream, see the same with an eps over s².
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from anytune.errors import UserError
from anytune.model.architecture import LINEARS, NEIGHBOURS, Architecture

if TYPE_CHECKING:
    from anytune.model.config import Config

# the file's key -> config.json's
MULTIPLIERS = {
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "attention.scale": "attention_multiplier",
    "logit_scale": "logits_scaling",
}


def read(get: Callable, c: Config) -> dict:
    if not get("rope.scaling.finetuned", True, bool):
        raise UserError(f"{get.where} has rope switched off (rope.scaling.finetuned), which is not supported")
    embedding, residual, attention, logits = (float(get(key, 0.0, float)) for key in MULTIPLIERS)
    if not logits:
        raise UserError(f"{get.where} lacks a usable granite.logit_scale: it is not a complete model file")
    residual = residual or 1.0
    return {
        "eps": c.eps / residual**2,
        "residual_scale": residual,
        "embedding_scale": (embedding or 1.0) / residual,
        "attention_scale": attention or c.attention_scale,
        "logit_scale": 1.0 / logits,
    }


def config(c: Config) -> dict:
    return {
        "rms_norm_eps": c.eps * c.residual_scale**2,
        "embedding_multiplier": c.embedding_scale * c.residual_scale,
        "residual_multiplier": c.residual_scale,
        "attention_multiplier": c.attention_scale,
        "logits_scaling": 1.0 / c.logit_scale,
        "mlp_bias": False,
    }


def metadata(number: Callable, config: Mapping) -> dict:
    return {key: number(theirs, float, 1.0) for key, theirs in MULTIPLIERS.items()}


GRANITE = Architecture(
    "granite",
    neox=False,
    rope_factors=("rope_freqs",),
    biases=LINEARS,
    read=read,
    keys=(*MULTIPLIERS, "rope.scaling.finetuned"),
    settings=tuple(MULTIPLIERS.values()),
    kind="granite",
    model_class="GraniteForCausalLM",
    reordered=NEIGHBOURS,
    config=config,
    metadata=metadata,
)
