"""A conversation's messages and tools in one form, whatever form the data have them in.

Content is text; calls are in `tool_calls`, each as {"type", "function": {"name", "arguments"}}; thoughts are under
a key of their own. What the field's templates disagree about stays as it was given: see forms.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from anytune.errors import UserError
from anytune.text.rows import kind_of, loads

#: where data and templates keep an assistant's thoughts, the commonest first
THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts", "tool_plan")
_TEXT_PARTS = ("text", "input_text", "output_text")
_THOUGHT_PARTS = ("thinking", "reasoning")


def normalise(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message. "content" is text; None or absent only where an assistant has calls or thoughts instead.

    Raises UserError if it has no role, content that is not text, or calls that cannot be read.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError("A message must be an object with a role and content.")
    out = {key: value for key, value in message.items() if value is not None or key == "content"}
    calls = _calls(out.pop("tool_calls", None), out.pop("function_call", None))
    if calls:
        out["tool_calls"] = calls
    for key in THOUGHTS:
        if isinstance(out.get(key), bool):  # a switch, not the thoughts
            del out[key]
        elif key in out:
            out[key] = _thought(key, out[key])
    if "content" in out:
        out["content"] = _content(out)
    if out.get("content") is None and not (calls or thoughts(out)):
        out["content"] = ""
    return out


def normalise_all(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every message. Raises UserError, which names the message where its calls are at fault."""
    found = []
    for number, message in enumerate(messages, 1):
        try:
            found.append(normalise(message))
        except _BadCall as error:
            raise UserError(f"Message {number}: {error}") from None
    return found


def normalise_tools(tools: Any) -> list[dict[str, Any]] | None:
    """The tools as a list of objects; None if there are none. Raises UserError for what is no tool."""
    tools = from_json(tools)
    if not tools:
        return None
    found = []
    for tool in [tools] if isinstance(tools, Mapping) else tools if isinstance(tools, Sequence) else [None]:
        tool = from_json(tool)
        if isinstance(tool, list) and all(isinstance(part, Mapping) for part in tool):
            found += [dict(part) for part in tool]
        elif isinstance(tool, Mapping):
            found.append(dict(tool))
        else:
            raise UserError("The tools must be a list of objects, or of JSON texts of objects.")
    return found or None


def thoughts(message: Mapping[str, Any]) -> dict[str, str]:
    """key -> text of the thoughts that a message has beside its words."""
    return {key: message[key] for key in THOUGHTS if isinstance(message.get(key), str) and message[key].strip()}


def called(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The functions ({"name", "arguments"}) that a normalised message calls."""
    return [call["function"] for call in message.get("tool_calls") or ()]


class _BadCall(UserError):
    pass


def _content(message: dict[str, Any]) -> str | None:
    """The content's text; thoughts among its parts go to a key of their own."""
    content = message["content"]
    if content is None or isinstance(content, str):
        return content
    parts = list(content) if isinstance(content, Sequence) else [content]
    if not all(isinstance(part, str) or _is_part(part) for part in parts):
        if message["role"] == "tool":  # a result may be any value: it is shown as JSON
            return json.dumps(content, ensure_ascii=False)
        if not isinstance(content, Sequence):
            raise UserError(f"A message's content must be text, not {type(content).__name__}.")
        raise UserError("A message's content has parts that are not text, which cannot be used.")
    thought = "".join(_part(p) for p in parts if isinstance(p, Mapping) and p.get("type") in _THOUGHT_PARTS)
    if thought and not thoughts(message):
        message[THOUGHTS[0]] = thought
    return "".join(
        p if isinstance(p, str) else _part(p)
        for p in parts
        if isinstance(p, str) or p.get("type") not in _THOUGHT_PARTS
    )


def _thought(key: str, value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) or _is_part(part) for part in parts):
        raise UserError(f"A message's {key!r} must be text, not {kind_of(value)}.")
    return "".join(part if isinstance(part, str) else _part(part) for part in parts)


def _is_part(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type", "text")
    return isinstance(_part(part), str) and (kind in _TEXT_PARTS or kind in _THOUGHT_PARTS)


def _part(part: Mapping[str, Any]) -> Any:
    """The text of one part of a content; None if it has none."""
    kind = part.get("type", "text")
    value = part.get(kind, part.get("text")) if kind in _THOUGHT_PARTS else part.get("text")
    if isinstance(value, list) and all(_is_part(v) for v in value):
        return "".join(_part(v) for v in value)
    return value


def _calls(calls: Any, legacy: Any) -> list[dict[str, Any]]:
    """tool_calls and the older function_call, which say the same of one call."""
    calls = from_json(calls)
    listed = [calls] if isinstance(calls, Mapping) else calls or []
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise _BadCall("tool_calls must be a list of calls.")
    found = [_call(call) for call in listed]
    legacy = from_json(legacy)
    if legacy is None or legacy == "":
        return found
    older = _call(legacy)
    return (
        found
        if any(call["function"].get("name") == older["function"].get("name") for call in found)
        else [*found, older]
    )


def _call(call: Any) -> dict[str, Any]:
    call = from_json(call)
    if not isinstance(call, Mapping):
        raise _BadCall("A tool call must be an object.")
    inner = from_json(call.get("function"))
    if isinstance(inner, Mapping):
        made = {"type": "function", **call, "function": dict(inner)}
    else:
        function = {key: call[key] for key in ("name", "arguments") if key in call}
        if isinstance(inner, str) and "name" not in function:  # {"function": "get", "arguments": …}
            function["name"] = inner
        rest = {key: value for key, value in call.items() if key not in ("name", "arguments", "function")}
        made = {"type": "function", **rest, "function": function}
    if not isinstance(made["function"].get("name"), str) or not made["function"]["name"].strip():
        raise _BadCall("A tool call must name its function.")
    return made


def arguments_object(function: Mapping[str, Any], number: int) -> Any:
    """A call's arguments as an object; text that is not meant as JSON (code) stays text.

    Raises UserError for text that begins as a JSON object and is none. number: of the message, from 1.
    """
    given = function.get("arguments")
    if given is None or isinstance(given, str) and not given.strip():
        return {}
    for _ in range(2):  # some data have encoded it twice
        if not isinstance(given, str):
            break
        try:
            given = loads(given)
        except (ValueError, RecursionError):
            if given.lstrip().startswith("{"):
                raise UserError(
                    f"Message {number}: the arguments of the call of {function.get('name')!r} are not valid JSON, "
                    "or have a duplicate key."
                ) from None
            break
    return given if isinstance(given, Mapping | list) else function["arguments"]


def arguments_text(function: Mapping[str, Any]) -> str:
    """A call's arguments as text: as given, or as JSON."""
    given = function.get("arguments")
    if isinstance(given, str):
        return given if given.strip() else "{}"
    return json.dumps({} if given is None else given, ensure_ascii=False)


def from_json(value: Any) -> Any:
    """A value that may be written as JSON text; other text as it is."""
    if isinstance(value, str) and value.strip()[:1] in ("{", "["):
        try:
            return loads(value)
        except (ValueError, RecursionError):
            return value
    return value
