"""Tools in a conversation: how they are described to the model, the grammar of its calls, calls in OpenAI's format."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anytune.errors import UserError
from anytune.serve.grammar import json_rule
from anytune.serve.calls import COMMON, NAME, Call, CallForm, form_of, names, written
from anytune.text.messages import normalise_all

TOLD = """You may call one or more functions to help with the user's request. The functions, in JSON:
{tools}
To call a function, write a JSON object with its name and arguments in this form:
<tool_call>
{{"name": "function_name", "arguments": {{"key": "value"}}}}
</tool_call>"""


@dataclass(frozen=True)
class Tooling:
    """form: how calls are written; told: whether the template itself shows tools; shown: whether it shows calls."""

    form: CallForm
    told: bool
    shown: bool

    @classmethod
    def of(cls, template: Any) -> Tooling:
        form = form_of(template.render)
        tool = {
            "type": "function",
            "function": {"name": NAME, "description": "", "parameters": {"type": "object", "properties": {}}},
        }
        try:
            told = NAME in template.render([{"role": "user", "content": "x"}], [tool], add_generation_prompt=True)
        except UserError:
            told = False
        return cls(form or CallForm(*COMMON, keys=("name", "arguments")), told, form is not None)

    def messages(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping] | None) -> list[dict[str, Any]]:
        """The conversation as the template can show it: what it does not know of tools is put into words."""
        made = normalise_all(messages)
        if not self.shown:
            made = [_in_words(message) for message in made]
        if tools and not self.told:
            text = TOLD.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools))
            if made and made[0].get("role") in ("system", "developer"):
                made[0]["content"] = f"{made[0].get('content') or ''}\n\n{text}".lstrip()
            else:
                made.insert(0, {"role": "system", "content": text})
        return made

    def grammar(self, tools: Sequence[Mapping[str, Any]], tokenizer: Any, schema: Any = None) -> str:
        """llguidance's Lark for one call of one of these tools, or, with a schema, for JSON of that instead."""
        rules = [f"call_{number}: {self._call(tool['function'], tokenizer)}" for number, tool in enumerate(tools)]
        choice = " | ".join(f"call_{number}" for number in range(len(tools)))
        around = (_literal(self.form.opening.lstrip(), tokenizer), _literal(self.form.closing.rstrip(), tokenizer))
        start = f"start: {around[0]} call {around[1]}" + ("" if schema is None else f" | {json_rule(schema)}")
        return "\n".join(["%llguidance {}", start, f"call: {choice}", *rules])

    def _call(self, function: Mapping[str, Any], tokenizer: Any) -> str:
        schema, form = _schema(function), self.form
        if form.keys is not None:
            whole = {
                "type": "object",
                "properties": {form.keys[0]: {"const": function["name"]}, form.keys[1]: schema},
                "required": list(form.keys),
                "additionalProperties": False,
            }
            return json_rule(whole)
        head = _literal(function["name"] + form.middle, tokenizer)
        if form.parts is None:
            return f"{head} {json_rule(schema)}"
        before, between, after = form.parts
        needed, kinds = schema.get("required") or [], schema.get("properties") or {}
        if not isinstance(needed, list) or not isinstance(kinds, dict):
            raise UserError(f"The parameters of {function['name']!r} are not a JSON schema of an object.")
        parts = []
        for key, kind in kinds.items():
            head_of = _literal(before + key + between, tokenizer)
            if isinstance(kind, dict) and kind.get("type", "string") == "string":
                part = f"{head_of} /[^<]*{_in_regex(after)}/"
            else:
                part = f"{head_of} {json_rule(kind)} {_literal(after, tokenizer)}"
            parts.append(part if key in needed else f"({part})?")
        return " ".join([head, *parts])


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    return dict(function.get("parameters") or {"type": "object", "properties": {}, "additionalProperties": False})


def _literal(text: str, tokenizer: Any) -> str:
    """Text in a Lark grammar; control tokens by number."""
    made = []
    for _, piece in tokenizer.special_pieces(text):
        if isinstance(piece, str):
            made.append(json.dumps(piece, ensure_ascii=False) if piece else "")
        elif tokenizer.is_control(piece):
            made.append(f"<[{piece}]>")
        else:
            made.append(json.dumps(tokenizer.piece(piece).decode("utf-8", "replace"), ensure_ascii=False))
    return " ".join(filter(None, made)) or '""'


def _in_regex(text: str) -> str:
    return re.escape(text).replace("\\\n", r"\n").replace("\n", r"\n").replace("/", r"\/")


def _in_words(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.pop("tool_calls", None)
    if calls:
        said = "\n".join(written(call.get("function") or {}) for call in calls)
        message["content"] = f"{message.get('content') or ''}\n{said}".strip()
    elif message.get("role") == "tool":
        content = message.get("content")
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        return {"role": "user", "content": f"<tool_response>\n{text}\n</tool_response>"}
    return message


def as_openai(calls: Sequence[Call]) -> list[dict[str, Any]]:
    """OpenAI's tool_calls."""
    return [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {
                "name": call.name,
                "arguments": call.arguments
                if isinstance(call.arguments, str)
                else json.dumps(call.arguments, ensure_ascii=False),
            },
        }
        for call in calls
    ]


def chosen(tools: Sequence[Mapping[str, Any]], choice: Any) -> list[Mapping[str, Any]] | None:
    """The tools that must be called by `choice`: all of them, one, or None where it is up to the model. Raises
    UserError."""
    if choice in (None, "auto", "none"):
        return None
    if choice == "required":
        return list(tools)
    wanted = choice["function"]["name"]
    found = [tool for tool in tools if tool["function"]["name"] == wanted]
    if not found:
        raise UserError(f"tool_choice names {wanted!r}, but the tools are {', '.join(names(tools))}.")
    return found
