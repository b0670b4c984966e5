"""What peft's settings (LoraConfig of peft 0.21) mean for an adapter's weights: honoured, without effect, or refused.

An adapter here is W + scale · B·A for some linears. A setting is honoured if it is a part of that, without effect if it
is about training or says what the weights in the file say themselves; everything else, known or not, is refused by name
unless it is switched off.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from anytune.errors import UserError

CHOICES = ("target_modules", "exclude_modules", "layers_to_transform", "target_parameters")
HONOURED = (
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "base_model_name_or_path",
    "peft_version",
    *CHOICES,
)
WITHOUT_EFFECT = (  # once the weights are trained
    "task_type",
    "auto_mapping",
    "revision",
    "inference_mode",
    "lora_dropout",
    "layers_pattern",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "runtime_config",
    "qalora_group_size",
    "unsloth_fixed",
)
REFUSED = {  # -> what it does
    "bias": "trains biases",
    "fan_in_fan_out": "is for transposed weights",
    "modules_to_save": "replaces whole modules",
    "megatron_config": "distributes the linears over processes",
    "trainable_token_indices": "replaces rows of the embedding table",
    "use_dora": "rescales the weights (DoRA)",
    "velora_config": "keeps projections of activations (VeLoRA)",
    "alora_invocation_tokens": "acts only after certain tokens (activated LoRA)",
    "use_qalora": "pools the inputs (QALoRA)",
    "monteclora_config": "samples the weights (MonteCLoRA)",
    "layer_replication": "repeats layers of the base",
    "lora_bias": "adds a bias to B",
    "use_bdlora": "has block-diagonal matrices (BD-LoRA)",
    "arrow_config": "chooses among several adapters (Arrow)",
    "kasa_config": "truncates the base's small singular values (KaSA)",
    "ensure_weight_tying": "adapts the embedding table with the head",
}
STARTS = ("gaussian", "orthogonal", "eva", "mica")  # initialisations that leave the base as it is
_PLAIN = re.compile(r"[\w.^$\\]{1,200}")
_QUANTIFIED = re.compile(r"\)[*+?{]")


@dataclass(frozen=True)
class Settings:
    """r, alpha: ranks and alphas as numbers; the patterns: {regular expression of a module's name: number}."""

    rank: int
    alpha: float
    rslora: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    base: str | None
    chosen: Mapping[str, Any]
    version: str | None = None  # of the peft that wrote them

    def of(self, module: str) -> tuple[int, float]:
        """(rank, scale) of a module by its full name, such as model.layers.0.self_attn.q_proj."""
        rank = next((r for key, r in self.ranks.items() if _matches(key, module)), self.rank)
        alpha = next((a for key, a in self.alphas.items() if _matches(key, module)), self.alpha)
        return rank, self.scale(rank, alpha)

    def scale(self, rank: int, alpha: float) -> float:
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def adapts(self, parameter: str) -> bool:
        """Whether target_parameters choose it, by its full name, such as model.layers.0.mlp.experts.down_proj."""
        return _listed(parameter, self.chosen["target_parameters"] or [])

    def check_parameters(self, found: Iterable[str], where: object) -> None:
        """Raise UserError if target_parameters name one that is not found among those, full names, with weights."""
        for name in self.chosen["target_parameters"] or []:
            if not any(_listed(parameter, [name]) for parameter in found):
                raise UserError(
                    f"{where}: target_parameters names {name!r:.80}, but the folder has no weights for it: one of the "
                    "two is wrong."
                )

    def check(self, modules: Iterable[str], where: object) -> None:
        """Raise UserError unless modules, full names of those that the file has weights of, are those that the settings
        choose. (Expressions in target_modules and exclude_modules are taken at their word.)"""
        target, excluded, layers = (self.chosen.get(key) for key in CHOICES[:3])
        numbers = layers if isinstance(layers, list) else None if layers is None else [layers]
        for module in modules:
            if self.adapts(f"{module}.weight"):
                continue
            layer = next((int(part) for part in module.split(".") if part.isdecimal()), None)
            if isinstance(target, list) and not _listed(module, target):
                key = "target_modules"
            elif isinstance(excluded, list) and _listed(module, excluded):
                key = "exclude_modules"
            elif numbers is not None and layer is not None and layer not in numbers:
                key = "layers_to_transform"
            else:
                continue
            raise UserError(
                f"{where}: {key} excludes {module}, but the folder has weights for it, which peft would ignore: one "
                "of the two is wrong."
            )


def read_settings(found: Any, where: object) -> Settings:
    """The checked contents of adapter_config.json. Raises UserError that names the setting."""
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise UserError(f"{where} does not describe a LoRA adapter (peft_type).")
    _refuse(found, where)
    rank, alpha, base = found.get("r"), found.get("lora_alpha"), found.get("base_model_name_or_path")
    if not _number(rank, int):
        raise UserError(f"{where}: r is {rank!r:.40}, and must be a whole number above 0.")
    if not _number(alpha):
        raise UserError(f"{where}: lora_alpha is {alpha!r:.40}, and must be a number above 0.")
    rslora = found.get("use_rslora", False)
    if not isinstance(rslora, bool):
        raise UserError(f"{where}: use_rslora is {rslora!r:.40}, and must be true or false.")
    parameters, version = found.get("target_parameters"), found.get("peft_version")
    if not (parameters is None or isinstance(parameters, list) and all(isinstance(name, str) for name in parameters)):
        raise UserError(f"{where}: target_parameters must be a list of names.")
    return Settings(
        rank,
        float(alpha),
        rslora,
        _pattern(found, "rank_pattern", int, where),
        _pattern(found, "alpha_pattern", float, where),
        base if isinstance(base, str) and base else None,
        {key: found.get(key) for key in CHOICES},
        version if isinstance(version, str) else None,
    )


def _number(value: Any, kind: type = float) -> bool:
    return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _refuse(found: dict[str, Any], where: object) -> None:
    for key, value in found.items():
        off = value is None or value is False or value in ([], {}) or key == "bias" and value == "none"
        if off or key in HONOURED or key in WITHOUT_EFFECT:
            continue
        said = f"{key}, which {REFUSED[key]}" if key in REFUSED else f"{key!r:.60}, which is unknown to this version"
        raise UserError(f"{where} uses {said}: a GGUF adapter cannot express that.")
    start = found.get("init_lora_weights", True)
    if not (start is None or isinstance(start, bool) or isinstance(start, str) and start.lower() in STARTS):
        raise UserError(
            f"{where}: init_lora_weights is {start!r:.40}, which changes the base's weights, so the adapter does "
            "not fit the original base; convert it to plain LoRA when peft saves it "
            "(path_initial_model_for_weight_conversion)."
        )


def _pattern(found: dict[str, Any], key: str, kind: type, where: object) -> dict[str, Any]:
    pattern = found.get(key) or {}
    if not isinstance(pattern, dict) or not all(_number(value, kind) for value in pattern.values()):
        raise UserError(f"{where}: {key} must give a number above 0 for each module.")
    for name in pattern:
        _matches(name, "", where, key)
    return pattern


def _matches(key: str, module: str, where: object = "", setting: str = "") -> bool:
    """As peft matches a pattern's key: a regular expression for the end of the name, from a dot on.

    Expressions that could take long are refused: they come from a file.
    """
    many = sum(key.count(sign) for sign in "*+{?")
    if not _PLAIN.fullmatch(key) and (len(key) > 200 or _QUANTIFIED.search(key) or many > 3):
        raise UserError(f"{where}: {setting} has the expression {key!r:.60}, which is too complex.")
    try:
        return re.match(rf"(.*\.)?({key})$", module) is not None
    except (re.error, RecursionError, OverflowError):
        raise UserError(f"{where}: {setting} has {key!r:.60}, which is not a regular expression.") from None


def _listed(module: str, names: list[Any]) -> bool:
    return any(isinstance(name, str) and (module == name or module.endswith(f".{name}")) for name in names)
