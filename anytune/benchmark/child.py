"""One measurement, in this process alone: `python -m anytune.benchmark.child` reads a job, a line of JSON, and answers
in such lines.

{"ready": facts}, one {"seconds": s} a round, {"done": facts}; or {"refused": a sentence}. A process of its own, because
memory's peak is one of the results, and so that a crash of one device is one cell of the table.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from anytune.errors import UserError

from .generation import generation_stats
from .cases import Settings, Test


def main() -> None:
    """Answers keep the real standard output: libraries write where they like."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        job = json.loads(sys.stdin.readline())
        threading.Thread(target=_leave_with_parent, daemon=True).start()
        try:
            measure(job, answers)
        except UserError as error:
            _say(answers, refused=str(error))
        except MemoryError:
            _say(answers, refused="the machine ran out of memory: give --memory, or a smaller -ub or -d.")
    os._exit(0)  # results are out: a crash while a library shuts down must not affect them


def _leave_with_parent() -> None:
    """stdin ends when whoever asked is gone, however it went."""
    sys.stdin.read()
    os._exit(1)


def measure(job: dict[str, Any], answers: IO[str]) -> None:
    """Run one job (run.py makes it). Raises UserError for what cannot be done here."""
    started = time.perf_counter()
    test, settings = Test(**job["test"]), Settings(**job["settings"])
    if job["peer"]:
        from .llamacpp import LlamaCpp as kind
    else:
        kind = Anytune
    contestant = kind(Path(job["model"]), job["device"], job["threads"], test, settings)
    try:
        contestant.start()
        for _ in range(settings.warmup):
            contestant.task.warm()
        _say(answers, ready={**contestant.facts(), "seconds_to_ready": round(time.perf_counter() - started, 3)})
        for _ in range(settings.repeats):
            _say(answers, seconds=contestant.task.round(), stats=_within(contestant.task, test))
        _say(answers, done=contestant.memory())
    except Exception as error:
        if said := contestant.explain(error):
            raise UserError(said) from error
        raise


def _within(task: Any, test: Test) -> dict[str, float | None] | None:
    """What a round's own course says: time to the first token, and peak and lowest tokens/s of all sequences."""
    if test.kind in ("train", "file"):
        return None
    found = generation_stats(0, task.started, task.times)
    return {
        "first_token_s": found.first_token_s if test.kind == "prompt" else None,
        "peak": found.peak and found.peak * test.examples,
        "lowest": found.lowest and found.lowest * test.examples,
    }


class Anytune:
    """anytune's side of a measurement. task: see work.py."""

    def __init__(self, path: Path, device: str, threads: int | None, test: Test, settings: Settings):
        import anytune  # before NumPy: it chooses the BLAS kernels

        self.model = anytune.load(
            path,
            device=device,
            threads=threads,
            memory=settings.memory,
            dtype=settings.dtype,
            tf32=settings.tf32,
            max_binding=settings.max_binding,
        )
        if test.kind in ("train", "file"):
            from anytune.train.device import Place

            Place(self.model, {}, full=False)  # what training takes where no device is named
        self.engine, self.test, self.settings = self.model.engine, test, settings

    def start(self) -> None:
        from .work import work

        self.task = work(self.model, self.test, self.settings)

    def facts(self) -> dict[str, Any]:
        estimate, workers = self.task.estimate, self.engine.workers
        return {
            "engine": self.engine.name,
            "hardware": hardware(self.engine),
            "threads": workers and workers.count,
            "identity": self.engine.identity(),
            "estimate_bytes": estimate and int(estimate.peak_bytes),
            "how": estimate and estimate.text,
            **getattr(self.task, "facts", {}),
        }

    def memory(self) -> dict[str, int]:
        from anytune.memory import peak_bytes

        host = peak_bytes()
        return {"peak_bytes": int(self.engine.peak()) or host, "host_peak_bytes": host}

    def explain(self, error: Exception) -> str | None:
        estimate = getattr(getattr(self, "task", None), "estimate", None)
        return self.engine.explain(error, estimate and estimate.peak_bytes)


def hardware(engine) -> str:
    """What the engine's device is called by its maker."""
    device = engine.device
    if engine.name == "webgpu":
        return device.name
    kind = getattr(device, "type", "cpu")
    if kind in ("cuda", "xpu"):
        import torch

        return str(getattr(torch, kind).get_device_name(device))
    if kind == "mps":
        return "Apple GPU"
    from anytune.engine.probe import cpu_name

    return cpu_name()


def _say(answers: IO[str], **message: Any) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
