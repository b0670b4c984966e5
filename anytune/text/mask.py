"""Which tokens of a rendered chat the model is to learn: what it says, and the token that ends its turn.

Almost no template marks the assistant's words, so turns.py finds them by rendering. Text that the template adds before
them by itself (a header, an empty think block) is not learned; nor is what follows the end of the turn. Where the
template ends a turn with nothing but the next one's header, the model's own end-of-turn token is put there, so that it
learns to stop.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anytune.errors import UserError
from anytune.text.leftout import LeftOut, left_out
from anytune.text.messages import normalise_all, normalise_tools
from anytune.text.ends import Turn
from anytune.text.turns import Speech


@dataclass(frozen=True)
class Encoded:
    """ids and loss of a conversation. open_ended: learned turns that no token ends; left_out: what the data say and the
    text does not show."""

    ids: list[int]
    loss: list[bool]
    open_ended: int = 0
    left_out: list[LeftOut] = field(default_factory=list)


def encode_chat(
    tokenizer, template, messages: Sequence[Mapping[str, Any]], tools: Sequence | None = None, learn_from: int = 0
) -> tuple[list[int], list[bool]]:
    """(ids, loss) of a conversation: the ids of the whole rendered text, as a server would feed it, BOS once.

    loss: a token is learned if its first character is one that the assistant says, and so is the token that
    ends the turn. A token that begins in the template's text is not, even if it reaches into the answer.
    learn_from: index of the first message to learn from. A message with "weight": 0 or "train": false is not.
    Raises UserError if the template refuses the conversation, leaves out what a user or the assistant says, or nothing
    is left to learn.
    """
    found = encode_chat_report(tokenizer, template, messages, tools, learn_from)
    return found.ids, found.loss


def encode_chat_report(tokenizer, template, messages, tools=None, learn_from=0, whole: bool = False) -> Encoded:
    """Like encode_chat, and what there is to tell. whole: every token but the first is learned, whoever says it."""
    plain, tools = normalise_all(messages), normalise_tools(tools)
    learned = [i for i, m in enumerate(plain) if m["role"] == "assistant" and wanted(m, i + 1) and i >= learn_from]
    if not learned and not whole:
        raise UserError("The conversation has no assistant message to learn from.")
    form = template.form_of(plain, tools)
    found = template.trace(plain, tools, form)
    missing = left_out(template, found, plain, tools, form, learned)
    speech = Speech(tokenizer, template, form, plain, tools, found)
    marks = template.render_marked(plain, tools, form=form)[1] if template.has_marks else []
    turns = speech.tagged(marks, learned) if marks else speech.turns(learned)
    if marks:
        _calls_marked(found, marks, set(learned))
    text, turns = _with_ends(found.text, turns)
    ids, starts = tokenizer.encode_spans(text, special=True)
    loss = [whole] * len(ids)
    for turn in turns:
        # behind the end token SentencePiece may put a space, whose place in the text is the token's
        last = turn.end - len(turn.closer) + 1 if turn.closer else turn.end
        for k in range(bisect_left(starts, turn.start), bisect_left(starts, last)):
            loss[k] = True
    open_ended = sum(turn.closer is None for turn in turns)
    last_open = bool(turns) and turns[-1].closer is None and turns[-1].end >= len(text.rstrip())
    return _framed(tokenizer, ids, loss, whole or last_open, open_ended, missing)


def wanted(message: Mapping[str, Any], number: int) -> bool:
    """Whether a message's "weight" and "train" ask for it to be learned, as they do where they are not given.

    Raises UserError for a weight other than 0 and 1, or what is neither true nor false. number: for it, from 1.
    """
    for key, meant in (("weight", "0 or 1"), ("train", "true or false")):
        value = message.get(key, 1)
        text = str(value).strip().lower()
        if text in ("0", "0.0", "false"):
            return False
        if text not in ("1", "1.0", "true"):
            raise UserError(f"Message {number}: {key!r} must be {meant}, not {str(value)[:20]!r}.")
    return True


def _with_ends(text: str, turns: list[Turn]) -> tuple[str, list[Turn]]:
    """(the text with the end tokens that the template lacks, the turns in it)."""
    out, moved, at, shift = [], [], 0, 0
    for turn in sorted(turns, key=lambda turn: turn.start):
        out.append(text[at : turn.end])
        at, start = max(at, turn.end), turn.start + shift
        if turn.inserted:
            out.append(turn.closer)
            shift += len(turn.closer)
        moved.append(Turn(start, turn.end + shift, turn.closer))
    return "".join(out) + text[at:], moved


def _framed(tokenizer, ids, loss, learn_end: bool, open_ended: int, missing: list[LeftOut]) -> Encoded:
    """With BOS and EOS as the model's rules say, once."""
    if tokenizer.add_bos and ids[:1] != [tokenizer.bos]:
        ids.insert(0, tokenizer.bos)
        loss.insert(0, False)
    if tokenizer.add_eos and ids[-1:] != [tokenizer.eos]:
        ids.append(tokenizer.eos)
        loss.append(learn_end)
    if ids:
        loss[0] = False
    if not any(loss):
        raise UserError("There is nothing to learn: the chat template shows none of the assistant's content.")
    return Encoded(ids, loss, open_ended, missing)


def _calls_marked(found, marks: list[tuple[int, int]], learned: set[int]) -> None:
    """Raises UserError where a learned call is outside the generation tags."""
    for piece, places in zip(found.pieces, found.places, strict=True):
        if (
            piece.kind == "name"
            and piece.owner in learned
            and not any(a <= x and y <= b for x, y in places for a, b in marks)
        ):
            raise UserError(
                f"The chat template excludes the assistant's call of {piece.text!r} from its generation tags: use a "
                "template for tools."
            )
