"""Prompts to token ids: raw text, or messages rendered by a chat template."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model
    from anytune.text import ChatTemplate, Tokenizer

Message = dict[str, Any]
Prompt = str | Sequence[Message] | Sequence[int]


def wants_chat(model: Model, adapter: Adapter | None = None, template: ChatTemplate | None = None) -> bool:
    """Whether a plain prompt is a user's message: if a chat template was given, or recorded, or is the
    model's own.

    Not with an adapter that was trained here on plain text: see `continues_text`.
    """
    if template is not None or (adapter is not None and adapter.chat_template):
        return True
    return not continues_text(adapter) and model.template.origin != "chatml"


def continues_text(adapter: Adapter | None) -> bool:
    """Whether an adapter was trained on plain text: anytune (which records the base's hash) recorded none."""
    return adapter is not None and not adapter.chat_template and bool(adapter.base_sha256)


def template_of(model: Model, adapter: Adapter | None = None, template: ChatTemplate | None = None) -> ChatTemplate:
    """The template to use: the one given, else the adapter's (it was trained with it), else the model's."""
    if template is not None:
        return template
    if adapter is not None and adapter.chat_template and adapter.chat_template != model.template.source:
        from anytune.text import ChatTemplate

        return ChatTemplate(adapter.chat_template, model.tokenizer)
    return model.template


def prompt_ids(
    model: Model,
    prompt: Prompt,
    *,
    adapter: Adapter | None = None,
    chat: bool | None = None,
    system: str | None = None,
    template: ChatTemplate | None = None,
) -> list[int]:
    """Token ids of a prompt.

    prompt: text; a conversation (dicts with role and content); or token ids, taken as they are.
    chat: True: text is a user's message and goes through the chat template; False: raw text, in which
    control tokens are recognised; None: as `wants_chat` says (much like llama.cpp's own tool).
    """
    if not isinstance(prompt, str):
        items = list(prompt)
        if items and not isinstance(items[0], dict):
            if not all(isinstance(token, numbers.Integral) for token in items):
                raise UserError(
                    f"A prompt is text, dicts with role and content, or token ids: not {prompt!r:.80}, a "
                    f"{type(prompt).__name__} of others."
                )
            return [int(token) for token in items]
    elif not (wants_chat(model, adapter, template) if chat is None else chat):
        if system:
            raise UserError("A system prompt needs the chat template: omit --raw, or put it into the prompt.")
        return model.tokenizer.encode(prompt, special=True, bos=model.tokenizer.add_bos)  # and never EOS
    else:
        items = [{"role": "user", "content": prompt}]
    if system:
        items = [{"role": "system", "content": system}, *items]
    chosen = template_of(model, adapter, template)
    text = chosen.render(items, add_generation_prompt=True)
    return encode_rendered(model.tokenizer, text)


def encode_rendered(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a rendered template; BOS once, whether the template or the model's rules supply it."""
    ids = tokenizer.encode(text, special=True, bos=False)
    if tokenizer.add_bos and tokenizer.bos is not None and ids[:1] != [tokenizer.bos]:
        ids = [tokenizer.bos, *ids]
    return ids


def context_length(model: Model, default: int = 4096) -> int:
    """Tokens that the model was made for, at most `default`: a cache for 128k tokens is rarely meant."""
    length = int(model.gguf.metadata.get(f"{model.gguf.metadata['general.architecture']}.context_length", default))
    return max(1, min(length, default))
