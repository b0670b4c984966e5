"""What the Data page shows, computed in a helper process: every token, what is learned, what is wrong."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from anytune.errors import UserError
from anytune.text.examine import columns_of, examine, line_by_line
from anytune.text.rows import DataFile

SHOWN = 2000  # tokens of an example that are sent
BARS = 40


@functools.lru_cache(maxsize=2)
def _words(model: str) -> tuple[Any, Any]:
    """(tokenizer, template) of a model's file; its weights are not read."""
    from anytune.gguf import GGUF
    from anytune.text import ChatTemplate, Tokenizer

    with GGUF.open(model) as gguf:
        tokenizer = Tokenizer.from_gguf(gguf)
        return tokenizer, ChatTemplate.for_model(gguf, tokenizer)


@functools.lru_cache(maxsize=2)
def _examined(model: str, file: str, size: int, reading: str, context: int) -> tuple[Any, list[dict[str, Any]]]:
    tokenizer, template = _words(model)
    return examine(file, tokenizer, template, context=context, **json.loads(reading))


def _data(model: str, file: str, reading: dict[str, Any], context: int) -> tuple[Any, list[dict[str, Any]]]:
    plain = DataFile(file, reading.get("format") or "auto").plain
    # only running text is cut by the context as it is read
    return _examined(
        model, file, Path(file).stat().st_size, json.dumps(reading, sort_keys=True), context if plain else 0
    )


def look(model: str, file: str, reading: dict[str, Any], context: int) -> dict[str, Any]:
    """Counts, lengths, problems. nothing: why no run can start on this, or None."""
    data, problems = _data(model, file, reading, context)
    facts: dict[str, Any] = {
        "examples": 0,
        "tokens": 0,
        "learned": 0,
        "longest": 0,
        "too_long": 0,
        "bars": [],
        "edges": [],
        "notes": [],
        "problems": problems[:200],
        "problem_count": len(problems),
        "nothing": None,
        "template": _words(model)[1].origin,
    }
    if data is None:
        facts["nothing"] = problems[0]["problem"] if problems else "There is nothing to learn in this file."
        return facts | {"rows": _first_rows(file)}
    lengths = data.lengths
    edges = np.unique(np.linspace(int(lengths.min()), int(lengths.max()) + 1, BARS + 1).astype(int))
    bars = np.histogram(lengths, edges)[0] if len(edges) > 1 else np.array([len(lengths)])
    facts |= {
        "examples": len(data),
        "tokens": data.tokens,
        "learned": data.loss_tokens,
        "longest": int(lengths.max()),
        "p95": int(np.percentile(lengths, 95)),
        "too_long": int((lengths > context).sum()),
        "bars": bars.tolist(),
        "edges": edges.tolist(),
        "notes": data.report.get("notes", []),
    }
    return facts


def _first_rows(file: str) -> list[dict[str, Any]]:
    try:
        return columns_of(file, 3)
    except UserError:
        return []


def examples(
    model: str, file: str, reading: dict[str, Any], context: int, start: int, count: int
) -> list[dict[str, Any]]:
    """`count` examples from `start`: {index, line, length, kept, text, tokens: [[text, learned], …]}.

    kept: which of its tokens stay with this context, as [from, to]; text: its line as it is in the file.
    """
    data, _ = _data(model, file, reading, context)
    if data is None:
        return []
    tokenizer, chosen = _words(model)[0], range(max(0, start), min(start + count, len(data)))
    raw = _lines(Path(file), {int(data.lines[i]) for i in chosen})
    found = []
    for i in chosen:
        ids, learned = data.example(i)
        tokens = [
            [tokenizer.piece(int(token)).decode("utf-8", "replace"), int(on)]
            for token, on in zip(ids[:SHOWN], learned[:SHOWN], strict=True)
        ]
        found.append(
            {
                "index": i,
                "line": int(data.lines[i]),
                "length": len(ids),
                "learned": int(learned.sum()),
                "kept": _kept(learned, context, reading.get("overflow")),
                "tokens": tokens,
                "text": raw.get(int(data.lines[i])),
            }
        )
    return found


def _kept(learned: np.ndarray, context: int, overflow: str | None) -> list[int]:
    """What stays of an example: all of it, or as truncation cuts it (see text.build)."""
    if len(learned) <= context or overflow == "split":
        return [0, len(learned)]
    if overflow == "drop":
        return [0, 0]
    first = int(np.argmax(learned))
    at = 0 if first < context else max(0, min(first - context // 2, len(learned) - context))
    return [at, at + context]


def _lines(path: Path, wanted: set[int]) -> dict[int, str]:
    """The text of some lines, where each line is an example."""
    found: dict[int, str] = {}
    try:
        if DataFile(path).plain or not line_by_line(path):
            return {}
        for number, text in DataFile(path, "plain").lines():
            if number in wanted:
                found[number] = text.rstrip("\r\n")
            if wanted and number >= max(wanted):
                break
    except UserError:
        pass
    return found


def recognise(file: str) -> dict[str, Any]:
    """What an uploaded file is. Raises UserError for one that is no data at all."""
    opened = DataFile(file)
    for number, text in DataFile(file, "plain").lines():
        if "\0" in text:
            raise UserError(f"Line {number} contains a zero byte: this is not a text file.")
        if number >= 100:
            break
    return {"kind": "plain" if opened.plain else "json", "rows": _first_rows(file)}
