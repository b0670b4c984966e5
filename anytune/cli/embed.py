"""anytune embed: texts as vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from anytune.cli.command import Command
from anytune.cli.opening import load_model, model_path, text_file
from anytune.cli.options import force_option, forced, json_option, model_options
from anytune.cli.say import print_json
from anytune.errors import UserError


@click.command(
    cls=Command,
    short_help="Embed texts with the model's own hidden states.",
    example="""
    anytune embed -m model.gguf -f sentences.txt -o embeddings.npz
    anytune embed -m model.gguf -p "one text" -p "another text" --json
""",
)
@model_options
@click.option(
    "-f",
    "--file",
    "file",
    metavar="FILE",
    help="Texts: one per line, or JSONL records with a prompt, text or messages; - is standard input.",
)
@click.option("-p", "--prompt", "texts", multiple=True, metavar="TEXT", help="A text. May be repeated.")
@click.option(
    "-o", "--output", metavar="FILE", help="Write .npz with `embeddings`, float32 [texts, width], and `texts`."
)
@force_option
@json_option
def embed(
    model: str, engine: dict, file: str | None, texts: tuple[str, ...], output: str | None, as_json: bool
) -> None:
    """Embed each text: the mean over its tokens of the last norm's output, scaled to length 1.

    These are llama.cpp's embeddings with mean pooling. Without -o and --json, the cosine of each pair of texts is
    printed.
    """
    import numpy as np

    from anytune.cli.progress import Progress
    from anytune.evaluation.embeddings import embed as run
    from anytune.evaluation.prompts import read_prompts
    from anytune.files import atomic_write, check_output

    place = Path(output).expanduser() if output else None
    if place is not None:
        if place.suffix.lower() != ".npz":
            raise UserError(f"-o {output} must end in .npz.")
        check_output(place, forced(), [("the model", model_path(model)), ("the file of texts", file)])
    given = list(texts)
    if file is not None:
        given += [prompt.shown for prompt in read_prompts(text_file(file, "text"))]
    if not given:
        raise UserError("There is nothing to embed: give texts with -p or a file with -f.")
    if place is None and not as_json and len(given) < 2:
        raise UserError("There is only one text, so nothing to compare: give -o FILE.npz or --json.")
    loaded = load_model(model, engine)
    with Progress("embedding", "texts", as_json) as progress:
        vectors = run(loaded, given, progress.to)
    if place is not None:
        with atomic_write(place) as out:
            np.savez_compressed(out, embeddings=vectors, texts=np.array(given))
    if as_json:
        results = [{"text": text, "embedding": vector} for text, vector in zip(given, vectors, strict=True)]
        print_json({"width": vectors.shape[1], "results": results})
    elif place is not None:
        click.echo(f"{len(given)} texts x {vectors.shape[1]}\n{place}")
    else:
        _pairs(given, vectors)


def _pairs(texts: list[str], vectors: Any) -> None:
    for a in range(len(texts)):
        for b in range(a + 1, len(texts)):
            click.echo(f"{float(vectors[a] @ vectors[b]):.4f}  {texts[a][:40]!r}  {texts[b][:40]!r}")
