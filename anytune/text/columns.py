"""The columns of a row: what those of well-known data sets mean, and which of a row's nothing takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from anytune.errors import UserError
from anytune.text.messages import from_json
from anytune.text.rows import kind_of, loads

SYSTEM = ("system", "system_prompt", "system_message", "system_instruction", "systemPrompt")
TOOLS = ("tools", "functions")
CONTEXT = (
    "context",
    "contexts",
    "passage",
    "passages",
    "article",
    "document",
    "documents",
    "paragraph",
    "story",
    "support",
    "evidence",
    "background",
    "knowledge",
)
REASONING = ("reasoning", "reasoning_content", "thinking", "thought", "thoughts", "cot", "chain_of_thought")
CHOICES = ("choices", "options")
LABELS = ("label", "kto_tag")
_PROMPT_LIKE = ("prompt", "question", "instruction", "query", "input", "problem", "title")
_COMPLETION_LIKE = ("completion", "answer", "response", "output", "solution", "label", "target", "summary")
_SYSTEM_LIKE, _REASONING_LIKE = ("system", "persona", "character"), ("reason", "rationale", "explan", "thought", "cot")
_NAMED = 40  # columns in a message


class Row:
    """A row whose columns are taken one by one; what is null is not there. named: role -> column, as the user has it.

    auto: whether columns that are known by their names are taken unasked.
    """

    def __init__(self, row: Mapping[str, Any], named: Mapping[str, str], auto: bool = True) -> None:
        self.values = {name: value for name, value in row.items() if value is not None}
        self.named, self.auto, self.taken = named, auto, set()

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def take(self, name: str) -> Any:
        self.taken.add(name)
        return self.values.get(name)

    def text(self, name: str) -> str:
        """Take a column that must be text. Raises UserError."""
        value = self.take(name)
        if not isinstance(value, str):
            raise UserError(f"{name!r} must be text, not {kind_of(value)}.")
        return value

    def column(self, role: str, known: tuple[str, ...]) -> str | None:
        """The column of a role: the one that the user named, else the first known one that is not taken yet."""
        if role in self.named:
            return self.named[role] if self.named[role] in self else None
        return next(
            (name for name in known if name in self and name not in self.taken and not blank(self.get(name))), None
        )

    def system(self) -> list[dict[str, str]]:
        """The system message of a column, as a list of one or none."""
        name = self.column("system", SYSTEM)
        if name is None or (not isinstance(self.get(name), str) and "system" not in self.named):
            return []
        text = self.text(name)
        return [{"role": "system", "content": text}] if text.strip() else []

    def tools(self) -> list | None:
        """The tools of a column: a list, or JSON text of one. Raises UserError."""
        name = self.column("tools", TOOLS)
        value = self.take(name) if name else None
        if isinstance(value, str) and value.strip():
            try:
                value = loads(value)
            except (ValueError, RecursionError):
                raise UserError(f"the {name} are not valid JSON, or have a duplicate key.") from None
        if blank(value):
            return None
        if isinstance(value, dict) and (isinstance(value.get("function"), dict) or isinstance(value.get("name"), str)):
            value = [value]  # the only one
        if not isinstance(value, list):
            raise UserError(f"the {name} must be a list, not {kind_of(value)}.")
        return [_wrapped(from_json(tool)) for tool in value] if name == "functions" else value

    def contexts(self, prompt: str) -> list[str]:
        """Texts that a question is about and does not hold itself: of the column that the user named, else of the known
        ones."""
        names = [self.named["context"]] if "context" in self.named else CONTEXT if self.auto else ()
        out = []
        for name in (name for name in names if name in self and name not in self.taken):
            value = self.get(name)
            parts = [value] if isinstance(value, str) else value if isinstance(value, list) else [None]
            if all(isinstance(part, str) for part in parts):
                self.taken.add(name)
                out += [part for part in parts if part.strip() and part not in prompt]
            elif "context" in self.named:
                raise UserError(f"{name!r} must be text or a list of texts, not {kind_of(value)}.")
        return out

    def reasoning(self) -> str:
        """The thoughts that are before the answer, "" if there are none."""
        name = self.column("reasoning", REASONING if self.auto else ())
        if name is None or (not isinstance(self.get(name), str) and "reasoning" not in self.named):
            return ""
        return self.text(name)

    def choices(self) -> dict[str, str]:
        """letter -> text of the answers that a question offers, {} if there are none."""
        for name in CHOICES if self.auto else ():
            if name not in self.taken and (found := _choices(self.get(name))):
                self.taken.add(name)
                return found
        return {}

    def history(self) -> list[dict[str, str]]:
        """The turns of a column of earlier [question, answer] pairs. Raises UserError."""
        turns = self.get("history")
        if not self.auto or blank(turns):
            return []
        if isinstance(turns, list) and all(_is_exchange(turn) for turn in turns):
            self.taken.add("history")
            return [
                {"role": role, "content": text}
                for turn in turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
        raise UserError("'history' must be a list of [question, answer] pairs of texts.")

    def rejected(self) -> bool:
        """Whether a label says that the answer is a bad one (unpaired preferences; tables write 0 and 1). Beside
        choices a number is the right one's."""
        numbers = {"1": True, "0": False, "1.0": True, "0.0": False}
        numbers = {} if self.values.keys() & {*CHOICES, "endings"} else numbers
        for name in LABELS:
            value = ({"true": True, "false": False} | numbers).get(str(self.get(name)).strip().lower())
            if value is not None and name not in self.taken:
                self.taken.add(name)
                return not value
        return False

    def unused(self, words: str) -> dict[str, bool]:
        """Column -> whether it is text, for those that were not taken and are not in `words` anyway."""
        return {
            name: isinstance(value, str)
            for name, value in self.values.items()
            if name not in self.taken and not blank(value) and not (isinstance(value, str) and value in words)
        }


def _wrapped(function: Any) -> Any:
    """A function as the tool that it is."""
    bare = isinstance(function, dict) and "function" not in function
    return {"type": "function", "function": function} if bare else function


def blank(value: Any) -> bool:
    return not value.strip() if isinstance(value, str) else value is None or value in ([], {})


def _is_exchange(turn: Any) -> bool:
    return isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(text, str) for text in turn)


def _choices(value: Any) -> dict[str, str]:
    """As data sets write them: texts, {"label": […], "text": […]}, letters with texts, or objects of label and text."""
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        labels = value.get("label") or [chr(ord("A") + i) for i in range(len(value["text"]))]
        value = dict(zip(labels, value["text"], strict=False)) if len(labels) == len(value["text"]) else {}
    elif isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("label", item.get("key")): item.get("text", item.get("value")) for item in value}
    elif isinstance(value, list) and len(value) <= 26:
        value = {chr(ord("A") + i): item for i, item in enumerate(value)}
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        return {}
    return value


def listed(names) -> str:
    """Names of columns for a message."""
    names = [str(name)[:40] for name in names]
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "") if names else "none"


def pair_flags(row: Row, text_column: str) -> str:
    """--prompt-key … --completion-key … for the columns that look like it, or ""."""
    texts = [name for name, value in row.values.items() if isinstance(value, str) and value and name != text_column]
    prompt = next((name for like in _PROMPT_LIKE for name in texts if name.lower() == like), None)
    completion = next(
        (name for like in _COMPLETION_LIKE for name in texts if name.lower() == like and name != prompt), None
    )
    return f"--prompt-key {prompt} --completion-key {completion}" if prompt and completion else ""


def flag_for(name: str, kind: str, pair: str) -> str:
    """The option that would use an unused text column of a record of this kind. pair: what pair_flags() found."""
    if kind == "text":
        return pair if f" {name} " in f" {pair} " else f"--text-key {name}"
    like = name.lower()
    if kind == "chat" or any(part in like for part in _SYSTEM_LIKE):
        return f"--system-key {name}"
    return f"--{'reasoning' if any(part in like for part in _REASONING_LIKE) else 'context'}-key {name}"


class Unused:
    """Counts the columns that records leave unused, for one sentence."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.flags: dict[str, str] = {}

    def add(self, unused: Mapping[str, bool], kind: str, pair: str) -> None:
        for name, is_text in unused.items():
            self.counts[name] += 1
            if is_text:
                self.flags.setdefault(name, flag_for(name, kind, pair))

    def note(self, records: int) -> str | None:
        """None if all columns of all `records` were used."""
        if not self.counts:
            return None
        items = []
        for name in sorted(self.counts, key=lambda name: name not in self.flags)[:_NAMED]:
            more = [] if self.counts[name] == records else [f"in {self.counts[name]:,} of {records:,} rows"]
            more += [f"{self.flags[name]} would use it"] if name in self.flags else []
            items.append(name[:80] + (f" ({'; '.join(more)})" if more else ""))
        rest = len(self.counts) - len(items)
        return f"Columns that are not used: {', '.join(items)}{f' and {rest} more' if rest > 0 else ''}."
