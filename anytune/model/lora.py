"""Which linears get a low-rank pair, of what rank and scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from anytune.arguments import fields
from anytune.errors import UserError, did_you_mean

from .modules import ALIASES, DENSE, GROUPS, MODULES, RARE, is_expert, module_tensor

PEFT = {  # peft's names of the fields
    "r": "rank",
    "lora_alpha": "alpha",
    "target_modules": "modules",
    "use_rslora": "rslora",
    "lora_dropout": "dropout",
    "loraplus_lr_ratio": "plus_ratio",
}


@dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (Hu et al. 2021): W + scale · B A, scale = alpha/rank (rsLoRA: alpha/sqrt(rank)).

    modules: "all" (each layer's linears, but those in modules.NOT_ALL), "experts" (a pair for each expert of a
    mixture), or names out of modules.MODULES, comma-separated or a sequence.
    plus_ratio: learning rate of B over A's (LoRA+). dropout: on the low-rank path's input, one mask for the
    linears that share an input. seed: every tensor's start is drawn from its own stream; None: the run's seed.

    peft's names are understood: r, lora_alpha, lora_dropout, use_rslora, target_modules, and modules such as q_proj.
    """

    rank: int = 16
    alpha: float = 32.0
    modules: str | Sequence[str] = "all"
    rslora: bool = False
    plus_ratio: float = 1.0
    dropout: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.rank <= 4096:
            raise UserError(f"LoRA rank {self.rank} is out of range: give rank (--lora-rank) between 1 and 4096")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"LoRA alpha (--lora-alpha) must be a positive number, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"LoRA dropout (--lora-dropout) must be at least 0 and below 1, not {self.dropout}")
        if not (math.isfinite(self.plus_ratio) and self.plus_ratio > 0):
            raise UserError(
                f"the LoRA+ ratio, plus_ratio (--lora-plus-ratio), must be a positive number, not {self.plus_ratio}"
            )

    @property
    def scale(self) -> float:
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def _words(self) -> list[str]:
        wanted = self.modules.split(",") if isinstance(self.modules, str) else list(self.modules)
        return [ALIASES.get(word.strip(), word.strip()) for word in wanted if word.strip()]

    def named(self) -> list[str]:
        """The modules that were asked for by name, of whatever name."""
        return [word for word in self._words() if word not in GROUPS]

    def seeded(self, seed: int) -> Lora:
        """The same with a seed: its own if it has one."""
        return self if self.seed is not None else replace(self, seed=seed)

    def names(self) -> tuple[str, ...]:
        """The chosen modules, in MODULES' order. Raises UserError for an unknown one."""
        chosen: set[str] = set()
        for name in self._words():
            if name in GROUPS:
                chosen.update(GROUPS[name])
            elif name in MODULES:
                chosen.add(name)
            else:
                raise UserError(
                    f"there is no LoRA module {name!r}: --lora-modules takes all, experts, {', '.join(MODULES)}."
                    + did_you_mean(name, [*MODULES, *ALIASES, *GROUPS])
                )
        if not chosen:
            raise UserError(f"no LoRA modules were named: give --lora-modules all, or some of {', '.join(MODULES)}")
        return tuple(name for name in MODULES if name in chosen)

    def tensors(self, gguf, layers: int) -> list[str]:
        """Base tensors that get a pair, by exact name, in the model's order. Layers may differ in their modules."""
        from .architectures import ARCHITECTURES

        arch = ARCHITECTURES.get(gguf.metadata.get("general.architecture"))
        unadapted = arch.unadapted if arch is not None else ()
        ignored = [module for module in self.named() if MODULES.get(module) in unadapted]
        if ignored:
            raise UserError(
                f"llama.cpp computes {ignored[0]} of {arch.name} without adapters, so what it serves would not be what "
                f"was trained: remove {ignored[0]} from --lora-modules, or train the matrix itself (--full)"
            )
        modules = [module for module in self.names() if MODULES[module] not in unadapted]
        wanted = [f"blk.{{}}.{MODULES[module]}.weight" for module in modules]
        found = [
            name
            for layer in range(layers)
            for name in (place.format(layer) for place in wanted)
            if name in gguf.tensors
        ]
        absent = [
            module
            for module in self.named()
            if module != "output" and not any(name.split(".", 2)[2] == f"{MODULES[module]}.weight" for name in found)
        ]
        if "experts" in self._words() and not any(is_expert(name) for name in found):
            absent.append("experts")
        if absent:
            raise UserError(f"{gguf.path.name} has no {absent[0]}: remove it from --lora-modules")
        if "output" in modules:
            if "output.weight" not in gguf.tensors:
                raise UserError(
                    f"{gguf.path.name} has no output matrix of its own (its head is the embedding table): remove "
                    "output from --lora-modules"
                )
            found.append("output.weight")
        return found


def frozen_experts(gguf, config, names: Iterable[str], rank: int) -> int:
    """Parameters of the pairs that a model's experts would get, if none of the tensors `names` is theirs; else 0."""
    if any(map(is_expert, names)):
        return 0
    found = (gguf.tensors[name].shape for name in gguf.tensors if is_expert(name) and not config.ignores(name))
    return sum(experts * rank * (out + inner) for experts, out, inner in found)


def check_adapted(adapter, where: str = "the adapter") -> None:
    """Raise UserError if an adapter changes a tensor that is computed without adapters: its pair would be ignored."""
    known = {*MODULES.values(), "ffn_gate_inp"}
    odd = next((name for name in adapter.tensors if module_tensor(name) not in known), None)
    if odd is not None:
        raise UserError(
            f"{where} changes {odd}, which anytune computes without adapters: remove this tensor from it, or merge it "
            "into the model with another program."
        )


fields(Lora, PEFT)

FLAGS = {"rank": "--lora-rank", "alpha": "--lora-alpha", "modules": "--lora-modules", "rslora": "--rslora"}


def refuse_beside(lora: Lora, adapter, asked: Iterable[str] | None = None) -> None:
    """Raise UserError if `lora` asks for another adapter than the one that training continues from: those settings are
    the adapter's own, and could not act.

    asked: the names of the fields that were asked for; None: those that are not the default.
    """
    from .architectures import ARCHITECTURES

    default = Lora()
    arch = ARCHITECTURES.get(adapter.architecture)
    rare = RARE + (DENSE if arch is not None and arch.experts == "all" else ())
    own = set(map(module_tensor, adapter.tensors))
    has = {
        "rank": (adapter.rank, f"rank is {adapter.rank}"),
        "alpha": (adapter.alpha, f"alpha is {adapter.alpha:g}"),
        "modules": (own, f"modules are {', '.join(sorted(own))}"),
        "rslora": (adapter.rslora, f"scale is alpha / {'sqrt(rank)' if adapter.rslora else 'rank'}"),
    }
    for name, flag in FLAGS.items():
        if name not in asked if asked is not None else getattr(lora, name) == getattr(default, name):
            continue
        wanted = getattr(lora, name)
        if name == "modules":  # "all" means those that the model has
            chosen = {MODULES[m] for m in lora.names() if m not in rare or m in lora.named()}
            wanted = chosen | {MODULES[m] for m in rare if m in lora.names() and MODULES[m] in own}
        if wanted != has[name][0]:
            raise UserError(
                f"{flag} cannot be combined with --lora: training continues from an adapter whose {has[name][1]}. "
                "Omit it, or start a new adapter without --lora."
            )
