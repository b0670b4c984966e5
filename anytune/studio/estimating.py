"""Memory and time of a run before it starts, presets, and what files are; computed in a helper process."""

from __future__ import annotations

import functools
import math
from typing import Any

from anytune.errors import UserError


@functools.lru_cache(maxsize=1)
def _model(file: str, device: str, memory: int | None) -> Any:
    from anytune.model import load

    return load(file, device=device, memory=memory)


def estimate(
    model: str, device: str, memory: int | None, lora: dict[str, Any], settings: dict[str, Any], data: dict[str, Any]
) -> dict[str, Any]:
    """{bytes, seconds, steps, text} of a run, or {problem}. data: examples, tokens, longest, as `look` gives them."""
    from anytune.memory import available_bytes
    from anytune.model import Lora
    from anytune.model.spec import LoraSpec
    from anytune.train.settings import TrainSettings

    try:
        chosen = TrainSettings(**settings)
        longest = min(max(data["longest"], 2), chosen.context)
        chosen, notes = chosen.fitted(longest)
        loaded = _model(model, device, memory)
        what = Lora(**lora)
        shapes = {
            name: tuple(loaded.gguf.tensors[name].shape) for name in what.tensors(loaded.gguf, loaded.config.layers)
        }
        estimate, engine, speed = _planned(loaded, LoraSpec(what, shapes), chosen.ubatch, longest, memory)
    except UserError as error:
        return {"problem": " ".join(str(error).split())}
    tokens = min(data["tokens"], data["examples"] * chosen.context)
    per_epoch = max(1, math.ceil(tokens / (chosen.ubatch * max(1, chosen.batch // chosen.ubatch))))
    steps = per_epoch * (chosen.passes or 1)
    if chosen.max_steps is not None:
        steps = chosen.max_steps if chosen.epochs is None else min(steps, chosen.max_steps)
    seconds = estimate.flops_per_token * tokens * steps / per_epoch / speed
    return {
        "bytes": int(estimate.peak_bytes),
        "seconds": seconds,
        "steps": steps,
        "text": estimate.text,
        "notes": notes,
        "free": available_bytes(),
        "parameters": sum(what.rank * (a + b) for a, b in shapes.values()),
        "engine": engine,
    }


def _planned(model: Any, subject: Any, ubatch: int, longest: int, memory: int | None) -> tuple[Any, str, float]:
    """(estimate, name of the engine that would train, its operations a second). Raises UserError."""
    from anytune.model.plan import plan_training
    from anytune.train.device import Place

    place = Place(model, {}, False)
    try:
        try:
            estimate = plan_training(model, subject, ubatch, longest, memory)
        except UserError as error:
            place.retreat(error)
            estimate = plan_training(model, subject, ubatch, longest, memory)
        return estimate, model.engine.name, model.engine.flops_per_second()
    finally:
        place.leave()


def presets(data: dict[str, Any], context_length: int) -> dict[str, dict[str, Any]]:
    """Settings of three runs, from the data's lengths and size.

    The context holds 95 of 100 examples; a step takes as many tokens as make the epoch some twenty steps, at most 8192.
    """
    wanted = max(64, min(data.get("p95") or data["longest"], 8192))
    context = min(1 << math.ceil(math.log2(wanted)), max(64, context_length or 8192))
    ubatch = max(context, 512)
    batch = ubatch * max(1, min(8192 // ubatch, round(data["tokens"] / 20 / ubatch)))
    shared = {"context": context, "ubatch": ubatch, "batch": batch}
    per_epoch = max(1, math.ceil(data["tokens"] / batch))
    small = data["examples"] < 100
    return {
        "quick": {
            "settings": shared | {"max_steps": min(30, max(5, per_epoch)), "lr": 3e-4, "checkpoint_save_steps": 10},
            "lora": {"rank": 8, "alpha": 16.0},
            "val_split": 0,
        },
        "good": {
            "settings": shared
            | {"epochs": 4 if small else 2, "lr": 2e-4, "checkpoint_save_steps": max(5, per_epoch // 2)},
            "lora": {"rank": 16, "alpha": 32.0},
            "val_split": 0 if small else 0.05,
        },
        "thorough": {
            "settings": shared
            | {
                "epochs": 8 if small else 5,
                "lr": 1e-4,
                "early_stop": 2,
                "checkpoint_save_steps": max(5, per_epoch // 2),
            },
            "lora": {"rank": 32, "alpha": 64.0},
            "val_split": 0.2 if small else 0.1,
        },
    }


def models() -> list[dict[str, Any]]:
    """Every model on this machine (see anytune.hub.catalog), with its path."""
    from anytune.hub.catalog import models as find

    return [row.as_dict() for row in find()]


def facts(model: str) -> dict[str, Any]:
    """What a model's file is (see anytune.info), without its path."""
    from anytune.info import describe

    found = describe(model)
    found.pop("path")
    return found


def adapter_facts(file: str, model: str | None = None) -> dict[str, Any]:
    """What an adapter is. Raises UserError if it is none, or does not fit `model`."""
    import hashlib
    from pathlib import Path

    from anytune.adapter.adapter import Adapter
    from anytune.gguf import GGUF

    if model is None:
        adapter = Adapter.load(file)
    else:
        with GGUF.open(model) as gguf:
            adapter = Adapter.load(file, gguf)
    with Path(file).open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    return {
        "sha256": digest,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "rslora": adapter.rslora,
        "parameters": adapter.n_parameters,
        "tensors": len(adapter.tensors),
        "architecture": adapter.architecture,
        "base_name": adapter.base_name,
        "base_sha256": adapter.base_sha256,
    }
