"""What a chat program needs beside the weights: Ollama's folder with a Modelfile, LM Studio's publisher/model/file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.export.chat import differences, stop_texts, take_apart
from anytune.export.ollama import go_template
from anytune.text.chat import ChatTemplate
from anytune.text.served import own_template

if TYPE_CHECKING:
    from anytune.model import Model


def chat_parts(
    model: Model,
    adapter: Adapter | None,
    system: str | None = None,
    needed: bool = True,
    accept_differences: bool = False,
) -> tuple[str | None, list[str], list[str]]:
    """(the chat template in Go's language or None, texts that end an answer, remarks).

    The template is the adapter's, if it was trained with one, else the model's. system: what the Modelfile is to say as
    SYSTEM. Raises UserError if the template cannot be said in Go's language, unless needed is False, or has no place
    for `system`, or does what that language cannot say, unless those differences are accepted: they are the
    remarks then.
    """
    source = adapter.chat_template if adapter is not None and adapter.chat_template else None
    source = source or own_template(model.gguf.metadata)
    if source is None:
        return (
            None,
            [],
            ["the model has no chat template, so neither has the Modelfile: Ollama only continues text with it"],
        )
    template = ChatTemplate(source, model.tokenizer)
    stops = stop_texts(template, model.tokenizer)
    made = take_apart(template, model.tokenizer)
    if made is None or not needed:
        if needed:
            raise UserError(
                "The chat template cannot be translated to Ollama's template language exactly, so the model would "
                "get different prompts than in training. --no-template leaves it to Ollama, which knows the "
                "common templates."
            )
        return (
            None,
            stops,
            [
                "the Modelfile has no TEMPLATE: Ollama looks for a known one, which may differ from the one used "
                "in training"
            ],
        )
    if system is not None and made.system is None:
        raise UserError(
            "--system: the chat template has no place for a system message that Ollama can express: omit it."
        )
    remarks = differences(made, template)
    if remarks and not accept_differences:
        raise UserError(
            f"Ollama's template language cannot express everything in this chat template: {'; '.join(remarks)}. "
            "--accept-differences writes the rest, --no-template leaves the prompt to Ollama."
        )
    said = "Ollama's template renders what the model's does, except: "
    return go_template(made), stops, [said + remark for remark in remarks]


def plain_name(text: str) -> str:
    """A name that file systems and both programs take: letters, digits, dots, dashes. UserError if nothing is left."""
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
    if not found:
        raise UserError(f"{text!r} has no letters or digits for a model name: give --name.")
    return found


def default_name(model: Model) -> str:
    return plain_name(Path(model.gguf.path).stem) + "-merged"
