"""From PubMedQA's official files to training data: the 500 questions outside the test set, split by label and seed."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune.errors import UserError
from anytune.evaluation.pubmedqa import LABELS, Source, ask, read_official, read_test
from anytune.files import atomic_write, cannot_write, check_files
from anytune.text.reading import reads_once

if TYPE_CHECKING:
    import numpy as np

BALANCES = ("none", "oversample", "undersample")
FORMATS = ("pairs", "messages")
RECIPE = "recipe.json"


def build(
    path: str | os.PathLike,
    test: str | os.PathLike,
    folder: str | os.PathLike,
    *,
    setting: str = "reasoning-required",
    wording: str = "pubmedqa",
    validation: int = 50,
    balance: str = "none",
    format: str = "pairs",
    seed: int = 42,
    force: bool = False,
    labels: Sequence[str] = LABELS,
) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl, test.jsonl and recipe.json into `folder`; returns what recipe.json holds.

    The test questions are those of `test`, in their order. Of the others, in an order drawn from the seed, `validation`
    go into validation, from each label its share (fractions by largest remainder), the rest into train. balance:
    oversample repeats train's rarer labels, a whole round of them in a new order at a time, until all are as frequent
    as the most frequent; undersample drops what the rarest lacks. Nothing else than train is balanced. labels:
    questions with other answers are left out everywhere. force: replace files that exist. Same files and arguments,
    same bytes. Raises UserError.
    """
    import numpy as np

    folder = Path(folder)
    written = (RECIPE, *(f"{split}.jsonl" for split in ("train", "validation", "test")))
    check_files(folder, written, force, [("the question file", path), ("the test file", test)])
    if (pipe := next(filter(reads_once, (path, test)), None)) is not None:
        raise UserError(
            f"{pipe} is a pipe or a device, but it must be read twice, for its hash: write it to a file first."
        )
    sources = read_official(path)
    chosen = read_test(test, sources)
    sources = [source for source in sources if source.label in labels]
    rest = [source for source in sources if source.id not in chosen]
    if not 0 <= validation < len(rest):
        raise UserError(f"--val-count {validation} must be below the {len(rest)} questions outside the test set.")
    rng = np.random.default_rng(seed)
    rest = [rest[i] for i in rng.permutation(len(rest))]
    held = _stratified(rest, validation)
    splits = {
        "train": _balanced([s for s in rest if s.id not in held], balance, rng),
        "validation": [s for s in rest if s.id in held],
        "test": [s for s in sources if s.id in chosen],
    }
    texts = {
        name: "".join(_line(source, setting, wording, format, labels) for source in split)
        for name, split in splits.items()
    }
    facts = {
        "recipe": "pubmedqa",
        "setting": setting,
        "wording": wording,
        "validation": validation,
        "balance": balance,
        "format": format,
        "seed": seed,
        **({} if tuple(labels) == LABELS else {"labels": list(labels)}),
        "sources": {Path(p).name: hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in (path, test)},
        "splits": {
            name: {
                "questions": len(split),
                "labels": dict(Counter(s.label for s in split)),
                "sha256": hashlib.sha256(texts[name].encode()).hexdigest(),
            }
            for name, split in splits.items()
        },
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            if not text:
                (folder / f"{name}.jsonl").unlink(missing_ok=True)  # of an earlier recipe
                continue
            with atomic_write(folder / f"{name}.jsonl", "w") as file:
                file.write(text)
        with atomic_write(folder / RECIPE, "w") as file:
            json.dump(facts, file, indent=1)
    except OSError as error:
        raise cannot_write(folder, error) from None
    return facts


def _stratified(sources: Sequence[Source], count: int) -> set[str]:
    """The ids of the first of each label, `count` in all."""
    by_label = {label: [s.id for s in sources if s.label == label] for label in LABELS}
    shares = {label: count * len(ids) / len(sources) for label, ids in by_label.items()}
    takes = {label: int(share) for label, share in shares.items()}
    for label in sorted(LABELS, key=lambda name: takes[name] - shares[name])[: count - sum(takes.values())]:
        takes[label] += 1
    return {number for label, ids in by_label.items() for number in ids[: takes[label]]}


def _balanced(sources: list[Source], how: str, rng: np.random.Generator) -> list[Source]:
    if how == "none":
        return sources
    by_label = [found for label in LABELS if (found := [s for s in sources if s.label == label])]
    sizes = [len(found) for found in by_label]
    if how == "undersample":
        chosen = [s for found in by_label for s in found[: min(sizes)]]
    else:
        chosen = []
        for found in by_label:
            rounds = -(-max(sizes) // len(found))
            chosen += [found[i] for _ in range(rounds) for i in rng.permutation(len(found))][: max(sizes)]
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _line(source: Source, setting: str, wording: str, format: str, labels: Sequence[str] = LABELS) -> str:
    question = ask(source, setting, wording, labels)
    answer = question.answers[question.right]
    row: dict[str, Any] = {"id": source.id}
    if format == "messages":
        row["messages"] = [{"role": "user", "content": question.prompt}, {"role": "assistant", "content": answer}]
    else:
        row |= {"prompt": question.prompt, "completion": answer}
    return json.dumps(row, ensure_ascii=False) + "\n"
