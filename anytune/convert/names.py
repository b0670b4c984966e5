"""Hugging Face's tensor names in GGUF's words."""

from __future__ import annotations

import re

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
SHARED = ("shared_expert", "shared_experts")
WRAPPERS = ("model.language_model.model.", "language_model.model.", "model.language_model.")
# of mixtures of experts, whose matrices experts.py has put into one
EXPERTS = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.router": "ffn_gate_inp",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},  # of dense layers before them
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
    **{f"mlp.{s}.{part}_proj": f"ffn_{part}_shexp" for s in SHARED for part in ("gate", "up", "down")},
}
WITHOUT_KIND = {"self_attn.sinks": "attn_sinks.weight", "mlp.gate.e_score_correction_bias": "exp_probs_b.bias"}


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
    arch = ARCHITECTURES[architecture]
    found = naming.ours(arch, plain) or (_of_experts(plain) if arch.experts else None)
    if found is None:
        raise UserError(
            f"The weight {name[:100]} is unknown in architecture {architecture}: the model does not match its "
            "config.json."
        )
    return found


def _of_experts(name: str) -> str | None:
    for module, tensor in WITHOUT_KIND.items():
        if whole := re.fullmatch(rf"model\.layers\.(\d{{1,5}})\.{re.escape(module)}", name):
            return f"blk.{int(whole[1])}.{tensor}"
    found = re.fullmatch(r"model\.layers\.(\d{1,5})\.(.+)\.(weight|bias)", name)
    part = EXPERTS.get(found[2]) if found else None
    return part and f"blk.{int(found[1])}.{part}.{found[3]}"
