"""Which tokens of a rendered chat the model is to learn: what it says, and the token that ends its turn.

Almost no template marks the assistant's words, so they are found by rendering prefixes: the conversation
before a turn, with the generation prompt, is where the turn begins. Text that the template adds between that
place and the message's own words (an empty think block, a header) is not learned; nor is what follows the
end of the turn.
Templates that render a message differently once others follow (Qwen3 takes earlier thoughts away, SmolLM2 and
Qwen2.5 put a system message in front of nothing) are handled by searching the whole text from turn to turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytune.errors import UserError
from anytune.text.chat import normalise
from anytune.text.vocabulary import CONTROL, USER

_EMPTY_THOUGHT = re.compile(r"\s*<think>\s*</think>\s*")
_OTHER_WORDS = "\ue000\ue001\ue002"  # private characters, which no filter changes and no message begins with
_THOUGHT_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Turn:
    """An assistant turn in the rendered text, in characters: it is learned from `start`; `words` is where the
    message's own words end; its end token is looked for up to `limit`."""

    start: int
    words: int
    limit: int


def encode_chat(
    tokenizer,
    template,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence | None = None,
    learn_from: int = 0,
) -> tuple[list[int], list[bool]]:
    """(ids, loss) of a conversation: the ids of the whole rendered text, as a server would feed it, BOS once.

    loss: a token is learned if its first character is one that the assistant says, and so is the token that
    ends the turn. A token that begins in the template's text is not, even if it reaches into the answer.
    learn_from: index of the first message to learn from. A message with "weight": 0 or "train": false is not.
    Raises UserError if the template refuses the conversation, or nothing is left to learn.
    """
    ids, loss, _ = encode_chat_report(tokenizer, template, messages, tools, learn_from)
    return ids, loss


def encode_chat_report(
    tokenizer, template, messages, tools=None, learn_from=0
) -> tuple[list[int], list[bool], int]:
    """encode_chat's (ids, loss), and the number of learned turns that no token ends."""
    plain = [normalise(message) for message in messages]
    learned = [
        i
        for i, m in enumerate(plain)
        if i >= learn_from
        and m["role"] == "assistant"
        and m.get("weight", 1) != 0
        and m.get("train", True) is not False
    ]
    if not learned:
        raise UserError("The conversation has no assistant message to learn from.")
    text, marks = template.render_marked(plain, tools)
    ids, starts = tokenizer.encode_spans(text, special=True)
    if marks:
        _all_called([plain[i] for i in learned], "".join(text[a:b] for a, b in marks))
        turns = [Turn(a, b, b) for a, b in marks]
    else:
        turns = _turns(template, plain, tools, text, learned)
    loss = [False] * len(ids)
    open_ended = sum(not _mark(tokenizer, ids, starts, loss, turn, bool(marks)) for turn in turns)
    ended = not open_ended
    if tokenizer.add_bos and ids[:1] != [tokenizer.bos]:
        ids.insert(0, tokenizer.bos)
        loss.insert(0, False)
    if tokenizer.add_eos and ids[-1:] != [tokenizer.eos]:
        ids.append(tokenizer.eos)
        loss.append(not ended and learned[-1] == len(plain) - 1)
    if ids:
        loss[0] = False
    if not any(loss):
        raise UserError(
            "Nothing is left to learn: the chat template shows none of the assistant's words."
        )
    return ids, loss, open_ended


def _mark(tokenizer, ids: list[int], starts: list[int], loss: list[bool], turn: Turn, marked: bool) -> bool:
    """Set the loss of one turn's tokens. True if a token ends the turn."""
    from bisect import bisect_left

    first, after_words, limit = (bisect_left(starts, at) for at in (turn.start, turn.words, turn.limit))
    if marked:  # the tags say what is learned; the end token may stand right behind them
        for k in range(first, limit):
            loss[k] = True
        if limit < len(ids) and starts[limit] == turn.limit and ids[limit] in tokenizer.eog:
            loss[limit] = True
        return any(ids[k] in tokenizer.eog for k in range(first, min(limit + 1, len(ids))) if loss[k])
    kinds = tokenizer.vocabulary.kinds
    end = next((k for k in range(after_words, limit) if ids[k] in tokenizer.eog), None)
    if end is None and after_words < limit and kinds[ids[after_words]] & (CONTROL | USER):
        end = after_words
    for k in range(first, after_words if end is None else end + 1):
        loss[k] = True
    return end is not None


def _turns(template, messages: list[dict], tools, text: str, learned: list[int]) -> list[Turn]:
    turns, last, done = [], 0, 0  # last: where the words of the turn before end
    for i in learned:
        begin = _beginning(template, messages, tools, text, i, last, messages[done:i])
        limit = _limit(template, messages, tools, text, i, begin)
        turn = _words(messages[i], text, begin, limit, lambda: _place(template, messages, tools, text, i))
        if turn is None:
            if _place(template, messages, tools, text, i) is None:
                raise UserError(f"The chat template leaves out the words of message {i + 1}, an assistant's.")
            turn = _rewritten(messages[i], text, begin, limit)
        turns.append(turn)
        last, done = turns[-1].words, i + 1
    return turns


def _beginning(template, messages, tools, text: str, i: int, last: int, between: list[dict]) -> int:
    """Where the model takes over for message i: behind the generation prompt."""
    before = _render(template, messages[:i], tools, True)
    if before and text.startswith(before) and len(before) >= last:
        return len(before)
    header = _header(template, messages[:i], tools)
    at = _place(template, messages, tools, text, i)
    if at is not None and at >= last:
        found = text.rfind(header, last, at) if header else -1
    else:  # the message has no words, only calls: search behind the messages before it
        cursor = _behind(text, between, last)
        found = text.find(header, cursor) if header else -1
        at = text.find(messages[i]["content"].strip() or "\0", cursor)
    if found >= 0:
        return found + len(header)
    if at >= 0:  # a space before the words is theirs: it is part of their first token
        return at - (len(text[last:at]) - len(text[last:at].rstrip(" ")))
    raise UserError(
        f"Message {i + 1}, an assistant's, cannot be found in what the chat template renders."
    )


def _behind(text: str, messages: list[dict], cursor: int) -> int:
    """Behind the words of these messages; the system's are passed over, for some templates put them
    elsewhere.
    """
    for words in (m["content"].strip() for m in messages if m["role"] != "system"):
        at = text.find(words, cursor) if words else -1
        cursor = at + len(words) if at >= 0 else cursor
    return cursor


def _place(template, messages, tools, text: str, i: int) -> int | None:
    """Where the words of message i begin: where the text changes if the message says something else."""
    other = [*messages[:i], {**messages[i], "content": _OTHER_WORDS}, *messages[i + 1 :]]
    changed = _render(template, other, tools, False) if messages[i]["content"].strip() else None
    at = changed.find(_OTHER_WORDS) if changed else -1
    return at if at >= 0 and text[:at] == changed[:at] else None


def _limit(template, messages, tools, text: str, i: int, begin: int) -> int:
    """How far turn i may reach: to where the next message begins, as well as that can be known."""
    if i + 1 == len(messages):
        return len(text)
    upto = _render(template, messages[: i + 1], tools, False)
    if upto and text.startswith(upto) and len(upto) > begin:
        return len(upto)
    own = messages[i]["content"].strip().rpartition("</think>")[2].strip()
    at = max(text.find(own, begin), begin) + len(own)
    following = messages[i + 1]["content"].strip()
    found = text.find(following, at) if following else -1
    if found >= 0 and text.find(following, found + 1) >= 0:     # short words are in the template's own, too
        place = _place(template, messages, tools, text, i + 1)
        found = place if place is not None and place >= at else found
    return found if found >= 0 else len(text)


def _words(message: dict, text: str, begin: int, limit: int, place: Callable[[], int | None]) -> Turn | None:
    """Find the message's words in text[begin:limit], and decide whether what stands before them is the
    model's. place(): where they begin, if that can be known; for words that are there more than once.

    None if it has words and they are not there.
    """
    turn, content = text[begin:limit], message["content"]
    _all_called([message], turn)
    if not content.strip():
        return _rewritten(message, text, begin, limit)
    bare = content.rpartition("</think>")[2].strip("\n")
    for words in dict.fromkeys((content, content.strip(), bare, bare.strip())):
        at = turn.find(words) if words.strip() else -1
        if at >= 0 and turn.find(words, at + 1) >= 0:
            at = _which(turn, words, place, begin)
        if at >= 0:
            lead = turn[:at]
            own = not lead.strip() or _said(message, content[: len(content) - len(bare)], lead)
            return Turn(begin if own else begin + at, begin + at + len(words), limit)
    return None


def _which(turn: str, words: str, place: Callable[[], int | None], begin: int) -> int:
    """Where words begin that are in the turn more than once: "n" is in <think>, too."""
    at = place()
    if at is not None and at >= begin and turn.startswith(words, at - begin):
        return at - begin
    thoughts = turn.lstrip().startswith("<think>") and "<think>" not in words
    end = turn.find("</think>") if thoughts else -1
    after = turn.find(words, end + len("</think>")) if end >= 0 else -1
    return after if after >= 0 else turn.find(words)


def _rewritten(message: dict, text: str, begin: int, limit: int) -> Turn:
    """A turn of calls only, or of words that the template writes otherwise: all but an empty thought in
    front.
    """
    turn = text[begin:limit]
    empty = _EMPTY_THOUGHT.match(turn)
    start = begin + (empty.end() if empty else 0)
    words = begin + len(turn.rstrip()) if message["content"].strip() else start
    return Turn(start, max(start, min(words, limit)), limit)


def _said(message: dict, before: str, lead: str) -> bool:
    """Whether `lead`, which stands before the message's words, is the model's too: its thoughts or its
    calls.
    """
    thoughts = [message.get(key) for key in _THOUGHT_KEYS] + [re.sub(r"</?think>", "", before)]
    if any(isinstance(t, str) and t.strip() and t.strip() in lead for t in thoughts):
        return True
    return any(name in lead for name in _called(message))


def _all_called(messages: list[dict], text: str) -> None:
    for name in (name for message in messages for name in _called(message)):
        if name not in text:
            raise UserError(
                f"The chat template leaves out the assistant's call of {name!r}: use a template for tools."
            )


def _called(message: dict) -> list[str]:
    """The names of the functions that a message calls."""
    calls = message.get("tool_calls")
    calls = [call for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    inner = [call["function"] if isinstance(call.get("function"), Mapping) else call for call in calls]
    names = [call.get("name") for call in inner]
    return [name for name in names if isinstance(name, str) and name]


def _header(template, before: list[dict], tools) -> str:
    """The generation prompt alone: what add_generation_prompt adds to these messages, or to a plain
    question.
    """
    for messages in (before, [{"role": "user", "content": "x"}]):
        without, with_prompt = (_render(template, messages, tools, prompt) for prompt in (False, True))
        if without is not None and with_prompt and with_prompt.startswith(without) and with_prompt != without:
            return with_prompt[len(without) :]
    return ""


def _render(template, messages, tools, prompt: bool) -> str | None:
    """The text of a part of the conversation; None if the template refuses it, as some do with a part."""
    try:
        return template.render(messages, tools, add_generation_prompt=prompt)
    except UserError:
        return None
