"""What of a conversation a chat template does not show: refused where it is what is to be learned, else told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anytune.errors import UserError
from anytune.text.trace import TOOLS, Piece, Trace


@dataclass(frozen=True)
class LeftOut:
    """what: of KINDS; message: its number, from 1; 0: the tools."""

    what: str
    message: int


#: what is left out -> for a note, of one and of several
KINDS = {
    "tools": ("the tools of 1 conversation", "the tools of {} conversations"),
    "system": ("1 system message", "{} system messages"),
    "prompt system": ("1 system message that appears in its prompts", "{} system messages that appear in its prompts"),
    "developer": ("1 developer message", "{} developer messages"),
    "tool": ("1 tool result", "{} tool results"),
    "thoughts": ("the reasoning of 1 assistant message", "the reasoning of {} assistant messages"),
    "words": (
        "the content of 1 assistant message that is not learned",
        "the content of {} assistant messages that are not learned",
    ),
    "calls": (
        "the calls of 1 assistant message that is not learned",
        "the calls of {} assistant messages that are not learned",
    ),
    "other": ("1 message of another role", "{} messages of other roles"),
}


def left_out(template, found: Trace, messages: Sequence[Mapping], tools, form, learned: Sequence[int]) -> list[LeftOut]:
    """Each kind of each message once. Raises UserError where words of a user, or of an answer to learn, are missing."""
    wanted, out = set(learned), {}
    missing = list(found.missing())
    if any(piece.owner == TOOLS for piece in missing):
        out[LeftOut("tools", 0)] = None
    for piece in missing:
        if piece.owner == TOOLS:
            continue
        message = messages[piece.owner]
        role, kind = message["role"], piece.kind
        if kind in ("name", "argument", "words") and (piece.owner in wanted or role == "user"):
            raise UserError(_sentence(piece, message, bool(out)))
        what = {"thought": "thoughts", "name": "calls", "argument": "calls"}.get(kind) or (
            "words" if role == "assistant" else role if role in KINDS else "other"
        )
        if what == "system" and _in_prompt(template, messages, tools, form, piece):
            what = "prompt system"
        out[LeftOut(what, piece.owner + 1)] = None
    shown = {piece.owner for piece, places in zip(found.pieces, found.places, strict=True) if places}
    for piece in found.pieces:
        if piece.owner in wanted - shown:
            raise UserError(
                f"The chat template shows nothing of message {piece.owner + 1}, an assistant's, which has only "
                "reasoning."
            )
    return list(out)


def _sentence(piece: Piece, message: Mapping, tools: bool) -> str:
    """tools: whether it leaves the tools out, too."""
    number = piece.owner + 1
    if piece.kind == "words":
        whose = "an assistant's" if message["role"] == "assistant" else "a user's"
        return f"The chat template drops the content of message {number}, {whose}."
    if piece.kind == "name":
        beside = " beside its content" if (message.get("content") or "").strip() else ""
        too = ", and the tools" if tools else ""
        return (
            f"The chat template drops the assistant's call of {piece.text!r}{beside} (message {number}){too}: use a "
            "template for tools."
        )
    return f"The chat template drops the arguments of a call (message {number}): use a template for tools."


def _in_prompt(template, messages, tools, form, piece: Piece) -> bool:
    """Whether the prompt for the last answer shows what the whole conversation does not."""
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=len(messages))
    try:
        return piece.text in template.render(messages[:last], tools, add_generation_prompt=True, form=form)
    except UserError:
        return False


def note(counts: Mapping[str, int], first: str) -> str:
    """A sentence for people. counts: what -> number; first: where it was met first."""
    told = [KINDS[what][count > 1].format(f"{count:,}") for what, count in counts.items()]
    listed = told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
    return f"The chat template drops {listed} (first: {first}); nothing is learned from what it drops."
