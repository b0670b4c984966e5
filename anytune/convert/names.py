"""Hugging Face's tensor names in GGUF's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from anytune.errors import UserError
from anytune.model import naming
from anytune.model.architectures import ARCHITECTURES

# of models that also see: the language model's part is converted, these are left out
OTHER_PARTS = (
    "vision_tower.",
    "vision_model.",
    "multi_modal_projector.",
    "audio_tower.",
    "visual.",
    "embed_vision.",
    "embed_audio.",
)
WRAPPERS = ("model.language_model.model.", "language_model.model.", "model.language_model.")


def is_behind(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a weight is of the layers behind all others, which only speculative decoding uses (config.json says how
    many there are)."""
    layers = config.get("num_hidden_layers")
    behind = config.get("num_nextn_predict_layers", config.get("num_mtp_layers"))
    found = re.match(r"model\.layers\.(\d{1,5})\.", name)
    if not found or not isinstance(layers, int) or not isinstance(behind, int):
        return False
    return layers <= int(found[1]) < layers + behind


def gguf_name(name: str, architecture: str) -> str | None:
    """GGUF's name of a weight; None for one that GGUF does not hold. UserError for one that is not known."""
    plain = name
    for wrapper in WRAPPERS:
        if name.startswith(wrapper):
            plain = "model." + name[len(wrapper) :]
    plain = plain.removeprefix("language_model.")
    # mtp: layers that only speculative decoding uses
    if plain.removeprefix("model.").startswith((*OTHER_PARTS, "mtp.")) or plain.endswith(".rotary_emb.inv_freq"):
        return None
    found = naming.ours(ARCHITECTURES[architecture], plain)
    if found is None:
        raise UserError(
            f"The weight {name[:100]} is unknown in architecture {architecture}: the model does not match its "
            "config.json."
        )
    return found
