"""Random conversations in all the forms in which data have them, every word of them another."""

import itertools
import json

from hypothesis import strategies as st

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}


@st.composite
def conversations(draw):
    """(messages, tools), tools in one of the forms in which they are given, or None."""
    count = itertools.count(10)
    odd = st.sampled_from(["", "", "", " é", ' "q"', " <b>", "\nnew line", " 'it'"])

    def word(kind: str) -> str:
        return f"{kind}{next(count)}{draw(odd)}"

    messages = []
    first = draw(st.sampled_from([None, None, "system", "developer"]))
    if first:
        messages.append({"role": first, "content": word("rule")})
    names = [f"fun{k}x" for k in range(draw(st.integers(0, 2)))]
    for _ in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": word("ask")})
        for _ in range(draw(st.integers(0, 2)) if names else 0):
            calls = [_call(draw, draw(st.sampled_from(names)), word) for _ in range(draw(st.integers(1, 2)))]
            messages.append(_answer(draw, word, calls))
            messages += [{"role": "tool", "content": word("found"), "tool_call_id": call["id"]} for call in calls]
        messages.append(_answer(draw, word, []))
    tools = [{"type": "function", "function": {"name": f"{name}", "parameters": SCHEMA}} for name in names]
    form = draw(st.sampled_from([list, lambda found: [json.dumps(tool) for tool in found], json.dumps]))
    return messages, form(tools) if tools else None


def _answer(draw, word, calls: list) -> dict:
    message = {"role": "assistant"}
    thought = draw(st.sampled_from([None, None, None, "reasoning_content", "reasoning", "thinking", "inline"]))
    content = draw(st.sampled_from([None, "", "absent", "words"])) if calls else "words"
    words = word("say") if content == "words" else content
    if thought == "inline":
        words = f"<think>\n{word('think')}\n</think>\n\n{words if content == 'words' else ''}"
    elif thought:
        message[thought] = word("think")
    if words != "absent":
        message["content"] = words
    return message | ({"tool_calls": calls} if calls else {})


def _call(draw, name: str, word) -> dict:
    arguments = draw(st.sampled_from([{}, {"city": word("arg")}, {"n": 3, "deep": {"list": [word("arg"), None]}}]))
    if draw(st.booleans()):
        arguments = json.dumps(arguments) if arguments else draw(st.sampled_from(["", "{}"]))
    return {"id": word("id"), "type": "function", "function": {"name": name, "arguments": arguments}}


def words_of(message: dict) -> list[str]:
    """The words of a message that are another in each, without what templates take away around them."""
    text = json.dumps({key: value for key, value in message.items() if key != "tool_call_id"}, ensure_ascii=False)
    text = text.replace("\\n", " ")  # an escape's n is not the first letter of a word
    return [part for kind in ("rule", "ask", "say", "think", "found", "arg") for part in _numbered(text, kind)]


def _numbered(text: str, kind: str) -> list[str]:
    import re

    return re.findall(rf"\b{kind}\d+", text)
