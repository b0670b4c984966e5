"""What a command does to files or measures of a model, as one call each: merge, export, quantize, verify, perplexity,
evaluate. (load is in hub/load.py, finetune in train/api.py, generate in generation/public.py.)"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from anytune.adapter.resolve import AdapterLike, resolve
from anytune.arguments import between, public
from anytune.errors import UserError
from anytune.files import check_output

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model

FilePath = str | os.PathLike
FORMATS = ("gguf", "peft", "hf", "mlx", "ollama")
_SAME = {"lora": "adapter", "outtype": "type", "kind": "type"}


@public({"source": "model", "target": "output", "kind": "type", "allow_requantize": "requantize"})
def quantize(
    model: FilePath,
    output: FilePath | None,
    type: str,
    *,
    imatrix: FilePath | None = None,
    tensor_types: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    pure: bool = False,
    requantize: bool = False,
    threads: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write a GGUF file in another type, such as "Q4_K_M": `anytune.quantize("f16.gguf", "q4.gguf", "Q4_K_M")`.

    output None only tells what each tensor would become. imatrix: importances, from `anytune imatrix`. tensor_types:
    {regular expression of tensors' names: type}. requantize: allow what is quantized already to be rounded again.
    Returns facts: tensors, bytes_before, bytes_after, bits_per_weight. Raises UserError.
    """
    from anytune.hub.pull import local
    from anytune.quantization.run import quantize as run

    source = local(os.fspath(model))
    if not source.is_file():
        raise UserError(f"There is no model file {source}: check the path.")
    check_output(output, force, [("the model", source), ("the importance file", imatrix)])
    overrides = list(tensor_types.items()) if isinstance(tensor_types, Mapping) else list(tensor_types)
    return run(
        source, output, type, imatrix=imatrix, overrides=overrides, pure=pure, requantize=requantize, threads=threads
    )


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
    check_output(target, force, [*_read(opened, adapter), ("the importance file", imatrix)])
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
        raise UserError(f"type is of merged models, and format={format!r} writes the adapter as it is: leave it out.")
    if format == "gguf" and not str(output).lower().endswith(".gguf"):
        raise UserError(f"output {output} must end in .gguf, as format='gguf' writes a file.")
    opened, pair = _pair(model, adapter)
    target = Path(output)
    check_output(target, force, _read(opened, adapter), folder=format != "gguf")
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
    from anytune.export.folder import new_folder
    from anytune.export.ollama import modelfile
    from anytune.export.packages import chat_parts, default_name

    template, stops, remarks = chat_parts(opened, pair, system, accept_differences=accept_differences)
    name = f"{default_name(opened)}.gguf"
    with new_folder(target, force=force) as made:
        facts = _merged(opened, pair, made / name, kind, 0.05, None, None)
        (made / "Modelfile").write_text(modelfile(f"./{name}", template=template, stops=stops, system=system), "utf-8")
    return {**facts, "path": str(target), "template": template, "stops": stops, "remarks": remarks}


@public({"lora": "adapter"})
def verify(
    model: Model | FilePath,
    adapter: AdapterLike = None,
    *,
    text: str | None = None,
    positions: int = 12,
    exact: bool = False,
    threads: int | None = None,
) -> dict[str, Any]:
    """Compare model and adapter with llama.cpp, which loads the same files: `anytune.verify(model, run)["ok"]`.

    text: what the next-token distributions are taken from, at so many positions. exact: llama.cpp gets the weights in
    float32, and the limit is KL 1e-5 instead of 1e-2, which is its 8-bit rounding of activations. Returns facts: ok,
    base, with_adapter, change. Raises UserError, also where llama.cpp is not installed.
    """
    from anytune.llamacpp.judge import available
    from anytune.llamacpp.verify import verify as run

    if not available():
        raise UserError("llama.cpp is not here to compare with: install it with `pip install xllamacpp`.")
    between(1, 4096, positions=positions)
    between(1, 1024, threads=threads)
    opened = _opened(model)
    given = adapter if isinstance(adapter, str | os.PathLike) else resolve(adapter, opened.gguf)
    return run(opened, given, text=text, positions=positions, exact=exact, threads=threads)


@public({"lora": "adapter", "ctx_size": "context", "batch_size": "batch"})
def perplexity(
    model: Model | FilePath,
    text: str,
    adapter: AdapterLike = None,
    *,
    context: int | None = None,
    chunks: int | None = None,
    batch: int = 2048,
) -> dict[str, Any]:
    """Perplexity of a text by llama.cpp's method: `anytune.perplexity(model, open("text.txt").read())["perplexity"]`.

    The text (not the name of a file) is cut into windows of `context` tokens (None: 512, or what the model can take),
    `chunks` of them at most, and the second half of each is scored. batch: tokens run at once. Returns facts:
    perplexity, uncertainty, loss (nats a token), tokens, windows, context. Raises UserError.
    """
    from anytune.likelihood import perplexity as run

    between(1, chunks=chunks, batch=batch)
    between(2, context=context)
    opened = _opened(model)
    return run(opened, text, resolve(adapter, opened.gguf), context=context, chunks=chunks, batch=batch)


@public({"lora": "adapters", "adapter": "adapters", "prompts": "data", "max_new_tokens": "max_tokens"})
def evaluate(
    model: Model | FilePath,
    adapters: AdapterLike | Mapping[str, AdapterLike],
    data: FilePath | Iterable,
    *,
    measure: Literal["compare", "style"] = "compare",
    max_tokens: int = 256,
    limit: int | None = None,
    batch: int = 8,
    report: FilePath | Sequence[FilePath] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Let model and adapters answer held-out prompts: `anytune.evaluate(model, run, "heldout.jsonl")["to_reference"]`.

    adapters: one, or {name: adapter}. data: prompts with or without answers, as a file or an iterable of dicts, of
    which `limit` are taken. measure: compare, how near answers are to the references and to the base's; style, how near
    they come to an author. report: .html or .json files to write. Answers are greedy, `batch` at once. Returns facts.
    Raises UserError.
    """
    from anytune.evaluation import compare, compare_report, style, style_report
    from anytune.evaluation.prompts import read_prompts
    from anytune.evaluation.report import check_path, write
    from anytune.text.given import sources

    between(1, limit=limit, batch=batch, max_tokens=max_tokens)
    opened = _opened(model)
    named = adapters if isinstance(adapters, Mapping) else {"adapter": adapters}
    places = [check_path(place) for place in ([report] if isinstance(report, str | os.PathLike) else report)]
    for place in places:
        check_output(place, force, [*_read(opened, list(named.values())), *_paths("the prompts", [data])])
    sides = {name: adapter for name, one in named.items() if (adapter := resolve(one, opened.gguf)) is not None}
    if not sides:
        raise UserError("There is nothing to compare the base with: adapters names none.")
    given = sources(data)
    if len(given) != 1:
        raise UserError("evaluate() takes one file of prompts, or an iterable of dicts.")
    run, page = (compare.compare, compare_report) if measure == "compare" else (style.style, style_report)
    prompts = read_prompts(given[0], limit=limit)
    facts = run(opened, prompts, sides, name=str(given[0]), max_tokens=max_tokens, batch=batch)
    for place in places:
        write(place, page.report(facts))
    return facts


def _opened(model: Any) -> Model:
    if isinstance(model, str | os.PathLike):
        from anytune.hub.load import load

        return load(model, device="cpu")  # the reference engine, in float32: the judges' limits are its
    if not hasattr(model, "gguf") or not hasattr(model, "logits"):
        raise UserError(f"model is a {type(model).__name__}: give what anytune.load returns, or takes.")
    return model


def _pair(model: Any, adapter: AdapterLike) -> tuple[Model, Adapter]:
    opened = _opened(model)
    pair = resolve(adapter, opened.gguf)
    if pair is None:
        raise UserError("There is no adapter to export: give an Adapter, the path of one, or a Run.")
    return opened, pair


def _read(opened: Model, adapter: AdapterLike) -> list[tuple[str, Any]]:
    """What is read, as spare_inputs takes it."""
    adapters = adapter if isinstance(adapter, list | tuple) else [adapter]
    return [("the model", opened.gguf.path), *_paths("an adapter", adapters)]


def _paths(what: str, given: Iterable[Any]) -> list[tuple[str, Any]]:
    return [(what, part) for part in given if isinstance(part, str | os.PathLike)]
