"""Examples for a teacher and a student: the same words, which the teacher may see behind a context of its own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapt.walk import Batch
from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.model import Model
    from anytune.text import ChatTemplate, Dataset

SHARED = 8   # tokens: a shorter common beginning is not worth a batch of its own
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Context:
    """What stands before each conversation in the teacher's eyes: a system message, and turns as examples."""

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


class Behind:
    """A chat template that puts a context before whatever it renders."""

    def __init__(self, template: ChatTemplate, context: Context):
        self._template, self._context = template, context

    def __getattr__(self, name: str) -> Any:
        return getattr(self._template, name)

    def render(self, messages, tools=None, add_generation_prompt=False, **more: Any) -> str:
        return self._template.render(self._context.before(messages), tools, add_generation_prompt, **more)

    def render_marked(self, messages, tools=None, add_generation_prompt=False, **more: Any):
        return self._template.render_marked(self._context.before(messages), tools, add_generation_prompt, **more)


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
                turns += [{"role": "user", "content": record.prompt},
                          {"role": "assistant", "content": record.completion}]
            else:
                raise UserError(f"{path}, line {record.line}: --shots takes conversations, or prompts with "
                                "completions.")
    return tuple(turns)


def read(model: Model, paths: Sequence[str | os.PathLike], reading: Reading, context: Context | None = None,
         split: float = 0.0, seed: int = 42) -> tuple[Examples, Examples | None]:
    """(examples, those held out or None) of the files, as student and teacher read them.

    split: the share that is held out; what comes from one line, or has the same tokens, stays on one side.
    Raises UserError naming file and line.
    """
    whole = _dataset(model, paths, reading, reading.template, reading.limit)
    behind = None
    if context and whole.report.get("chats"):
        behind = _keyed(_dataset(model, paths, reading, Behind(reading.template, context), model.config.context))
    parts: list[Dataset | None] = list(whole.split(split, seed)) if split else [whole, None]
    front = model.tokenize(context.plain) if context and behind is None else []
    edge = _edge(model, reading, context) if behind is not None else len(front)
    made = [None if part is None else _pairs(part, behind, front, edge) for part in parts]
    notes = [note for note in whole.report["notes"] if "-c" not in note]
    if whole.report["dropped"]:
        notes.append(f"{whole.report['dropped']} of {whole.report['records']} examples are longer than "
                     f"-c {reading.limit} and left out: raise -c to use them.")
    return Examples(tuple(made[0] or ()), tuple(notes)), None if made[1] is None else Examples(tuple(made[1]))


def _dataset(model: Model, paths: Sequence[str | os.PathLike], reading: Reading, template: Any, limit: int) -> Dataset:
    from anytune.text import build_dataset
    from anytune.text.formats import read_records
    kinds = {next(read_records(Path(path), reading.format, reading.columns)).kind for path in paths}
    chats = not kinds & {"text", "plain"}
    return build_dataset([Path(path) for path in paths], model.tokenizer, template, context=limit,
                         assistant_loss_only=chats, format=reading.format, columns=dict(reading.columns or {}) or None,
                         overflow="drop" if chats else None)


def _edge(model: Model, reading: Reading, context: Context) -> int:
    """Tokens of the context alone, 0 where a template renders it differently once a conversation follows."""
    try:
        head = reading.template.render(context.before([]))
        asked = reading.template.render(context.before([{"role": "user", "content": "x"}]))
    except UserError:
        return 0
    if not asked.startswith(head):
        return 0
    tokenizer = model.tokenizer
    ids = tokenizer.encode(head, special=True)
    return len(ids) - (bool(tokenizer.add_eos) and ids[-1:] == [tokenizer.eos])


def _keyed(data: Dataset) -> dict[tuple[int, int, int], int]:
    """{(file, line, how many of that line before): example}, with the set itself under "data"."""
    found: dict[Any, Any] = {"data": data}
    seen: dict[tuple[int, int], int] = {}
    for number, place in enumerate(zip(data.files.tolist(), data.lines.tolist())):
        seen[place] = seen.get(place, -1) + 1
        found[(*place, seen[place])] = number
    return found


def _pairs(data: Dataset, behind: dict | None, front: list[int], edge: int) -> list[Example]:
    found = []
    for key, number in _keyed(data).items():
        if key == "data":
            continue
        ids, loss = data.example(number)
        if behind is not None:
            if key not in behind:
                raise UserError(f"{data.where(number)}: behind the teacher's context this example is longer than the "
                                "model's own context; shorten the context or the example.")
            other = behind["data"].example(behind[key])[0]
        else:
            keep = 1 if front and ids[0] == front[0] else 0     # one BOS
            other = np.concatenate([np.asarray(front, np.int32), ids[keep:]]) if front else ids
        own = len(ids) if other is ids else min(_common_end(ids, other), len(other) - edge)
        if own < 2:
            raise UserError(f"{data.where(number)}: the chat template writes this example otherwise behind the "
                            "teacher's context, so that nothing of it can be compared.")
        found.append(Example(np.asarray(ids, np.int32), np.asarray(other, np.int32), own, np.asarray(loss, bool)))
    return found


def _common_end(one: np.ndarray, other: np.ndarray) -> int:
    most = min(len(one), len(other))
    differs = np.flatnonzero(one[::-1][:most] != other[::-1][:most])
    return int(differs[0]) if len(differs) else most


def batches(examples: Sequence[Example], size: int, teacher: bool,
            share: bool = True) -> tuple[list[Batch], np.ndarray]:
    """(batches of at most `size` tokens, or of one example; the beginning that all of them stand behind) for the
    student or the teacher. Both have the same examples in each batch."""
    tails = [max(len(e.ids), len(e.behind) if not share else e.own) for e in examples]
    full = [e.behind if teacher else e.ids for e in examples]
    front = _beginning(full, [e.own for e in examples]) if share else 0
    groups: list[list[int]] = [[]]
    held = 0
    for number, length in enumerate(tails):
        if groups[-1] and held + length > size:
            groups.append([])
            held = 0
        groups[-1].append(number)
        held += length
    return [_batch([(full[n], examples[n]) for n in group], front) for group in groups], full[0][:front]


def _beginning(full: Sequence[np.ndarray], own: Sequence[int]) -> int:
    """Tokens that all begin with, of none's own."""
    most = min(len(ids) - count for ids, count in zip(full, own, strict=True))
    if len(full) < 2 or most < SHARED:
        return 0
    same = np.all([ids[:most] == full[0][:most] for ids in full], axis=0)
    front = most if same.all() else int(np.argmin(same))
    return front if front >= SHARED else 0


def _batch(group: Sequence[tuple[np.ndarray, Example]], front: int) -> Batch:
    parts = [ids[front:] for ids, _ in group]
    starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int32)
    rows, scored, targets = [], [], []
    for (_, example), part, start in zip(group, parts, starts):
        first = start + len(part) - example.own
        rows.append(np.arange(first, start + len(part)))
        said = np.flatnonzero(example.loss[len(example.ids) - example.own:][1:])   # the token behind an own one
        scored.append(first + said)
        targets.append(example.ids[len(example.ids) - example.own:][1:][said])
    return Batch(np.concatenate(parts).astype(np.int32), starts, *(np.concatenate(x).astype(np.int32)
                                                                 for x in (rows, scored, targets)), front)


def text_examples(model: Model, text: str, size: int = 256, context: Context | None = None,
                  most: int | None = None) -> list[Example]:
    """Windows of ordinary text, every token of which counts; behind a context in the teacher's eyes."""
    tokenizer = model.tokenizer
    front = [tokenizer.bos] if tokenizer.add_bos and tokenizer.bos is not None else []
    ids = tokenizer.encode(text, special=False, bos=False)
    size = min(size, model.config.context) - len(front)
    windows = [ids[at:at + size] for at in range(0, len(ids), size)][:most]
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
