"""Gemma 2: norms around each part, every second layer windowed, and caps on attention's scores and on logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from anytune.model.architecture import PATTERN, WINDOW, Architecture, layer_types

from .gemma3 import NAMES

if TYPE_CHECKING:
    from anytune.model.config import Config

SCORES, LOGITS = "attn_logit_softcapping", "final_logit_softcapping"


def read(get: Callable, c: Config) -> dict:
    # llama.cpp's own defaults; the 27B model scales by its width per head
    scale = {"attention_scale": 1.0 / math.sqrt(c.width // c.heads)} if c.layers == 46 else {}
    return {
        "score_cap": float(get(SCORES, 50.0, float)),
        "logit_cap": float(get(LOGITS, 30.0, float)),
        "local": None,  # windowed layers turn as the others
        **scale,
    }


def config(c: Config) -> dict:
    return {
        "query_pre_attn_scalar": round(c.attention_scale**-2),
        "sliding_window": c.window,
        "layer_types": layer_types(c),
        SCORES: c.score_cap,
        LOGITS: c.logit_cap,
    }


def metadata(number: Callable, config: dict) -> dict:
    return {
        WINDOW: number("sliding_window", int, 4096),
        SCORES: number(SCORES, float, 50.0),
        LOGITS: number(LOGITS, float, 30.0),
    }


GEMMA2 = Architecture(
    "gemma2",
    neox=True,
    activation="gelu",
    scaled_embedding=True,
    post_norms=True,
    window_period=2,
    window=4096,
    read=read,
    keys=(WINDOW, PATTERN, SCORES, LOGITS),
    settings=(SCORES, LOGITS),
    kind="gemma2",
    model_class="Gemma2ForCausalLM",
    norms=NAMES,
    unit_norms=("*",),
    activation_key="hidden_activation",
    config=config,
    metadata=metadata,
)
