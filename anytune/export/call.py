"""merge() and export() as Python calls them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anytune.adapter.resolve import AdapterLike, resolve
from anytune.arguments import public
from anytune.errors import UserError
from anytune.files import check_output
from anytune.folder import new_folder
from anytune.hub.load import opened_model, read_files

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

FilePath = str | os.PathLike
_SAME = {"lora": "adapter", "outtype": "type", "kind": "type"}


@public(_SAME)
def merge(
    model: Model | FilePath,
    adapter: AdapterLike,
    output: FilePath,
    *,
    type: str = "auto",
    tolerance: float = 0.05,
    text: str | None = None,
    imatrix: FilePath | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write model and adapter as one GGUF file: `anytune.merge(model, "mine.gguf", "merged.gguf")`.

    type: auto takes the model's own types if they hold the adapter, else the smallest that do, by the KL divergence to
    the pair on `text` (a short built-in one by default), of which `tolerance` is allowed, as a share of what the
    adapter moves; same: the model's own; or a type of quantize. Returns facts of what was written: type, bytes, error
    (of the weights), kept (the share of the adapter's change), kl, same_top. Raises UserError.
    """
    opened, pair = _pair(model, adapter)
    target = Path(output)
    check_output(target, force, [*read_files(opened, adapter), ("the importance file", imatrix)])
    return _merged(opened, pair, target, type, tolerance, text, imatrix)


def _merged(opened: Model, pair: Adapter, target: Path, kind: str, tolerance: float, text: Any, imatrix: Any) -> dict:
    from anytune.export.distance import Served
    from anytune.export.merge import Merge, candidates
    from anytune.model.model import load

    job = Merge(opened.gguf, pair, lambda path: load(path, device="cpu"), imatrix=imatrix)
    auto = kind == "auto"
    kinds = candidates(opened.gguf, None if auto else [kind])
    with Served(opened, pair, text, chunks=16) as served:
        moved = served.distance(opened)["kl"]
        rows = job.choose(target, kinds, served, tolerance * moved if auto else float("inf"))
    return {**next(row for row in rows if row["taken"]), "adapter_kl": moved, "path": str(target)}


@public(_SAME)
def export(
    model: Model | FilePath,
    adapter: AdapterLike,
    output: FilePath,
    *,
    format: Literal["gguf", "peft", "hf", "mlx", "ollama"] = "gguf",
    type: str | None = None,
    system: str | None = None,
    accept_differences: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write a trained model for another program: `anytune.export(model, run, "mine-peft", format="peft")`.

    format: gguf and peft, the adapter alone, for llama.cpp and transformers; hf and mlx, the merged model as a folder;
    ollama, a folder that `ollama create` takes. type: bf16, f16 or f32 of hf and mlx, of ollama what merge() takes.
    system: the system message of ollama's; accept_differences: write its template also where Ollama's language cannot
    say all of the model's. Returns facts, with path. Raises UserError.
    """
    if type is not None and format in ("gguf", "peft"):
        raise UserError(
            f"type applies to merged models, but format={format!r} writes the adapter unchanged: omit type."
        )
    if format == "gguf" and not str(output).lower().endswith(".gguf"):
        raise UserError(f"output {output} must end in .gguf, as format='gguf' writes a file.")
    opened, pair = _pair(model, adapter)
    target = Path(output)
    check_output(target, force, read_files(opened, adapter), folder=format != "gguf")
    if format in ("gguf", "peft"):
        pair.save(target, opened.gguf)
        return {"path": str(target), "tensors": len(pair.tensors), "rank": pair.rank, "alpha": pair.alpha}
    if format in ("hf", "mlx"):
        from anytune.export.huggingface import save

        return {**save(opened.gguf, pair, target, dtype=(type or "bf16").lower(), force=force), "path": str(target)}
    return _ollama(opened, pair, target, type or "auto", system, accept_differences, force)


def _ollama(
    opened: Model, pair: Adapter, target: Path, kind: str, system: str | None, accept_differences: bool, force: bool
) -> dict:
    from anytune.export.ollama import modelfile
    from anytune.export.packages import chat_parts, default_name

    template, stops, remarks = chat_parts(opened, pair, system, accept_differences=accept_differences)
    name = f"{default_name(opened)}.gguf"
    with new_folder(target, force=force) as made:
        facts = _merged(opened, pair, made / name, kind, 0.05, None, None)
        (made / "Modelfile").write_text(modelfile(f"./{name}", template=template, stops=stops, system=system), "utf-8")
    return {**facts, "path": str(target), "template": template, "stops": stops, "remarks": remarks}


def _pair(model: Any, adapter: AdapterLike) -> tuple[Model, Adapter]:
    opened = opened_model(model, "cpu")  # the reference engine, in float32: the judges' limits are its
    pair = resolve(adapter, opened.gguf)
    if pair is None:
        raise UserError("There is no adapter to export: give an Adapter, the path of one, or a Run.")
    return opened, pair
