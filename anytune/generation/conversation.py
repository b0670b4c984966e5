"""A conversation with a model: its cache keeps what prompts share, so that a turn feeds only what is new."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from anytune.adapter.resolve import AdapterLike, resolve
from anytune.arguments import between, public
from anytune.errors import UserError
from anytune.generation.generate import Reply, decode
from anytune.generation.prompts import Message, context_length, prompt_ids, template_of
from anytune.generation.public import stops, template_of_file
from anytune.generation.sampling import SYNONYMS, Sampling

if TYPE_CHECKING:
    from anytune.model import Model
    from anytune.text import ChatTemplate


class Conversation:
    """Turns of a chat. messages: the list so far; say(text) streams the answer and remembers both.

    forgotten: messages dropped so far because the context was full (the oldest first, never the system's).
    """

    @public(SYNONYMS | {"max_new_tokens": "max_tokens", "sampling": "how", "lora": "adapter"})
    def __init__(
        self,
        model: Model,
        adapter: AdapterLike = None,
        *,
        system: str | None = None,
        template: ChatTemplate | str | os.PathLike | None = None,
        how: Sampling | None = None,
        max_tokens: int = -1,
        stop: str | Sequence[str] = (),
        context: int | None = None,
        temperature: float = 0.8,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        repeat_penalty: float = 1.0,
        repeat_last_n: int = 64,
        seed: int | None = None,
    ):
        """adapter: what generate() takes. max_tokens: of an answer; negative: until it ends. how: a Sampling, in place
        of temperature and so on."""
        between(1, context=context)
        adapter = resolve(adapter, model.gguf)
        self.model, self.adapter, self.template = model, adapter, template_of_file(template, model)
        how = how or Sampling(temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, seed)
        self.how, self.max_tokens, self.stop = how, max_tokens, stops(stop)
        self.decoder = model.decoder(adapter=adapter, batch=1, context=context or context_length(model))
        self.held: list[int] = []  # the tokens whose keys and values the decoder holds
        self.system, self.messages, self.forgotten = system, [], 0
        self.last: Reply | None = None

    @property
    def used_template(self) -> ChatTemplate:
        """The chat template that every turn goes through."""
        return template_of(self.model, self.adapter, self.template)

    def reset(self, system: str | None = None) -> None:
        """Forget every turn; a new system message may be given, "" removes it."""
        self.messages, self.forgotten = [], 0
        if system is not None:
            self.system = system or None

    def ask(self, text: str) -> str:
        """The whole answer to `text`."""
        return "".join(self.say(text))

    def say(self, text: str) -> Iterator[str]:
        """Stream the answer to `text`. Stopped half-way (Ctrl-C), what was said so far is the answer."""
        messages, ids = self._fitted([*self.messages, {"role": "user", "content": text}])
        self.forgotten += len(self.messages) + 1 - len(messages)
        self.messages = messages
        keep = common_prefix(self.held, ids)
        self.decoder.truncate(0, min(keep, len(ids) - 1))
        self.held = ids[: self.decoder.lengths[0]]
        replies: list[Reply] = []
        try:
            for _, piece in decode(
                self.decoder,
                self.model.tokenizer,
                [ids],
                self.how,
                replies=replies,
                max_tokens=self.max_tokens,
                stop=self.stop,
            ):
                yield piece
        finally:
            self.last = replies[0] if replies else Reply(ids)
            self.held = (ids + self.last.ids)[: self.decoder.lengths[0]]
            self.messages.append({"role": "assistant", "content": self.last.text})

    def _fitted(self, messages: list[Message]) -> tuple[list[Message], list[int]]:
        """(messages, their tokens), without the oldest turns until a quarter of the context is free."""
        while True:
            system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
            ids = prompt_ids(self.model, system + messages, adapter=self.adapter, template=self.template)
            if len(ids) <= self.decoder.context * 3 // 4 or len(messages) == 1:
                break
            messages = messages[min(2, len(messages) - 1) :]
        if len(ids) >= self.decoder.context:
            raise UserError(
                f"The message has {len(ids)} tokens but the context holds {self.decoder.context}: shorten it or "
                "raise -c."
            )
        return messages, ids


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n
