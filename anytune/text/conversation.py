"""The messages of one row of data: OpenAI's form, or ShareGPT's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anytune.errors import UserError
from anytune.text.messages import THOUGHTS
from anytune.text.rows import kind_of

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "bing": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "developer": "developer",
}
CALLS = ("function_call", "tool_call")  # roles of ShareGPT's messages that are calls
INSTEAD = ("tool_calls", "function_call", *THOUGHTS)  # what may stand in place of content
_ON, _OFF = ("true", "1", "1.0"), ("false", "0", "0.0")
# Keys of messages that have a meaning here, or say nothing beyond it.
KNOWN = {"role", "content", "from", "value", "weight", "train", "name", "id", "tool_call_id", "tool_call", *INSTEAD}


def read_messages(values: Sequence[Any], system: list[dict]) -> list[dict]:
    """The messages, with the system message of a column, if any, in front of them. Raises UserError."""
    messages = [_message(value, number) for number, value in enumerate(values, 1)]
    own = messages[0].get("content") if messages[0]["role"] == "system" else None
    if not system or not isinstance(own, str):
        return [*system, *messages]
    text = system[0]["content"]  # both say something: they become one
    return [{**messages[0], "content": own if text in own else f"{text}\n\n{own}".rstrip()}, *messages[1:]]


def _message(message: Any, number: int) -> dict:
    """A message in OpenAI's form or ShareGPT's (from, value). null counts as missing."""
    if not isinstance(message, dict):
        raise UserError(f"message {number} must be an object, not {kind_of(message)}.")
    message = {key: value for key, value in message.items() if value is not None}
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(role, str) and role.lower() in CALLS:
        role, content, message = "assistant", None, {**message, "tool_calls": content}
    if not isinstance(role, str) or role.lower() not in ROLES:
        raise UserError(f"message {number} has the role {role!r}; known are {', '.join(ROLES)}.")
    out = {key: value for key, value in message.items() if key not in ("from", "value", "content")}
    out["role"] = ROLES[role.lower()]
    if content is None and not any(message.get(key) for key in INSTEAD):
        raise UserError(f"message {number} has no content.")
    if not isinstance(out.get("loss"), float) and str(out.get("loss")).strip().lower() in _ON + _OFF:
        out.setdefault("train", out.pop("loss"))  # a fraction is a measured loss
    for key in ("weight", "train"):
        if key in out:
            out[key] = _switch(out[key], key, number)
    return out | {"content": content}


def _switch(value: Any, key: str, number: int) -> int | bool:
    """Whether a message is learned: "train" as true or false, "weight" as 1 or 0. Raises UserError for others."""
    text = str(value).strip().lower()
    if text not in _ON + _OFF:
        wanted = "true or false" if key == "train" else "0 or 1"
        raise UserError(f"message {number}: {key!r} must be {wanted}, not {value!r:.40}.")
    on = text in _ON
    return on if key == "train" else int(on)
