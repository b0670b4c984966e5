"""What was met while a data set was built: counts for its report, and sentences for people."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from anytune.text.given import place
from anytune.text.columns import Unused
from anytune.text.control import Control
from anytune.text.dataset import Dataset
from anytune.text.formats import Record
from anytune.text.leftout import note

_NAMED = 5  # lines named in a note


class Tally:
    """Counts, added to while records become examples."""

    def __init__(self, tokenizer) -> None:
        self.kinds: dict[str, None] = {}  # of records
        self.records = self.chats = self.cut_tokens = self.pieces = self.open_ended = 0
        self.too_long: list[tuple[str, int]] = []  # file and line
        self.dropped = self.rejected = 0
        self.unused, self.control = Unused(), Control(tokenizer)
        self.notes: dict[str, None] = {}
        self.left_out, self.left_out_first = Counter(), ""
        self.extra: Counter[str] = Counter()  # keys of messages that nothing reads

    def report(self, context: int) -> dict:
        """JSON-able; context: the longest example that was allowed."""
        return {
            "records": self.records,
            "chats": self.chats,
            "too_long": len(self.too_long),
            "pieces": self.pieces,
            "cut_tokens": self.cut_tokens,
            "dropped": self.dropped,
            "rejected": self.rejected,
            "no_end_token": self.open_ended,
            "notes": self._notes(context),
        }

    def learned(self, built: Dataset, loss: str) -> str:
        """What is learned, for the first line of a run."""
        what = {
            "chat": "the assistant's words and end-of-turn tokens",
            "pair": "the completions and their end tokens",
            "text": "all of the plain text",
            "plain": "all of the plain text",
        }
        if loss == "assistant":  # such texts are read as pairs, or refused
            what["text"] = what["pair"]
        kinds = list(dict.fromkeys(what[kind] for kind in self.kinds))
        said = "every token, users' included" if loss == "all" else "; ".join(kinds)
        hint = "" if loss != "auto" or set(self.kinds) <= {"text", "plain"} else " (--loss all: every token)"
        return f"{said}: {built.loss_tokens:,} of {built.tokens:,} tokens{hint}"

    def _notes(self, context: int) -> list[str]:
        notes = [*self.notes, *self.control.notes()]
        if self.left_out:
            notes.append(note(self.left_out, self.left_out_first))
        if (unused := self.unused.note(self.records)) is not None:
            notes.append(unused)
        if extra := [f"{key[:80]} ({count:,})" for key, count in self.extra.most_common(_NAMED) if count]:
            notes.append(f"Keys of messages that are not used (records with them): {', '.join(extra)}.")
        if self.rejected:
            notes.append(f"{self.rejected:,} of {self.records:,} answers are labelled as rejected, and were dropped.")
        if self.too_long:
            count, what = len(self.too_long), []
            if self.cut_tokens:
                what.append(f"{self.cut_tokens:,} tokens were cut off")
            if self.pieces:
                what.append(f"split into {self.pieces:,} pieces")
            if self.dropped:
                what.append(f"{self.dropped:,} dropped")
            shown = ", ".join(place(name, line).replace(",", "") for name, line in self.too_long[:_NAMED])
            shown += ", …" if count > _NAMED else ""
            notes.append(
                f"{count:,} of {self.records:,} examples are longer than -c {context}: "
                f"{'; '.join(what)} ({shown}). "
                "Raise -c to keep them whole, or see --overflow."
            )
        if self.open_ended:
            notes.append(
                f"In {self.open_ended:,} examples no token ends the assistant's turn, so the model "
                "does not learn to stop: "
                "use a chat template with an end token."
            )
        return notes


def no_assistant(path: Path, record: Record) -> str:
    """Why `record`, running text, cannot be learned from its assistant alone, and what to do."""
    what = (
        "This is plain text"
        if record.kind == "plain"
        else f"{path} contains plain text (columns: {', '.join(record.columns)})"
    )
    instead = f", or make pairs of its columns, for example with {record.suggestion}" if record.suggestion else ""
    if not instead and record.kind != "plain":
        instead = ", or name the columns with --prompt-key and --completion-key"
    return f"{what}, not chats, so there are no assistant turns: omit --assistant-loss-only{instead}."
