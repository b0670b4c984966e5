"""What a training command line leaves out: taken from the checkpoint to continue from; and what it may not say."""

from __future__ import annotations

from typing import Any

import click

from anytune.cli.say import note
from anytune.cli.train_options import LORA, MODEL
from anytune.train.settings import FLAGS


def check_kind(full: bool) -> None:
    """Options of one kind of training are no use to the other: say so instead of ignoring them."""
    ctx = click.get_current_context()
    other = (
        [("lora", "--lora"), *((f"lora_{name}", flags[0]) for name, flags, *_ in LORA)]
        if full
        else [(name, flag) for name, flag, *_ in MODEL]
    )
    for name, flag in other:
        if given(name):
            raise click.UsageError(
                f"{flag} applies to {'adapters, but --full trains the model itself' if full else '--full'}: omit "
                f"it{'' if full else ', or add --full'}",
                ctx,
            )


def take_recorded(settings: dict[str, Any], lora_settings: dict[str, Any]) -> None:
    """A checkpoint that --resume-from names says what is not on the command line."""
    from anytune.train.resume import recorded_settings

    recorded, trained = recorded_settings(settings["resume_from"])
    if isinstance(trained.get("modules"), str):
        trained = trained | {"modules": _module_names(trained["modules"])}
    of_lora = {name: flags[0] for name, flags, *_ in LORA} if trained.get("kind") == "lora" else {}
    taken = []
    for into, found, flags, prefix in ((settings, recorded, FLAGS, ""), (lora_settings, trained, of_lora, "lora_")):
        for name, value in found.items():
            if name in into and name in flags and not given(prefix + name) and into[name] != value:
                said = name != "seed" or into[name] is not None  # an adapter's seed defaults to --seed
                into[name] = value
                taken += [f"{flags[name]} {value}"] if said else []
    if taken:
        note(f"from the checkpoint: {', '.join(taken)}")


def _module_names(tensors: str) -> str:
    """--lora-modules for the tensors that a checkpoint names."""
    from anytune.model.modules import MODULES, module_tensor

    found = set(map(module_tensor, tensors.split(",")))
    return ",".join(module for module, tensor in MODULES.items() if tensor in found)


def given(name: str) -> bool:
    """Whether an option is on the command line."""
    return click.get_current_context().get_parameter_source(name) == click.core.ParameterSource.COMMANDLINE
