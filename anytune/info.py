"""What a GGUF file is: sizes, tokenizer, template, what can be trained in it and the memory that takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.units import bytes_text, quantity

if TYPE_CHECKING:
    from anytune.gguf import GGUF

RANK, UBATCH = 16, 512  # what the estimate is for: the defaults of training


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """Facts about a model or adapter file, JSON-able. Raises UserError for a file that is no GGUF.

    What keeps a model from being trained is a fact too (trainable.reason), not an error.
    """
    from anytune.gguf import GGUF

    with GGUF.open(path) as gguf:
        meta = gguf.metadata
        facts: dict[str, Any] = {
            "path": str(path),
            "bytes": Path(path).stat().st_size,
            "gguf_version": gguf.version,
            "kind": str(meta.get("general.type", "model")),
            "architecture": meta.get("general.architecture"),
            "name": meta.get("general.name"),
            "license": meta.get("general.license"),
            "parameters": gguf.n_parameters,
            "tensors": len(gguf.tensors),
            "types": _types(gguf),
        }
        if facts["kind"] == "adapter":
            return {**facts, "adapter": _adapter(path)}
        return {
            **facts,
            "model": _sizes(gguf),
            "tokenizer": _tokenizer(gguf),
            "chat_template": _template(gguf),
            "trainable": _trainable(gguf),
        }


def _types(gguf: GGUF) -> list[dict[str, Any]]:
    """Tensors, parameters and bytes by quant type, the largest first."""
    sums: dict[str, list[int]] = {}
    for info in gguf.tensors.values():
        row = sums.setdefault(info.type.name, [0, 0, 0])
        for i, n in enumerate((1, info.n_elements, info.nbytes)):
            row[i] += n
    rows = [
        {
            "type": name,
            "tensors": row[0],
            "parameters": row[1],
            "bytes": row[2],
            "bits_per_weight": round(8 * row[2] / max(row[1], 1), 2),
        }
        for name, row in sums.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def _sizes(gguf: GGUF) -> dict[str, Any] | None:
    from anytune.model.config import read_config

    try:
        c = read_config(gguf)
    except UserError:
        return None
    names = (
        "layers",
        "width",
        "heads",
        "n_kv_heads",
        "head_size",
        "hidden",
        "vocabulary",
        "context",
        "rope_base",
        "window",
        "tied",
    )
    return {name: getattr(c, name) for name in names}


def _tokenizer(gguf: GGUF) -> dict[str, Any]:
    from anytune.text import Tokenizer

    meta = gguf.metadata
    facts: dict[str, Any] = {"model": meta.get("tokenizer.ggml.model"), "pre": meta.get("tokenizer.ggml.pre")}
    try:
        t = Tokenizer.from_gguf(gguf)
    except UserError as error:
        return {**facts, "problem": str(error)}

    def token(number: int | None) -> dict[str, Any] | None:
        if number is None:
            return None
        return {"id": int(number), "text": t.piece(number).decode("utf-8", "replace")}

    return {
        **facts,
        "size": t.size,
        "bos": token(t.bos),
        "eos": token(t.eos),
        "eot": token(t.eot),
        "end_of_generation": [token(i) for i in sorted(t.eog)],
        "add_bos": bool(t.add_bos),
    }


def _template(gguf: GGUF) -> dict[str, Any] | None:
    source = gguf.metadata.get("tokenizer.chat_template")
    if not isinstance(source, str):
        return None
    marks = "endgeneration" in source
    return {"characters": len(source), "marks_generation": marks, "knows_tools": "tools" in source, "source": source}


def _trainable(gguf: GGUF) -> dict[str, Any]:
    """Which modules take LoRA, and the parameters and memory of training them all at rank 16."""
    from anytune.model import Lora
    from anytune.model.config import read_config
    from anytune.model.lora import frozen_experts
    from anytune.model.modules import MODULES

    try:
        config = read_config(gguf)
        lora = Lora(rank=RANK)
        names = [name for name in lora.tensors(gguf, config.layers) if not config.ignores(name)]
    except UserError as error:
        return {"ok": False, "reason": str(error)}
    modules = []
    for module, tensor in MODULES.items():
        if tensor in config.arch.unadapted:
            continue
        places = (f"blk.{i}.{tensor}.weight" for i in range(config.layers))
        found = (gguf.tensors.get(name) for name in (places if module != "output" else ["output.weight"]))
        info = next((one for one in found if one is not None), None)
        if info is not None:
            modules.append({"name": module, "tensor": tensor, "out": info.shape[-2], "in": info.shape[-1]})
    parameters = sum(RANK * sum(gguf.tensors[name].shape) for name in names)
    return {
        "ok": True,
        "modules": modules,
        "all": [name for name in lora.names() if any(m["name"] == name for m in modules)],
        "rank": RANK,
        "lora_tensors": len(names),
        "lora_parameters": parameters,
        "expert_parameters": frozen_experts(gguf, config, names, RANK),
        "training": _memory(gguf, names),
    }


def _memory(gguf: GGUF, names: list[str]) -> dict[str, Any]:
    """The estimate of training at the defaults on this machine; peak_bytes None where it does not fit."""
    from anytune.engine.devices import engine_for
    from anytune.model import Lora, Model
    from anytune.model.plan import plan_training
    from anytune.model.spec import LoraSpec

    shapes = {name: gguf.tensors[name].shape for name in names}
    try:
        estimate = plan_training(
            Model(gguf, engine_for("auto")), LoraSpec(Lora(rank=RANK), shapes), UBATCH, UBATCH, None
        )
    except UserError as error:
        return {"ubatch": UBATCH, "peak_bytes": None, "flops_per_token": None, "text": str(error)}
    return {
        "ubatch": UBATCH,
        "peak_bytes": int(estimate.peak_bytes),
        "flops_per_token": float(estimate.flops_per_token),
        "text": estimate.text,
    }


def _adapter(path: str | os.PathLike) -> dict[str, Any]:
    from anytune.adapter.adapter import Adapter

    a = Adapter.load(path)
    return {
        "rank": a.rank,
        "alpha": a.alpha,
        "scale": a.scale,
        "rslora": a.rslora,
        "pairs": len(a.tensors),
        "parameters": a.n_parameters,
        "base_name": a.base_name,
        "base_sha256": a.base_sha256,
        "chat_template": bool(a.chat_template),
    }


def report(facts: dict[str, Any]) -> str:
    """The facts of `describe` for a person."""
    lines = [
        f"{facts['name'] or Path(facts['path']).name}: {facts['architecture']} {facts['kind']}, "
        f"{quantity(facts['parameters'])} parameters in {bytes_text(facts['bytes'])} "
        f"(GGUF v{facts['gguf_version']})"
    ]

    def row(title: str, text: str) -> None:
        lines.append(f"  {title:<14} {text}")

    if (m := facts.get("model")) is not None:
        row(
            "shape",
            f"{m['layers']} layers, width {m['width']}, {m['heads']} heads over {m['n_kv_heads']} of "
            f"{m['head_size']}, MLP {m['hidden']}, vocabulary {m['vocabulary']:,}"
            f"{' (tied head)' if m['tied'] else ''}",
        )
        row("context", f"{m['context']:,} tokens" + (f", sliding window {m['window']}" if m["window"] else ""))
    for number, t in enumerate(facts["types"]):
        row(
            "" if number else "weights",
            f"{t['type']:<7} {quantity(t['parameters']):>8} in {t['tensors']:>4} tensors, "
            f"{bytes_text(t['bytes']):>10}, {t['bits_per_weight']} bits each",
        )
    if (t := facts.get("tokenizer")) is not None:
        row(
            "tokenizer",
            t.get("problem")
            or f"{t['model']}"
            + (f" ({t['pre']})" if t["pre"] else "")
            + f", {t['size']:,} tokens; ends at {' '.join(e['text'] for e in t['end_of_generation']) or 'nothing'}"
            + (f"; begins with {t['bos']['text']}" if t["add_bos"] and t["bos"] else ""),
        )
        c = facts["chat_template"]
        row(
            "chat template",
            "none (ChatML is used for chats, or --chat-template FILE)"
            if c is None
            else f"its own, {c['characters']:,} characters" + (", with tools" if c["knows_tools"] else ""),
        )
    if (t := facts.get("trainable")) is not None:
        _training_rows(t, row)
    if (a := facts.get("adapter")) is not None:
        row(
            "LoRA",
            f"rank {a['rank']}, alpha {a['alpha']:g}, scale {a['scale']:g}"
            f"{' (rsLoRA)' if a['rslora'] else ''}, {a['pairs']} pairs",
        )
        row(
            "base", (a["base_name"] or "not named") + (f", sha256 {a['base_sha256'][:16]}…" if a["base_sha256"] else "")
        )
        row("chat template", "the one used in training" if a["chat_template"] else "none")
    return "\n".join(lines)


def _training_rows(t: dict[str, Any], row: Any) -> None:
    if not t["ok"]:
        row("training", f"not possible: {t['reason']}")
        return
    row("trainable", ", ".join(m["name"] for m in t["modules"]) + "   (--lora-modules; all = every layer's)")
    row(
        "LoRA",
        f"rank {t['rank']} on all: {quantity(t['lora_parameters'])} parameters in {t['lora_tensors']} pairs, "
        f"{bytes_text(4 * t['lora_parameters'])} as a file",
    )
    if t["expert_parameters"]:
        row("", f"with all,experts: {quantity(t['expert_parameters'])} parameters more, a pair for each expert")
    e = t["training"]
    row(
        "memory",
        e["text"]
        if e["peak_bytes"] is None
        else f"about {bytes_text(e['peak_bytes'])} to train at -ub {e['ubatch']}; {e['text']}",
    )
