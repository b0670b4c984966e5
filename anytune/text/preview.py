"""What the model will see of a data set, token by token: as data, and as coloured text for a terminal."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anytune.text.dataset import Dataset, beyond
from anytune.text.reading import check_once

_LOSS, _PLAIN, _OFF = ("\x1b[30;42m", "\x1b[30;102m"), ("\x1b[2m", "\x1b[0m"), "\x1b[0m"


LEGEND = {  # with colour, and without
    True: "green: learned; plain: context only; shades separate tokens; \\n: newline",
    False: "[…]: learned; outside: context only; | separates tokens; \\n: newline",
}


@dataclass(frozen=True)
class Preview:
    """examples: [{index, where, tokens: [(text, id, loss)]}]; counts: of the whole data set; template: its
    origin.
    """

    examples: list[dict[str, Any]]
    counts: dict[str, Any]
    template: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "template": self.template,
            "counts": self.counts,
            "examples": [
                {**e, "tokens": [{"text": t, "id": i, "loss": loss} for t, i, loss in e["tokens"]]}
                for e in self.examples
            ],
        }


def preview(
    model: str | Path,
    paths,
    *,
    examples: int = 3,
    skip: int = 0,
    chat_template: str | Path | None = None,
    context: int = 512,
    **options: Any,
) -> Preview:
    """Read a GGUF file's tokenizer and template (not its weights) and show `examples` of a data set.

    options: those of build_dataset. Raises UserError as it does.
    """
    from anytune.gguf import GGUF
    from anytune.text import ChatTemplate, Tokenizer, build_dataset

    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    check_once(given if chat_template is None else [*given, chat_template])
    with GGUF.open(model) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
        template = ChatTemplate.for_model(gguf, tokenizer, file=chat_template)
        limit = gguf.metadata.get(f"{gguf.metadata.get('general.architecture')}.context_length")
    data = build_dataset(paths, tokenizer, template, context=context, **options)
    if isinstance(limit, int | np.integer) and (sentence := beyond([data], int(limit))):
        data.report["notes"].append(sentence)
    shown = range(min(skip, len(data)), min(skip + examples, len(data)))
    return Preview([example_tokens(data, tokenizer, i) for i in shown], counts(data), template.origin)


def example_tokens(data: Dataset, tokenizer, index: int) -> dict[str, Any]:
    """{index, where, tokens: [(text, id, loss)]} of one example; bytes that are no UTF-8 are escaped."""
    ids, loss = data.example(index)
    tokens = [
        (tokenizer.piece(i).decode("utf-8", "backslashreplace"), i, bool(on))
        for i, on in zip(ids.tolist(), loss, strict=True)
    ]
    return {"index": index, "where": data.where(index), "tokens": tokens}


def counts(data: Dataset) -> dict[str, Any]:
    """Examples, tokens, loss tokens, the longest example, and the report of reading."""
    return {
        "examples": len(data),
        "tokens": data.tokens,
        "loss_tokens": data.loss_tokens,
        "longest": int(data.lengths.max(initial=0)),
        "report": data.report,
    }


def render(tokens: list[tuple[str, int, bool]], colour: bool = True) -> str:
    """Tokens in a row: learned ones green, neighbours in two shades; without colour learned runs in
    [brackets], see LEGEND. A line ends behind a token with a line end, never inside of one, and behind its mark.
    """
    out, before = [], False
    for number, (text, _, loss) in enumerate(tokens):
        visible = "".join(c if c.isprintable() else "\\n" if c == "\n" else _escaped(c) for c in text)
        after = number + 1 < len(tokens) and tokens[number + 1][2]
        if colour:
            out.append(f"{(_LOSS if loss else _PLAIN)[number % 2]}{visible}{_OFF}")
        else:
            inner = number and not out[-1].endswith("\n") and before == loss
            out.append(("[" if loss and not before else "|" if inner else "") + visible + ("]" * (loss and not after)))
        if "\n" in text:
            out.append("\n")
        before = loss
    return "".join(out)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
