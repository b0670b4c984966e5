"""What a command does to files or measures of a model, as one call each: quantize, verify, perplexity, evaluate. (load
is in hub/load.py, finetune in train/api.py, merge and export in export/call.py, generate in generating.py.)"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from anytune.adapter.resolve import AdapterLike, resolve
from anytune.arguments import between, public
from anytune.errors import UserError
from anytune.files import check_output
from anytune.hub.load import given_files, opened_model, read_files

if TYPE_CHECKING:
    from anytune.model import Model

FilePath = str | os.PathLike


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

    Computed on the float32 reference engine, whichever one the model is on. text: what the next-token distributions
    are taken from, at so many positions. exact: llama.cpp gets the weights in float32, and the limit is KL 1e-5 instead
    of 1e-2, which allows for its 8-bit rounding of activations; where that is larger the comparison is made in float32
    too. Returns facts: ok, base, with_adapter, change. Raises UserError, also where llama.cpp is not installed.
    """
    from anytune.llamacpp.judge import need_llamacpp
    from anytune.llamacpp.verify import on_reference, verify_then_exact

    need_llamacpp()
    between(1, 4096, positions=positions)
    between(1, 1024, threads=threads)
    opened = opened_model(model, "cpu")
    given = adapter if isinstance(adapter, str | os.PathLike) else resolve(adapter, opened.gguf)
    with on_reference(opened) as reference:
        return verify_then_exact(reference, given, text=text, positions=positions, exact=exact, threads=threads)


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
    opened = opened_model(model, "cpu")
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
    opened = opened_model(model, "cpu")
    named = adapters if isinstance(adapters, Mapping) else {"adapter": adapters}
    places = [check_path(place) for place in ([report] if isinstance(report, str | os.PathLike) else report)]
    for place in places:
        check_output(place, force, [*read_files(opened, list(named.values())), *given_files("the prompts", [data])])
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
