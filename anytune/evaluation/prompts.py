"""Prompts to answer, with references where the data has them: the formats of training data, or a prompt a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.text.formats import Record, read_records, records_of
from anytune.text.given import Rows
from anytune.text.reading import WHITE
from anytune.text.rows import DataFile

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.model import Model
    from anytune.text import ChatTemplate


@dataclass(frozen=True)
class Prompt:
    """line: where it is in its file. messages: the conversation up to the answer; text: the same as plain text, if
    the file has it so. reference: the answer that the file has, or None."""

    line: int
    messages: tuple[Mapping[str, Any], ...]
    text: str | None = None
    reference: str | None = None
    tools: list | None = None

    def with_system(self, content: str) -> Prompt:
        """The same after a system message."""
        return replace(self, messages=({"role": "system", "content": content}, *self.messages))

    @property
    def shown(self) -> str:
        """For a person: the words of a single message, or every message with its role."""
        if len(self.messages) == 1:
            return str(self.messages[0].get("content") or "")
        return "\n\n".join(f"{m['role']}: {m.get('content') or ''}" for m in self.messages)


def read_prompts(
    path: str | Path | Rows, columns: Mapping[str, str] | None = None, limit: int | None = None
) -> list[Prompt]:
    """The prompts of a file: a chat's last assistant message, or a completion, is the reference.

    columns: role -> column, as for training data. limit: the first so many. Raises UserError naming the line.
    """
    columns = dict(columns or {})
    if isinstance(path, Rows):
        columns = {"text": "prompt"} if not columns and _only_prompts(next((row for _, row in path), {})) else columns
        read = read_records(path, "auto", columns)
    elif Path(path).is_dir():
        read = read_records(path, "auto", columns)
    else:
        file = DataFile(path)
        if not file.plain and not columns and _only_prompts(file.first()):
            columns = {"text": "prompt"}
        read = records_of(file, "auto", columns)
    found: list[Prompt] = []
    for record in read:
        found += _plain(record) if record.kind == "plain" else [_prompt(path, record)]
        if limit is not None and len(found) >= limit:
            break
    if not found:
        raise UserError(f"{path} has no prompts.")
    return found[:limit]


def _only_prompts(row: dict) -> bool:
    """Whether a row has a prompt and no answer, which training data never has."""
    return "prompt" in row and not {"completion", "response", "output", "messages", "text"} & set(row)


def _plain(record: Record) -> list[Prompt]:
    """A prompt a line. U+2028 and the like end no line."""
    lines = (line.strip(WHITE) for line in record.text.split("\n"))
    return [Prompt(record.line + n, ({"role": "user", "content": line},), line) for n, line in enumerate(lines) if line]


def _prompt(path: str | Path, record: Record) -> Prompt:
    if record.kind == "chat":
        messages, reference = record.messages, None
        if messages[-1]["role"] == "assistant":
            messages, reference = messages[:-1], messages[-1].get("content")
        if not messages:
            raise UserError(f"{path}, line {record.line}: there is nothing before the assistant's message to answer.")
        reference = reference if isinstance(reference, str) and not record.rejected else None
        return Prompt(record.line, tuple(messages), None, reference, record.tools)
    text = record.prompt if record.kind == "pair" else record.text
    if not text.strip():
        raise UserError(f"{path}, line {record.line}: the prompt is empty.")
    return Prompt(
        record.line,
        (*record.messages, {"role": "user", "content": text}),
        text,
        None if record.rejected else record.completion or None,
        record.tools,
    )


@dataclass(frozen=True)
class Form:
    """How prompts become tokens, for base and adapters alike. template: None where they are continued as raw text."""

    model: Model
    template: ChatTemplate | None

    @classmethod
    def of(
        cls,
        model: Model,
        adapters: Mapping[str, Adapter],
        template: ChatTemplate | None = None,
        chat: bool | None = None,
    ) -> Form:
        """As `anytune generate` would ask the adapter. Raises UserError if adapters knew different templates."""
        from anytune.generation.prompts import template_of, wants_chat

        kinds = (
            {
                name: template_of(model, a, template).source if wants_chat(model, a, template) else None
                for name, a in adapters.items()
            }
            if chat is None
            else {}
        )
        if len(set(kinds.values())) > 1:
            one, other = next((a, b) for a in kinds for b in kinds if kinds[a] != kinds[b])
            raise UserError(
                f"{one} and {other} were trained with different prompt formats: compare each alone, or set one "
                "format for both with --chat-template, --chat or --raw."
            )
        first = next(iter(adapters.values()), None)
        wanted = wants_chat(model, first, template) if chat is None else chat
        return cls(model, template_of(model, first, template) if wanted else None)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids up to where the answer begins. Raises UserError."""
        from anytune.generation.prompts import encode_rendered

        tokenizer = self.model.tokenizer
        if self.template is None and prompt.text is not None:
            return tokenizer.encode(_raw(prompt), special=True, bos=tokenizer.add_bos)
        template = self.template or self.model.template
        return encode_rendered(tokenizer, template.render(prompt.messages, prompt.tools, add_generation_prompt=True))

    def encode_reference(self, prompt: Prompt) -> tuple[list[int], list[bool]]:
        """(ids, loss) of prompt and reference: the reference's tokens and its end carry loss. Raises UserError."""
        from anytune.text.mask import encode_chat

        tokenizer = self.model.tokenizer
        if self.template is None and prompt.text is not None:
            return _joined(tokenizer, _raw(prompt), prompt.reference or "")
        messages = [*prompt.messages, {"role": "assistant", "content": prompt.reference}]
        return encode_chat(tokenizer, self.template or self.model.template, messages, prompt.tools, len(messages) - 1)

    def encode_all(self, prompts: Sequence[Prompt], name: str) -> list[list[int]]:
        """encode() of each. Raises UserError naming the line of the file `name`, also where no answer would fit."""
        found = []
        for prompt in prompts:
            try:
                ids = self.encode(prompt)
                if not 0 < len(ids) < self.model.config.context:
                    raise UserError(
                        f"the prompt has {len(ids)} tokens and the model's context holds {self.model.config.context}."
                    )
            except UserError as error:
                raise UserError(f"{name}, line {prompt.line}: {error}") from None
            found.append(ids)
        return found


def _raw(prompt: Prompt) -> str:
    """A prompt without a template, as training joins it: what the system says, an empty line, the text."""
    return "".join(f"{message['content']}\n\n" for message in prompt.messages[:-1]) + (prompt.text or "")


def _joined(tokenizer, text: str, reference: str) -> tuple[list[int], list[bool]]:
    """(ids, loss) of raw text and what follows it, as training sees pairs: one text, with EOS."""
    ids, starts = tokenizer.encode_spans(text + reference, special=False)
    # a space that ends the prompt belongs to the first token of what follows
    at = len(text) if reference[:1] == " " else len(text.rstrip(" "))
    loss = [start >= at for start in starts]
    if tokenizer.add_bos and ids[:1] != [tokenizer.bos]:
        ids, loss = [tokenizer.bos, *ids], [False, *loss]
    if tokenizer.eos is not None and ids[-1] not in tokenizer.eog:
        ids, loss = [*ids, tokenizer.eos], [*loss, True]
    return ids, [False, *loss[1:]]
