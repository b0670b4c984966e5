"""What a chat program needs beside the weights: Ollama's folder with a Modelfile, LM Studio's publisher/model/file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from anytune.adapter import Adapter
from anytune.errors import UserError
from anytune.export.chat import stop_texts, take_apart
from anytune.export.ollama import go_template
from anytune.text.chat import ChatTemplate

if TYPE_CHECKING:
    from anytune.model import Model


def chat_parts(model: Model, adapter: Adapter | None) -> tuple[str | None, list[str], str | None]:
    """(the chat template in Go's language or None, texts that end an answer, a remark or None).

    The template is the adapter's, if it was trained with one, else the model's.
    """
    source = adapter.chat_template if adapter is not None and adapter.chat_template else None
    source = source or model.gguf.metadata.get("tokenizer.chat_template")
    if not isinstance(source, str) or not source.strip():
        return None, [], "the model has no chat template, so the Modelfile has none: Ollama continues texts with it"
    template = ChatTemplate(source, model.tokenizer)
    stops = stop_texts(template, model.tokenizer)
    made = take_apart(template, model.tokenizer)
    if made is None:
        return None, stops, ("the chat template is not regular enough to be put into Ollama's language: the Modelfile "
                             "leaves it to Ollama, which knows the usual ones by itself")
    remark = None
    if "strftime_now" in source:
        remark = "the chat template tells the date: in the Modelfile it stays today's"
    return go_template(made), stops, remark


def plain_name(text: str) -> str:
    """A name that file systems and both programs take: letters, digits, dots, dashes. UserError if nothing is left."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
    if not found:
        raise UserError(f"{text!r} has no letters or digits that a model's name could be made of: give --name.")
    return found


def default_name(model: Model) -> str:
    return plain_name(Path(model.gguf.path).stem) + "-merged"
