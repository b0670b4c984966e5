"""anytune serve: OpenAI's API over a model and its adapters."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import click

from anytune.cli.command import Command
from anytune.cli.opening import load_model, model_path, template_file
from anytune.cli.options import model_options, template_option
from anytune.cli.say import note
from anytune.errors import UserError


CPU = ("numpy", "cpu", "cpu-bf16", "fpga-sim")


@click.command(
    cls=Command,
    short_help="Serve a model and its adapters with OpenAI's API.",
    example="""
    anytune serve -m model.gguf --lora mails.gguf --lora poems=runs/poems/adapter.gguf
    anytune serve -m model.gguf --run runs/2026-11-30-mails --port 8081
""",
)
@model_options
@click.option(
    "--lora",
    "adapters",
    multiple=True,
    metavar="[NAME=]FILE",
    help="An adapter (GGUF or peft folder), served as base:NAME; NAME defaults to the file's, without its suffix. "
    "May be repeated.",
)
@click.option(
    "--run",
    "runs",
    multiple=True,
    metavar="[NAME=]FOLDER",
    help="A run folder: its newest checkpoint is served as base:NAME (default: base:run), also while it trains. "
    "May be repeated.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="The address to listen on. If others can reach it, requests need an API key.  [env of the key: "
    "ANYTUNE_API_KEY]",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="The port; 0: any free one."
)
@click.option(
    "--backend",
    type=click.Choice(["auto", "llama.cpp", "anytune"]),
    default="auto",
    show_default=True,
    help="Backend. auto: llama.cpp on a CPU if it is installed, else anytune's own engines (--device).",
)
@click.option(
    "--parallel",
    "-np",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    metavar="N",
    help="Answers generated at once; further requests wait.",
)
@click.option(
    "-c",
    "--ctx-size",
    "--context",
    "context",
    type=click.IntRange(1),
    metavar="N",
    help="Context in tokens, for prompt and answer together.  [default: the model's, at most 4096]",
)
@template_option
@click.option(
    "--lora-dir",
    "folders",
    multiple=True,
    metavar="FOLDER",
    help="Folder from which requests may load adapters. May be repeated.  [default: anywhere; nowhere if others "
    "can reach the server]",
)
@click.option("--tls", is_flag=True, help="Serve HTTPS with a self-signed certificate.")
@click.option(
    "--allow-host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="An additional host name, such as a proxy's. May be repeated.",
)
def serve(
    model: str,
    engine: dict,
    adapters: tuple[str, ...],
    runs: tuple[str, ...],
    host: str,
    port: int,
    backend: str,
    parallel: int,
    context: int | None,
    chat_template: str | None,
    folders: tuple[str, ...],
    tls: bool,
    hosts: tuple[str, ...],
) -> None:
    """Serve OpenAI's API (chat, completions, embeddings) for a model and its adapters.

    The model is called base, an adapter base:NAME. Adapters can be loaded and unloaded while it runs, and requests for
    different adapters run side by side; one adapter's KV cache is never used for another. Ctrl-C stops it.
    """
    from anytune.serve.launch import KEY, Options, launch

    named = tuple(_named(given, Path(_file(given)).name.removesuffix(".gguf")) for given in adapters)
    watched = tuple(_named(given, "run") for given in runs)
    names = [name for name, _ in named + watched]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two adapters would be called {name!r}: name them, as in --lora {name}2=FILE.")
    for flag, places in (("--run", [place for _, place in watched]), ("--lora-dir", map(Path, folders))):
        for place in places:
            if not place.expanduser().is_dir():
                raise UserError(f"{flag} {place}: there is no such folder.")
    own = engine["device"] not in ("auto", "cpu")
    on_cpu = engine["device"] == "cpu" or engine["ngl"] == "0"
    if backend == "auto" and (own or not on_cpu and _has_gpu()):
        backend = "anytune"
    if backend == "llama.cpp" and own:
        raise UserError("--device selects one of anytune's own engines: omit --backend llama.cpp.")
    o = Options(
        model_path(model),
        named,
        watched,
        host,
        port,
        tls,
        hosts,
        tuple(map(Path, folders)),
        os.environ.get(KEY) or None,
        backend,
        parallel,
        context,
        None if chat_template is None else template_file(chat_template),
    )
    launch(o, functools.partial(load_model, model, engine), engine["threads"], click.echo, note)


def _file(given: str) -> str:
    name, equals, path = given.partition("=")
    return path if equals and not Path(given).exists() else given


def _named(given: str, default: str) -> tuple[str, Path]:
    path = _file(given)
    name = given.partition("=")[0] if path != given else default
    return name, Path(path).expanduser()


def _has_gpu() -> bool:
    """Whether --device auto would take a GPU."""
    from anytune.engine.devices import choose

    return choose().partition(":")[0] not in CPU
