"""generate() and stream() of an open model: every argument by name, checked; an adapter as it is at hand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from anytune.adapter.resolve import AdapterLike, resolve
from anytune.arguments import public, speaking_python
from anytune.generation import generate as decoding
from anytune.generation.sampling import SYNONYMS as OF_SAMPLING
from anytune.generation.sampling import Sampling

if TYPE_CHECKING:
    from anytune.model import Model
    from anytune.text import ChatTemplate

SYNONYMS = OF_SAMPLING | {
    "max_new_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "lora": "adapter",
    "stop_strings": "stop",
    "chat_template": "template",
}


Prompt = str | Sequence[Mapping[str, Any]] | Sequence[int]  # text, a conversation, token ids: one answer


class Turns(TypedDict, total=False):
    """The keywords of Conversation, for type checkers."""

    max_tokens: int
    system: str | None
    stop: str | Sequence[str]
    template: ChatTemplate | str | os.PathLike | None
    context: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    repeat_last_n: int
    seed: int | None


class Options(Turns, total=False):
    """Those of generate() and stream()."""

    chat: bool | None


@public(SYNONYMS)
def generate(
    model: Model,
    prompt: str | Sequence,
    adapter: AdapterLike = None,
    *,
    max_tokens: int = 256,
    chat: bool | None = None,
    system: str | None = None,
    stop: str | Sequence[str] = (),
    template: ChatTemplate | str | os.PathLike | None = None,
    context: int | None = None,
    temperature: float = 0.8,
    top_k: int = 40,
    top_p: float = 0.95,
    min_p: float = 0.05,
    repeat_penalty: float = 1.0,
    repeat_last_n: int = 64,
    seed: int | None = None,
) -> Any:
    """The model's answer: str to one prompt, a list of str to a list of texts, which are decoded together.

    prompt: text; a conversation, dicts with role and content; or token ids.
    adapter: an Adapter, the path of one, a Run, or a list of these, which add up. max_tokens: negative: until the end
    of turn. chat: True: text is a user's message; False: raw text; None: a message where the model has a chat template.
    stop: texts that end the answer. template: a ChatTemplate or a Jinja file. context: tokens of prompt and answer.
    Sampling as in llama.cpp: temperature 0 takes the likeliest token; seed None is a fresh one. Raises UserError.
    """
    how = Sampling(temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed)
    many = not isinstance(prompt, str) and bool(prompt) and all(isinstance(p, str) for p in prompt)
    replies = decoding.complete(
        model,
        list(prompt) if many else [prompt],
        resolve(adapter, model.gguf),
        how=how,
        max_tokens=max_tokens,
        stop=stops(stop),
        context=context,
        chat=chat,
        system=system,
        template=template_of_file(template, model),
    )
    texts = [reply.text for reply in replies]
    return texts if many else texts[0]


@public(SYNONYMS)
def stream(
    model: Model,
    prompt: str | Sequence,
    adapter: AdapterLike = None,
    *,
    max_tokens: int = 256,
    chat: bool | None = None,
    system: str | None = None,
    stop: str | Sequence[str] = (),
    template: ChatTemplate | str | os.PathLike | None = None,
    context: int | None = None,
    temperature: float = 0.8,
    top_k: int = 40,
    top_p: float = 0.95,
    min_p: float = 0.05,
    repeat_penalty: float = 1.0,
    repeat_last_n: int = 64,
    seed: int | None = None,
) -> Iterator[str]:
    """The pieces of one answer as they come; together they are what generate() returns, whose arguments these are."""
    pieces = decoding.stream(
        model,
        prompt,
        resolve(adapter, model.gguf),
        how=Sampling(temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed),
        max_tokens=max_tokens,
        stop=stops(stop),
        context=context,
        chat=chat,
        system=system,
        template=template_of_file(template, model),
    )
    return _spoken(pieces)


def _spoken(pieces: Iterator[str]) -> Iterator[str]:
    with speaking_python():
        yield from pieces


def stops(stop: str | Sequence[str]) -> Sequence[str]:
    return [stop] if isinstance(stop, str) else stop


def template_of_file(template: Any, model: Model) -> ChatTemplate | None:
    if not isinstance(template, str | os.PathLike):
        return template
    from anytune.text import ChatTemplate

    return ChatTemplate.for_model(model.gguf, model.tokenizer, file=Path(template).expanduser())
