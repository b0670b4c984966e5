"""Examples for a teacher and a student: the same words, which the teacher may see behind a context of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.model import Model
    from anytune.text import ChatTemplate, Dataset
    from anytune.text.formats import Record

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What comes before each conversation for the teacher: a system message, and turns as examples."""

    system: str | None = None
    shots: tuple[Message, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.system or self.shots)

    def before(self, messages: Sequence[Message]) -> list[Message]:
        """The conversation behind this context; a system message of its own follows the context's."""
        messages, system = list(messages), [self.system] if self.system else []
        if messages and messages[0].get("role") == "system" and isinstance(messages[0].get("content"), str):
            system.append(messages.pop(0)["content"])
        head = [{"role": "system", "content": "\n\n".join(system)}] if system else []
        return [*head, *self.shots, *messages]

    @property
    def plain(self) -> str:
        """The same before running text, which has no template."""
        return "".join(f"{text}\n\n" for text in (self.system, *(m["content"] for m in self.shots)) if text)


@dataclass(frozen=True)
class Example:
    """ids int32: what the student reads; behind int32: what the teacher does; the last `own` tokens are the same in
    both, and statistics are of these. loss bool: tokens of `ids` that count as said by the assistant."""

    ids: np.ndarray
    behind: np.ndarray
    own: int
    loss: np.ndarray


@dataclass(frozen=True)
class Examples:
    """examples, and notes: sentences for the user."""

    examples: tuple[Example, ...]
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(example.own for example in self.examples)


@dataclass(frozen=True)
class Reading:
    """How data is read: as in anytune.text.build_dataset. template: that of the student and the teacher alike."""

    template: ChatTemplate
    limit: int = 512
    format: str = "auto"
    columns: Mapping[str, str] | None = None


def read_shots(paths: Sequence[str | os.PathLike], reading: Reading) -> tuple[Message, ...]:
    """The conversations of files as turns of one context. Raises UserError."""
    from anytune.text.formats import read_records

    turns: list[Message] = []
    for path in paths:
        for record in read_records(Path(path), reading.format, reading.columns):
            if record.kind == "chat":
                turns += [message for message in record.messages if message["role"] != "system"]
            elif record.kind == "pair":
                turns += [
                    {"role": "user", "content": record.prompt},
                    {"role": "assistant", "content": record.completion},
                ]
            else:
                raise UserError(
                    f"{path}, line {record.line}: --shots takes conversations, or prompts with completions."
                )
    return tuple(turns)


def read_held(
    model: Model,
    paths: Sequence[str | os.PathLike] | str | os.PathLike,
    reading: Reading,
    val_files: Sequence[str | os.PathLike] | None,
    split: float,
    seed: int,
) -> tuple[Examples, Examples]:
    """(examples, those held out): of val_files if there are any, else a share `split` of `paths`.

    Raises UserError, also where nothing is held out.
    """
    examples, held = read(model, paths, reading, None, 0.0 if val_files else split, seed)
    return examples, judged(read(model, list(val_files), reading)[0] if val_files else held)


def judged(held: Examples | None) -> Examples:
    """`held`, or a UserError where there is none."""
    if held is None:
        raise UserError("Nothing is held out to evaluate the result on: give --val-file, or a --val-split above 0.")
    return held


def read(
    model: Model,
    paths: Sequence[str | os.PathLike] | str | os.PathLike,
    reading: Reading,
    context: Context | None = None,
    split: float = 0.0,
    seed: int = 42,
) -> tuple[Examples, Examples | None]:
    """(examples, those held out or None) of the files, as student and teacher read them.

    split: the share that is held out; what comes from one line, or has the same tokens, stays on one side.
    Raises UserError naming file and line.
    """
    from anytune.text import build_dataset

    paths = [paths] if isinstance(paths, str | os.PathLike) else paths
    records: dict[tuple[int, int], Record] = {}
    whole = build_dataset(
        [Path(path) for path in paths],
        model.tokenizer,
        reading.template,
        context=reading.limit,
        format=reading.format,
        columns=dict(reading.columns or {}) or None,
        overflow={"chat": "drop", "pair": "drop"},
        see=lambda file, record: records.__setitem__((file, record.line), record),
    )
    behind = _Behind(model, reading, context or Context(), bool(whole.report["chats"]))
    parts: list[Dataset | None] = list(whole.split(split, seed)) if split else [whole, None]
    made = [
        None if part is None else [behind.example(part, number, records) for number in range(len(part))]
        for part in parts
    ]
    notes = [note for note in whole.report["notes"] if "-c" not in note]
    if whole.report["dropped"]:
        notes.append(
            f"{whole.report['dropped']} of {whole.report['records']} examples are longer than -c {reading.limit} "
            "and were dropped: raise -c to use them."
        )
    return Examples(tuple(made[0] or ()), tuple(notes)), None if made[1] is None else Examples(tuple(made[1]))


class _Behind:
    """The teacher's view of examples: behind a context. chats: whether a template writes them."""

    def __init__(self, model: Model, reading: Reading, context: Context, chats: bool):
        self.model, self.template, self.context, self.chats = model, reading.template, context, chats
        self.front = model.tokenize(context.plain) if context and not chats else []
        self.edge = self._edge() if context and chats else len(self.front)

    def example(self, data: Dataset, number: int, records: Mapping[tuple[int, int], Record]) -> Example:
        ids, loss = data.example(number)
        other = ids
        if self.context and self.chats:
            other = self._chat(data, number, records[int(data.files[number]), int(data.lines[number])])
        elif self.front:
            keep = 1 if ids[0] == self.front[0] == self.model.tokenizer.bos else 0  # one BOS
            other = np.concatenate([np.asarray(self.front, np.int32), ids[keep:]])
        own = len(ids) if other is ids else min(_common_end(ids, other), len(other) - self.edge)
        if own < 2:
            raise UserError(
                f"{data.where(number)}: the chat template renders this example differently after the teacher's "
                "context, so it cannot be compared."
            )
        if len(other) > self.model.config.context:
            raise UserError(
                f"{data.where(number)}: after the teacher's context this example has {len(other)} tokens, more than "
                f"the model's {self.model.config.context}; shorten the context or lower -c."
            )
        return Example(np.asarray(ids, np.int32), np.asarray(other, np.int32), own, np.asarray(loss, bool))

    def _chat(self, data: Dataset, number: int, record: Record) -> np.ndarray:
        from anytune.text.mask import encode_chat_report

        messages, learn_from = list(record.messages), record.learn_from
        if record.kind == "pair":
            messages += [
                {"role": "user", "content": record.prompt},
                {"role": "assistant", "content": record.completion},
            ]
        whole = self.context.before(messages)
        try:
            found = encode_chat_report(
                self.model.tokenizer, self.template, whole, record.tools, learn_from + len(whole) - len(messages)
            )
        except UserError as error:
            raise UserError(f"{data.where(number)}, after the teacher's context: {error}") from None
        return np.asarray(found.ids, np.int32)

    def _edge(self) -> int:
        """Tokens of the context alone, 0 where a template renders it differently once a conversation follows."""
        try:
            head = self.template.render(self.context.before([]))
            asked = self.template.render(self.context.before([{"role": "user", "content": "x"}]))
        except UserError:
            return 0
        tokenizer = self.model.tokenizer
        ids = tokenizer.encode(head, special=True)
        return len(ids) - (bool(tokenizer.add_eos) and ids[-1:] == [tokenizer.eos]) if asked.startswith(head) else 0


def _common_end(one: np.ndarray, other: np.ndarray) -> int:
    most = min(len(one), len(other))
    differs = np.flatnonzero(one[::-1][:most] != other[::-1][:most])
    return int(differs[0]) if len(differs) else most


def text_examples(
    model: Model, text: str, size: int = 256, context: Context | None = None, most: int | None = None
) -> list[Example]:
    """Windows of ordinary text, every token of which counts; behind a context in the teacher's eyes."""
    tokenizer = model.tokenizer
    front = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    ids = tokenizer.encode(text, special=False, bos=False)
    size = min(size, model.config.context) - len(front)
    windows = [ids[at : at + size] for at in range(0, len(ids), size)][:most]
    head: list[int] = []
    if context:
        head = model.tokenize(context.plain)
    found = []
    for window in windows:
        if len(window) < 2:
            continue
        own = np.array(front + window, np.int32)
        other = np.array([*head, *window], np.int32) if head else own
        found.append(Example(own, other, len(window) if head else len(own), np.ones(len(own), bool)))
    if not found:
        raise UserError("The ordinary text has fewer than two tokens: give a longer one.")
    return found
