"""Work that the command line does, as its arguments: what a page asks for is turned into one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.train.run_folder import plain


def verify(model: str, adapter: Path) -> list[str]:
    """llama.cpp against our reference engine, as `anytune verify` does."""
    return ["verify", "-m", model, "--lora", str(adapter), "--json"]


def distill(model: str, data: Path, system: Path, made: Path, rank: int, context: int) -> list[str]:
    """`anytune adapt distill`: what the model says behind a system message, as an adapter, without gradients."""
    return [
        "adapt",
        "distill",
        "-m",
        model,
        "-f",
        str(data),
        "--system-file",
        str(system),
        "-o",
        str(made),
        "--rank",
        str(rank),
        "-c",
        str(context),
        "--json",
    ]


def export(
    form: str, model: str, weights: list[tuple[Path, float]], target: Path, name: str, kind: str | None
) -> tuple[list[str], str]:
    """(arguments, name of what is made in `target`). Raises UserError if something of that name is there."""
    name = plain(name)
    loras = [
        word
        for path, weight in weights
        for word in (("--lora", str(path)) if weight == 1 else ("--lora-scaled", f"{path}:{weight:g}"))
    ]
    made = {
        "gguf": f"{name}.gguf",
        "merged": f"{name}-merged.gguf",
        "peft": f"{name}-peft",
        "ollama": f"{name}-ollama",
        "lmstudio": name,
    }[form]
    if form != "lmstudio" and (target / made).exists():
        raise UserError(f"{made} already exists: choose another name, or remove it first.")
    words = ["export", "merge" if form == "merged" else form, "-m", model, *loras, "--json"]
    if form == "lmstudio":
        words += ["-o", str(target), "--publisher", "anytune", "--name", name]
    else:
        words += ["-o", str(target / made)]
    if form == "ollama":
        words.append("--accept-differences")  # the differences are in the job's log
    if form == "peft":
        words.append("--no-verify")  # it would need transformers, and the model in float32
    if kind is not None and form in ("merged", "ollama", "lmstudio"):
        words += ["--type", kind]
    return words, made


def evaluate(
    report: str, model: str, adapters: list[tuple[str, Path]], data: Path, made: Path, options: dict[str, Any]
) -> list[str]:
    """`anytune evaluate compare` or `style`, or `perplexity`, on a data set's file."""
    if report == "perplexity":
        return [
            "perplexity",
            "-m",
            model,
            "-f",
            str(data),
            "--json",
            *(("--lora", str(adapters[0][1])) if adapters else ()),
        ]
    words = ["evaluate", report, "-m", model, "-f", str(data), "-o", str(made), "--json"]
    for name, path in adapters:
        words += ["--lora", f"{plain(name)}={path}"]
    for flag, key in (("--limit", "limit"), ("-n", "max_tokens")):
        if options.get(key):
            words += [flag, str(int(options[key]))]
    return words
