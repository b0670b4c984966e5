"""Text from a model: batches of prompts decoded together, streamed as they come.

The core is `decode`: it knows token ids, a decoder and nothing of prompts. `complete`, `stream` and Conversation
use it; public.py has what Python callers use.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.generation.prompts import Prompt, context_length, prompt_ids
from anytune.generation.sampling import Sampling, reach, sample, sample_listed

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model
    from anytune.model.decoder import Decoder
    from anytune.text import Tokenizer

CHUNK = 256  # prompt tokens fed at once: bounds memory, and Ctrl-C is heard between two of them


@dataclass
class Reply:
    """What came of one prompt.

    finish: "stop" (end of turn, or a stop string), "length" or "context". started: when its prompt was fed, and
    times[i]: when token ids[i] was chosen, both in seconds of time.perf_counter().
    """

    prompt: list[int]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish: str | None = None
    started: float = 0.0
    times: list[float] = field(default_factory=list)


class Writer:
    """One sequence under way: decodes its tokens and holds back what may become a stop string.

    special: whether control tokens are shown by their names (never the one that ends the answer).
    """

    def __init__(self, reply: Reply, tokenizer: Tokenizer, stop: Sequence[str], special: bool = False):
        from anytune.text import StreamDecoder

        self.reply, self.eog, self.stop = reply, tokenizer.eog, [s for s in stop if s]
        self.decoder, self.pending = StreamDecoder(tokenizer, not special), ""

    def add(self, token: int) -> str:
        """Take the next token; returns the text that is certain now."""
        self.reply.ids.append(token)
        self.reply.times.append(time.perf_counter())
        if token in self.eog:
            return self.end("stop")
        self.pending += self.decoder.feed(token)
        cut = min((at for s in self.stop if (at := self.pending.find(s)) >= 0), default=-1)
        if cut >= 0:
            self.pending, self.reply.finish = self.pending[:cut], "stop"
            return self._give(len(self.pending))
        return self._give(len(self.pending) - self._held_back())

    def end(self, why: str) -> str:
        self.reply.finish = why
        self.pending += self.decoder.flush()
        return self._give(len(self.pending))

    def _held_back(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        longest = max(map(len, self.stop), default=1) - 1
        for n in range(min(longest, len(self.pending)), 0, -1):
            if any(s.startswith(self.pending[-n:]) for s in self.stop):
                return n
        return 0

    def _give(self, n: int) -> str:
        text, self.pending = self.pending[:n], self.pending[n:]
        self.reply.text += text
        return text


def decode(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    *,
    max_tokens: int = -1,
    stop: Sequence[str] = (),
    replies: list[Reply] | None = None,
) -> Iterator[tuple[int, str]]:
    """Continue every prompt, all slots of `decoder` at once; yields (slot, text) as text becomes certain.

    prompts: token ids, one list for each slot; what a slot already holds must be a true prefix of it.
    max_tokens: new tokens a slot at most; negative: until the end of turn or of the context.
    replies: a list that receives one Reply a prompt, complete once the iterator is exhausted.
    Raises UserError for a prompt that is empty or longer than the decoder's context.
    """
    replies = [] if replies is None else replies
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise UserError("The prompt is empty: give some text with -p.")
        if len(prompt) > decoder.context:
            raise UserError(
                f"The prompt has {len(prompt)} tokens but the context holds {decoder.context}: shorten it or raise -c."
            )
        replies.append(Reply(list(map(int, prompt))))
    writers = [Writer(reply, tokenizer, stop) for reply in replies]
    random = [how.generator(number) for number in range(len(writers))]
    if max_tokens == 0:
        for reply in replies:
            reply.finish = "length"
        return
    started = time.perf_counter()
    for reply in replies:
        reply.started = started
    logits, most, listed = _feed_prompts(decoder, prompts), reach(how), None
    most = None if most is None else min(most, len(logits[0]))
    while True:
        feed: list[list[int]] = [[] for _ in writers]
        for slot, writer in enumerate(writers):
            reply = writer.reply
            if reply.finish is not None:
                continue
            recent = reply.prompt + reply.ids
            token = (
                sample(logits[slot], recent, how, random[slot])
                if listed is None
                else sample_listed(listed[0][slot], listed[1][slot], recent, how, random[slot])
            )
            text = writer.add(token)
            if reply.finish is None and len(reply.ids) == max_tokens:
                text += writer.end("length")
            elif reply.finish is None and decoder.lengths[slot] >= decoder.context:
                text += writer.end("context")
            if reply.finish is None:
                feed[slot] = [token]
            if text:
                yield slot, text
        if not any(feed):
            return
        if most is None:
            logits = decoder.feed(feed)
        else:  # the device chooses what the choice can fall on
            listed = decoder.feed_best(feed, most)


def _feed_prompts(decoder: Decoder, prompts: Sequence[Sequence[int]]) -> list[Any]:
    """Feed what the slots do not hold yet; returns each slot's logits after its last prompt token."""
    left = []
    for slot, prompt in enumerate(prompts):
        if decoder.lengths[slot] >= len(prompt):  # the last token is always fed: its logits are needed
            decoder.truncate(slot, len(prompt) - 1)
        left.append(list(prompt[decoder.lengths[slot] :]))
    logits: list[Any] = [None] * len(left)
    while any(left):
        rows = decoder.feed([ids[:CHUNK] for ids in left])
        for slot, ids in enumerate(left):
            if ids and len(ids) <= CHUNK:
                logits[slot] = rows[slot].copy()
        left = [ids[CHUNK:] for ids in left]
    return logits


def complete(
    model: Model,
    prompts: Iterable[Prompt],
    adapter: Adapter | None = None,
    *,
    how: Sampling,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    context: int | None = None,
    **prompting: Any,
) -> list[Reply]:
    """The answers to a list of prompts of any form (see `prompt_ids`), decoded together, as Replies."""
    replies: list[Reply] = []
    for _ in _start(model, prompts, adapter, how, max_tokens, stop, context, prompting, replies):
        pass
    return replies


def stream(
    model: Model,
    prompt: Prompt,
    adapter: Adapter | None = None,
    *,
    how: Sampling | None = None,
    max_tokens: int = 256,
    stop: Sequence[str] = (),
    context: int | None = None,
    replies: list[Reply] | None = None,
    **prompting: Any,
) -> Iterator[str]:
    """The pieces of one answer as they come; their sum is what `complete` returns."""
    steps = _start(
        model,
        [prompt],
        adapter,
        how or Sampling(),
        max_tokens,
        stop,
        context,
        prompting,
        [] if replies is None else replies,
    )
    for _, text in steps:
        yield text


def _start(
    model: Model,
    prompts: Iterable[Prompt],
    adapter: Adapter | None,
    how: Sampling,
    max_tokens: int,
    stop: Sequence[str],
    context: int | None,
    prompting: dict[str, Any],
    replies: list[Reply],
) -> Iterator[tuple[int, str]]:
    ids = [prompt_ids(model, prompt, adapter=adapter, **prompting) for prompt in prompts]
    limit = context_length(model)
    longest = max(map(len, ids), default=0)
    size = context or (limit if max_tokens < 0 else min(longest + max_tokens, limit))
    decoder = model.decoder(adapter=adapter, batch=len(ids), context=max(size, 1))
    return decode(decoder, model.tokenizer, ids, how, max_tokens=max_tokens, stop=stop, replies=replies)
