"""Chat templates: the GGUF file's own, a file's, or ChatML; rendered in a sandbox."""

from __future__ import annotations

import datetime
import json
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.text.reading import read_text

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "WITH_EOS{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Where <|im_end|> is no token of the vocabulary, nothing would stop a generation: EOS follows it.
_WITH_EOS = "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
_MESSAGE_KEYS = ("role", "content")


class ChatTemplate:
    """source: Jinja text; tokenizer: for the texts of bos_token, eos_token and the like, or None.

    origin: "gguf", "file", "chatml" (the fallback, to be announced) or "given". notice: a sentence to show
    the user, or None. today: what strftime_now tells (the moment of creation, so that one run renders alike
    throughout).
    Raises UserError if the template does not compile.
    """

    def __init__(
        self,
        source: str,
        tokenizer=None,
        *,
        origin: str = "given",
        tools_source: str | None = None,
        today: datetime.datetime | None = None,
    ) -> None:
        from anytune.text.sandbox import SOURCE_LIMIT, Environment

        self.source, self.origin, self.notice = source, origin, None
        self.today = today or datetime.datetime.now()
        self._env, self._lock = Environment(), threading.RLock()
        self._env.globals |= {"raise_exception": _raise, "strftime_now": self._strftime} | _texts(tokenizer)
        self._limit = SOURCE_LIMIT
        self._compiled = self._compile(source)
        self._with_tools = self._compile(tools_source) if tools_source else self._compiled
        self.has_marks = "generation" in source and "endgeneration" in source

    @classmethod
    def for_model(cls, gguf, tokenizer, file: str | Path | None = None) -> ChatTemplate:
        """The template of `file` if one is given, else the GGUF file's, else ChatML (origin "chatml").

        Raises UserError if the file cannot be read or the template does not compile.
        """
        if file is not None:
            return cls(read_text(file), tokenizer, origin="file")
        own, for_tools = (gguf.metadata.get(f"tokenizer.chat_template{kind}") for kind in ("", ".tool_use"))
        if isinstance(own, str) and own.strip():
            return cls(
                own, tokenizer, origin="gguf", tools_source=for_tools if isinstance(for_tools, str) else None
            )
        known = tokenizer is None or "<|im_end|>" in tokenizer.vocabulary.ids
        template = cls(_CHATML.replace("WITH_EOS", "" if known else _WITH_EOS), tokenizer, origin="chatml")
        template.notice = "The model file has no chat template, so ChatML is used" + (
            "." if known else ", with EOS after each answer: <|im_end|> is not in its vocabulary."
        )
        return template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence | None = None,
        add_generation_prompt: bool = False,
        **more: Any,
    ) -> str:
        """The conversation as text. messages: dicts with role and content; more: further template variables.

        Raises UserError with the template's own words if it refuses the conversation, or with the limit that
        it went over.
        """
        return self.render_marked(messages, tools, add_generation_prompt, **more)[0]

    def render_marked(
        self, messages, tools=None, add_generation_prompt=False, **more
    ) -> tuple[str, list[tuple[int, int]]]:
        """(text, spans): the spans [start, end) in the text that stood between generation tags."""
        messages = [normalise(message) for message in messages]
        try:
            return self._render(messages, tools, add_generation_prompt, more)
        except UserError:
            # Some templates join a call's arguments to text, and so need them as JSON.
            as_text, changed = _arguments_as_text(messages)
            if not changed:
                raise
            try:
                return self._render(as_text, tools, add_generation_prompt, more)
            except UserError:
                pass
            raise

    def _render(self, messages, tools, add_generation_prompt, more) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError

        from anytune.text.sandbox import LimitError, Meter

        given = len(str(messages)) + len(str(tools or ""))
        template = self._with_tools if tools else self._compiled
        with self._lock:
            self._env.meter = Meter(given)
            self._env.mark = f"\ue000{secrets.token_hex(8)}\ue001" if self.has_marks else ""
            try:
                text = template.render(
                    messages=messages,
                    tools=list(tools) if tools else None,
                    documents=None,
                    add_generation_prompt=add_generation_prompt,
                    **more,
                )
            except LimitError as error:
                raise UserError(f"The chat template was stopped: {error}.") from None
            except TemplateError as error:
                raise UserError(
                    f"The chat template refuses the conversation: {error.message or error}"
                ) from None
            except (RecursionError, MemoryError):
                raise UserError("The chat template was stopped: it nests too deeply.") from None
            except Exception as error:  # whatever the template's expressions raise
                raise UserError(
                    f"The chat template fails on the conversation: {type(error).__name__}: {error}"
                ) from None
            return _take_marks(text, self._env.mark)

    def _compile(self, source: str):
        from jinja2 import TemplateError

        if len(source) > self._limit:
            raise UserError(
                f"The chat template has {len(source):,} characters; more than {self._limit:,} are not read."
            )
        try:
            return self._env.from_string(source)
        except TemplateError as error:
            line = getattr(error, "lineno", None)
            where = f" (its line {line})" if line else ""
            raise UserError(
                f"The chat template is not valid Jinja{where}: {error.message or error}"
            ) from None
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError):
            raise UserError("The chat template nests too deeply to be compiled.") from None

    def _strftime(self, form: str) -> str:
        return self.today.strftime(form[:200])


def normalise(message: Mapping[str, Any]) -> dict[str, Any]:
    """One message as templates expect it: text content, calls with their arguments as objects.

    Raises UserError if it has no role, or content that is not text.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UserError("A message must be an object with a role and content.")
    out = {key: value for key, value in message.items() if value is not None or key in _MESSAGE_KEYS}
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        parts = [
            part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
            for part in content
        ]
        if not all(isinstance(part, str) for part in parts):
            raise UserError("A message's content has parts that are not text, which cannot be used.")
        content = "".join(parts)
    if content is not None and not isinstance(content, str):
        raise UserError(f"A message's content must be text, not {type(content).__name__}.")
    out["content"] = content or ""
    calls = out.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, str):
        out["tool_calls"] = [_call(call) for call in calls]
    return out


def _call(call: Any) -> Any:
    if not isinstance(call, Mapping):
        raise UserError("A tool call must be an object.")
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"])}
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            return dict(call)
        if isinstance(parsed, dict):
            return {**call, "arguments": parsed}
    return dict(call)


def _arguments_as_text(messages: list[dict]) -> tuple[list[dict], bool]:
    changed = False

    def call(value: dict) -> dict:
        nonlocal changed
        if isinstance(value.get("function"), Mapping):
            return {**value, "function": call(dict(value["function"]))}
        if isinstance(value.get("arguments"), Mapping):
            changed = True
            return {**value, "arguments": json.dumps(value["arguments"], ensure_ascii=False)}
        return value

    out = [
        {**m, "tool_calls": [call(dict(c)) for c in m["tool_calls"]]}
        if isinstance(m.get("tool_calls"), list)
        else m
        for m in messages
    ]
    return out, changed


def _take_marks(text: str, mark: str) -> tuple[str, list[tuple[int, int]]]:
    """Remove the marks; [start, end) of what stood between each pair of them."""
    if not mark or mark not in text:
        return text, []
    parts, ends, at = text.split(mark), [], 0
    for part in parts[:-1]:
        at += len(part)
        ends.append(at)
    return "".join(parts), list(zip(ends[::2], ends[1::2], strict=False))


def _texts(tokenizer) -> dict[str, str]:
    """bos_token and so on: the texts of the tokenizer's special ids, "" where it has none."""
    if tokenizer is None:
        return {"bos_token": "", "eos_token": "", "unk_token": "", "pad_token": ""}
    vocabulary = tokenizer.vocabulary
    ids = {"bos": vocabulary.bos, "eos": vocabulary.eos, "unk": vocabulary.unknown, "pad": vocabulary.padding}
    return {f"{name}_token": "" if i is None else vocabulary.tokens[i] for name, i in ids.items()}


def _raise(message: Any = "") -> None:
    from jinja2 import TemplateError

    raise TemplateError(str(message)[:1000])
