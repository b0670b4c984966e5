"""Which of a model's own tensors are trained, and by which optimizer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from anytune.arguments import fields
from anytune.engine.optimizers import KINDS
from anytune.errors import UserError

from .modules import ALIASES, EXPERTS, MODULES

NORM, EMBED, BIAS, LAYER_EMBED = "norm", "embed", "bias", "layer_embed"
OTHERS = {  # tensors that no pair adapts
    "per_layer_token_embd": LAYER_EMBED,
    "per_layer_model_proj": LAYER_EMBED,
    "ffn_gate_inp": "router",
    "ffn_gate_inp_shexp": "router",
    "ssm_a": "ssm",
    "ssm_conv1d": "ssm",
    "shortconv.conv": "conv",
    "attn_sinks": "sinks",
}
NAMES = (*MODULES, NORM, EMBED, BIAS, LAYER_EMBED, "router", "ssm", "sinks", "conv")
PLACES = {place: name for name, place in MODULES.items()} | OTHERS


@dataclass(frozen=True)
class Full:
    """Training of the weights themselves.

    modules: "all", or names out of NAMES, comma-separated or a sequence: linears as in LoRA, norm (every gain), embed
    (the embedding table, which is the head too where they are tied), bias, router (of experts), ssm (decays and
    convolutions of delta nets), sinks (of attention), conv (kernels of short convolutions), layer_embed (embeddings of
    each layer's own).
    layers: of the layers only the last so many; embeddings then only where they are named. optimizer: one of
    optimizers.KINDS.
    """

    modules: str | Sequence[str] = "all"
    layers: int | None = None
    optimizer: str = "adamw"

    def __post_init__(self) -> None:
        if self.optimizer not in KINDS:
            raise UserError(
                f"there is no optimizer {self.optimizer!r}: optimizer (--optimizer) takes {', '.join(KINDS)}"
            )
        if self.layers is not None and self.layers < 1:
            raise UserError(f"layers (--train-layers) {self.layers} is not valid: give 1 or more")

    def chosen(self) -> frozenset[str]:
        """The named modules. Raises UserError for an unknown one."""
        words = self.modules.split(",") if isinstance(self.modules, str) else list(self.modules)
        words = [ALIASES.get(w.strip(), w.strip()) for w in words if w.strip()]
        words = [name for word in words for name in (EXPERTS if word == "experts" else (word,))]
        for word in words:
            if word not in NAMES and word != "all":
                raise UserError(f"there is no module {word!r}: --train-modules takes all, experts, {', '.join(NAMES)}")
        if not words:
            raise UserError(f"nothing to train was named: give --train-modules all, or some of {', '.join(NAMES)}")
        if "all" in words:
            above = {EMBED, LAYER_EMBED} - set(words) if self.layers is not None else frozenset()
            return frozenset(NAMES) - above
        return frozenset(words)

    def tensors(self, gguf, layers: int) -> list[str]:
        """The tensors that are trained, in the file's order. Raises UserError if there are none."""
        chosen, lowest = self.chosen(), 0 if self.layers is None else layers - self.layers
        if "output" in chosen and EMBED not in chosen and "output.weight" not in gguf.tensors and self.modules != "all":
            raise UserError(
                f"{gguf.path.name} has no output matrix (its head is the embedding table): use {EMBED} in "
                "--train-modules"
            )
        found = [name for name in gguf.tensors if _module(name) in chosen and _layer(name, layers) >= lowest]
        if not found:
            raise UserError(
                f"{gguf.path.name} has none of the tensors of --train-modules "
                f"{self.modules if isinstance(self.modules, str) else ','.join(self.modules)}"
            )
        return found


fields(Full)


def _module(name: str) -> str | None:
    """The module that a tensor belongs to: None for what is not trained (rope's divisors)."""
    place = re.sub(r"^blk\.\d+\.", "", name)
    stem, _, kind = place.rpartition(".") if "." in place else (place, "", "")
    if stem == "exp_probs_b":  # it has no gradient: it only decides which experts are chosen
        return None
    if kind in ("bias", "scale"):
        return BIAS if kind == "bias" else "router"
    if stem == "token_embd":
        return EMBED
    return NORM if re.search(r"_norm(_\d)?$", stem) else PLACES.get(stem)


def _layer(name: str, layers: int) -> int:
    """A tensor's layer; what is outside of the layers counts as above them."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else layers
