"""What a person sees of a model while it learns: the same prompts answered, and the loss of each token of a few
samples, before the first step and at each checkpoint. watched.jsonl holds a line a look."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FILE = "watched.jsonl"
ANSWER, SAMPLE, SAMPLES = 64, 96, 3  # tokens of an answer and of a sample; samples


class Watcher:
    """Looks at the trainee of one run. Errors here go to the log and do not affect the run."""

    def __init__(self, model: Any, folder: Path, spec: dict[str, Any]):
        self.model, self.folder, self.spec = model, folder, spec
        self.prompts = [str(prompt) for prompt in spec.get("prompts", ())][:3]
        self.samples: list[dict[str, Any]] | None = None

    def at_checkpoint(self, trainee: Any, step: int) -> None:
        try:
            with frugal(self.model):
                adapter = trainee.adapter()
                row = {
                    "step": step,
                    "answers": self._answers(adapter if step else None),
                    "samples": self._losses(adapter),
                }
            with open(self.folder / FILE, "ab") as file:
                file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        except Exception:
            traceback.print_exc()

    def _answers(self, adapter: Any) -> list[str]:
        from anytune.generation.generate import complete
        from anytune.generation.sampling import Sampling

        if not self.prompts:
            return []
        replies = complete(self.model, self.prompts, adapter, how=Sampling(temperature=0.0), max_tokens=ANSWER)
        return [reply.text for reply in replies]

    def _losses(self, adapter: Any) -> list[dict[str, Any]]:
        """For each sample [text, loss in nats or None where nothing is learned] a token."""
        if self.samples is None:
            self.samples = self._choose()
        return [
            {"tokens": losses(self.model, np.asarray(sample["ids"]), sample["learned"], adapter)}
            for sample in self.samples
        ]

    def _choose(self) -> list[dict[str, Any]]:
        """A few examples, spread over the data, cut to a length that costs little."""
        from anytune.text import build_dataset

        head = _head(Path(self.spec["data"]["file"]), self.folder)
        data = build_dataset(
            head, self.model.tokenizer, self.model.template, context=SAMPLE, **self.spec.get("reading", {})
        )
        chosen = np.unique(np.linspace(0, len(data) - 1, min(SAMPLES, len(data))).astype(int))
        return [{"ids": data.example(i)[0].tolist(), "learned": data.example(i)[1].tolist()} for i in chosen]


def _head(path: Path, folder: Path) -> Path:
    """The beginning of a data file as a file of its own: samples need not read a gigabyte."""
    if path.stat().st_size <= 1 << 20 or path.suffix == ".gz" or path.suffix == ".json":
        return path
    made = folder / f"samples{path.suffix}"
    with path.open("rb") as file:
        piece = file.read(1 << 20)
    made.write_bytes(piece[: piece.rfind(b"\n") + 1] or piece)
    return made


def losses(model: Any, ids: np.ndarray, learned: list[bool], adapter: Any) -> list[list[Any]]:
    """[text, nats or None] for each token of ids int [n]."""
    logits = model.logits(ids, adapter).astype(np.float64)[:-1]
    top = logits.max(axis=1)
    nats = top + np.log(np.exp(logits - top[:, None]).sum(axis=1)) - logits[np.arange(len(ids) - 1), ids[1:]]
    found = [None, *(round(float(n), 3) if on else None for n, on in zip(nats, learned[1:], strict=True))]
    return [[model.tokenizer.piece(int(i)).decode("utf-8", "replace"), n] for i, n in zip(ids, found, strict=True)]


@contextmanager
def frugal(model: Any) -> Iterator[None]:
    """A decoder must not hold the weights in another way than the training that waits does."""
    memory, model.memory = model.memory, 1
    training = model.engine.training
    try:
        yield
    finally:
        model.memory, model.engine.training = memory, training
