"""Chat templates: the GGUF file's own, a file's, or ChatML; rendered in a sandbox."""

from __future__ import annotations

import datetime
import functools
import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.text.forms import Form, Known, choose
from anytune.text.messages import normalise_all, normalise_tools
from anytune.text.named import named_template
from anytune.text.reading import read_text
from anytune.text.trace import Trace, trace

_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' }}"
    "WITH_EOS{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# Where <|im_end|> is no token of the vocabulary, nothing would stop a generation: EOS follows it.
_WITH_EOS = "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
_BOM = "\ufeff"  # editors put it in front of a file; no template means it


class ChatTemplate:
    """source: Jinja text; tokenizer: for the texts of bos_token, eos_token and the like, or None.

    origin: "gguf", "file", "chatml" (the fallback, to be announced) or "given". notice: a sentence to show
    the user, or None. today: what strftime_now tells (the moment of creation, so that one run renders alike
    throughout); tells_date: whether that was asked so far.
    Raises UserError if the template does not compile; the GGUF file's own does so when it is first used, as plain text
    needs none.
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

        self.source, self.origin, self.notice = source.removeprefix(_BOM), origin, None
        self.today, self.tells_date = today or datetime.datetime.now(), False
        self._tokenizer, self._tools_source = tokenizer, tools_source
        self._env, self._lock = Environment(), threading.RLock()
        self._env.globals |= {"raise_exception": _raise, "strftime_now": self._strftime} | _texts(tokenizer)
        self._limit = SOURCE_LIMIT
        self._known = Known(self._shown)
        self.broken: UserError | None = None
        try:
            self._compiled = self._compile(self.source)
            self._with_tools = self._compile(tools_source.removeprefix(_BOM)) if tools_source else self._compiled
        except UserError as error:
            if origin != "gguf":
                raise
            self.broken = UserError(
                f"The model's own chat template cannot be used: {error} Give another one with --chat-template."
            )
        self.has_marks = "endgeneration" in source + (tools_source or "")

    @classmethod
    def for_model(cls, gguf, tokenizer, file: str | Path | None = None) -> ChatTemplate:
        """The template of `file` (a path, or one of named.NAMES) if one is given, else the GGUF file's, else ChatML
        (origin "chatml").

        Raises UserError if the file cannot be read or the template does not compile.
        """
        if file is not None:
            return cls(named_template(file) or read_text(file), tokenizer, origin="file")
        own, for_tools = (gguf.metadata.get(f"tokenizer.chat_template{kind}") for kind in ("", ".tool_use"))
        if isinstance(own, str) and own.strip():
            return cls(own, tokenizer, origin="gguf", tools_source=for_tools if isinstance(for_tools, str) else None)
        known = tokenizer is None or "<|im_end|>" in tokenizer.vocabulary.ids
        template = cls(_CHATML.replace("WITH_EOS", "" if known else _WITH_EOS), tokenizer, origin="chatml")
        template.notice = "The model file has no chat template, so ChatML is used" + (
            "." if known else ", with EOS after each answer: <|im_end|> is not in its vocabulary."
        )
        return template

    def reads(self, key: str) -> bool:
        """Whether the template names this key of an object (its source: messages are passed on whole)."""
        name = re.escape(key)
        return re.search(rf"""\.\s*{name}\b|(['"]){name}\1""", self.source + (self._tools_source or "")) is not None

    def at(self, today: datetime.datetime) -> ChatTemplate:
        """The same template on another day."""
        made = ChatTemplate(
            self.source, self._tokenizer, origin=self.origin, tools_source=self._tools_source, today=today
        )
        made.notice = self.notice
        return made

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence | None = None,
        add_generation_prompt: bool = False,
        form: Form | None = None,
        **more: Any,
    ) -> str:
        """The conversation as text. messages: dicts with role and content; more: further template variables.

        form: how the template is given what templates disagree about; None: as form_of() finds it.
        Raises UserError with the template's own words if it refuses the conversation, or with the limit that
        it went over.
        """
        return self.render_marked(messages, tools, add_generation_prompt, form, **more)[0]

    def render_marked(
        self, messages, tools=None, add_generation_prompt=False, form=None, **more
    ) -> tuple[str, list[tuple[int, int]]]:
        """(text, spans): the spans [start, end) in the text that stood between generation tags."""
        messages, tools = normalise_all(messages), normalise_tools(tools)
        form = form or self.form_of(messages, tools, add_generation_prompt, **more)
        return self._render(*form.apply(messages, tools), add_generation_prompt, more)

    def form_of(self, messages, tools=None, add_generation_prompt: bool = False, **more: Any) -> Form:
        """The form in which the template shows all of a conversation, or most. Raises UserError as render() does."""

        def plain(messages, tools) -> str:
            return self._render(messages, tools, add_generation_prompt, more)[0]

        return choose(plain, self._known, normalise_all(messages), normalise_tools(tools))

    @functools.cached_property
    def header(self) -> str:
        """What asks for an answer to a plain question; "" if the template has nothing for it."""
        return self.header_for(None)

    def header_for(self, tools: list[dict] | None) -> str:
        """The same where there are tools."""
        question = [{"role": "user", "content": "x"}]
        try:
            without, asked = (self._render(question, tools, prompt, {})[0] for prompt in (False, True))
        except UserError:
            return ""
        return asked[len(without) :] if asked.startswith(without) else ""

    def trace(self, messages, tools, form: Form, add_generation_prompt: bool = False) -> Trace:
        """Where each piece of a conversation is in its rendering. Raises UserError as render() does."""

        def plain(messages, tools) -> str:
            return self._render(messages, tools, add_generation_prompt, {})[0]

        return trace(plain, *form.apply(normalise_all(messages), normalise_tools(tools)))

    def _shown(self, messages: list[dict], tools: list[dict] | None) -> str:
        return self._render(messages, tools, False, {})[0]

    def _render(self, messages, tools, add_generation_prompt, more) -> tuple[str, list[tuple[int, int]]]:
        from jinja2 import TemplateError

        from anytune.text.meter import LimitError, Meter

        if self.broken is not None:
            raise self.broken
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
                raise UserError(f"The chat template rejects the conversation: {error.message or error}") from None
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
            raise UserError(f"The chat template is not valid Jinja{where}: {error.message or error}") from None
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError):
            raise UserError("The chat template nests too deeply to be compiled.") from None

    def _strftime(self, form: str) -> str:
        self.tells_date = True
        return self.today.strftime(form[:200])


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
