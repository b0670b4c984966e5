"""Hugging Face's tensor names in GGUF's words, and what else differs in the numbers."""

from __future__ import annotations

import re

import numpy as np

from anytune.adapter.peft import INTERLEAVED, MODULES
from anytune.errors import UserError
from anytune.export.huggingface import ENDS, GEMMA_NORMS, NORMS

# of models that also see: the language model's part is converted, these are left out
OTHER_PARTS = ("vision_tower.", "vision_model.", "multi_modal_projector.", "audio_tower.", "visual.")
WRAPPERS = ("model.language_model.model.", "language_model.model.", "model.language_model.")


def gguf_name(name: str, architecture: str) -> str | None:
    """GGUF's name of a weight; None for one that GGUF does not hold. UserError for one that is not known."""
    plain = name
    for wrapper in WRAPPERS:
        if name.startswith(wrapper):
            plain = "model." + name[len(wrapper) :]
    plain = plain.removeprefix("language_model.")
    if plain.removeprefix("model.").startswith(OTHER_PARTS) or plain.endswith(".rotary_emb.inv_freq"):
        return None
    stem, _, kind = plain.rpartition(".")
    ends = {module: end for end, module in ENDS.items()}
    if stem in ends:
        return f"{ends[stem]}.{kind}"
    norms = GEMMA_NORMS if architecture == "gemma3" else NORMS
    parts = {module: part for part, module in (norms | MODULES).items()}
    found = re.fullmatch(r"model\.layers\.(\d{1,5})\.(.+)", stem)
    if not found or found[2] not in parts or kind not in ("weight", "bias"):
        raise UserError(
            f"The weight {name[:100]} is not known in architecture {architecture}: this model is another "
            "one than its config.json says."
        )
    return f"blk.{int(found[1])}.{parts[found[2]]}.{kind}"


def interleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows [heads * size, …] of a query or key projection from halves (i beside i + size/2) to neighbours, as GGUF's
    rotary order of `llama` has them. The inverse of adapter.peft.halves."""
    size = rows.shape[0] // heads
    return rows.reshape(heads, 2, size // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def interleaved_as(name: str, architecture: str) -> str | None:
    """The metadata key that says how many heads a tensor's rows are interleaved in, or None."""
    part = re.fullmatch(r"blk\.\d+\.(\w+)\.(?:weight|bias)", name)
    return INTERLEAVED.get(architecture, {}).get(part[1]) if part else None
