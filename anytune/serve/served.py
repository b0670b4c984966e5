"""What can be asked for by name: the base, its adapters, and the newest checkpoint of a training under way."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.serve.backend import Mix, mix_of
from anytune.serve.checkpoints import Run
from anytune.serve.scheduler import Scheduler
from anytune.text.served import own_template

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MOST = 256  # adapters at once


class NoSuchModel(UserError):
    """Nothing is served under this name."""


@dataclass
class Served:
    """An adapter under a name. id: llama-server's number of it; scale: at which it acts on requests for the base."""

    id: int
    name: str
    file: str
    digest: str
    template: str | None
    remark: str | None
    rank: int
    scale: float = 0.0
    created: int = field(default_factory=lambda: int(time.time()))


class Catalog:
    """Names of one base model. name: the base's own. Runs are looked at when they are asked for.

    lock: held by whoever asks for a mix until its request is in the scheduler, so that no adapter goes in between.
    """

    def __init__(self, name: str, gguf: Any, scheduler: Scheduler, runs: Sequence[Run] = ()):
        self.name, self.gguf, self.scheduler = name, gguf, scheduler
        self.adapters: dict[str, Served] = {}
        self.runs = {run.name: run for run in runs}
        self.of_runs: dict[str, tuple[Any, Served]] = {}
        self.created, self.given, self.lock = int(time.time()), 0, threading.RLock()

    def load(self, name: str, path: Path, replace: bool = False) -> Served:
        """Read an adapter (GGUF file or peft folder) and serve it. Raises UserError."""
        if not NAME.fullmatch(name):
            raise UserError(
                "An adapter's name consists of letters, digits, '.', '_' and '-', and starts with a letter or digit."
            )
        if name in self.runs or name in self.adapters and not replace:
            raise UserError(f"The name {name!r} is taken: unload that adapter first, or choose another name.")
        if len(self.adapters) >= MOST and name not in self.adapters:
            raise UserError(f"{MOST} adapters are loaded: unload one first.")
        if not path.exists():
            raise UserError(f"There is no adapter {path}: check the path.")
        found = self._take(name, path.name, Adapter.load(path, gguf=self.gguf))
        self.unload(name) if name in self.adapters else None
        self.adapters[name] = found
        return found

    def unload(self, name: str) -> Served:
        """Raises NoSuchModel."""
        if name not in self.adapters:
            raise NoSuchModel(f"There is no adapter {_shown(name)}.")
        gone = self.adapters.pop(name)
        self._give_back(gone)
        return gone

    def scale(self, scales: dict[int, float]) -> None:
        """Which adapters act on requests for the base from now on: those that are not named have scale 0. Raises
        UserError."""
        known = {served.id for served in self.adapters.values()}
        if unknown := sorted(set(scales) - known):
            raise UserError(f"No adapter has the id {unknown[0]}: GET /lora-adapters lists them.")
        for served in self.adapters.values():
            served.scale = scales.get(served.id, 0.0)

    def mix(self, model: str | None, lora: Sequence[tuple[int, float]] | None = None) -> tuple[Mix, str | None, str]:
        """(adapters and scales, the chat template that they were trained with if it is not the base's, name to answer
        with) of a request. lora: llama-server's (id, scale), of which those that are not named have scale 0.

        Raises NoSuchModel, or UserError where `lora` and a named adapter contradict each other.
        """
        found = self.resolve(model)
        if lora is not None:
            if found is not None:
                raise UserError("Give either an adapter's name as the model or lora, not both.")
            known = {served.id: served for served in self.adapters.values()}
            if unknown := sorted({number for number, _ in lora} - set(known)):
                raise UserError(f"No adapter has the id {unknown[0]}: GET /lora-adapters lists them.")
            chosen = [(known[number], scale) for number, scale in lora]
        elif found is not None:
            chosen = [(found, 1.0)]
        else:
            chosen = [(served, served.scale) for served in self.adapters.values()]
        scales: dict[str, float] = {}
        for served, scale in chosen:
            scales[served.digest] = scales.get(served.digest, 0.0) + scale
        templates = {served.template for served, scale in chosen if scale and served.template}
        return mix_of(scales), templates.pop() if len(templates) == 1 else None, self.label(found)

    def resolve(self, model: str | None) -> Served | None:
        """The adapter that a model's name means; None: the base."""
        if not model or model in ("base", self.name):
            return None
        adapter = model
        for base in ("base", self.name):
            adapter = adapter.removeprefix(f"{base}:") if adapter.startswith(f"{base}:") else adapter
        if adapter in self.adapters:
            return self.adapters[adapter]
        if adapter in self.runs:
            return self._of_run(self.runs[adapter])
        raise NoSuchModel(f"There is no model {_shown(model)}: GET /v1/models lists what is served.")

    def label(self, served: Served | None) -> str:
        return "base" if served is None else f"base:{served.name}"

    def models(self) -> list[dict[str, Any]]:
        """OpenAI's list, with vLLM's root and parent."""
        made = [
            {
                "id": "base",
                "object": "model",
                "created": self.created,
                "owned_by": "anytune",
                "root": self.name,
                "parent": None,
            }
        ]
        made += [
            {
                "id": f"base:{s.name}",
                "object": "model",
                "created": s.created,
                "owned_by": "anytune",
                "root": s.file,
                "parent": "base",
            }
            for s in self.adapters.values()
        ]
        for run in self.runs.values():
            if (state := run.newest()) is not None:
                made.append(
                    {
                        "id": f"base:{run.name}",
                        "object": "model",
                        "created": state.created,
                        "owned_by": "anytune",
                        "root": state.label,
                        "parent": "base",
                    }
                )
        return made

    def _of_run(self, run: Run) -> Served:
        state = run.newest()
        if state is None:
            raise NoSuchModel(f"The run {run.name!r} has no checkpoint yet.")
        if run.name in self.of_runs and self.of_runs[run.name][0] == state:
            return self.of_runs[run.name][1]
        found = self._take(run.name, state.label, run.load(state, self.gguf))
        before, self.of_runs[run.name] = self.of_runs.get(run.name), (state, found)
        if before is not None:
            self._give_back(before[1])
        return found

    def _take(self, name: str, file: str, adapter: Adapter) -> Served:
        digest = digest_of(adapter)
        self.scheduler.add(digest, adapter).result()
        template = adapter.chat_template if adapter.chat_template != own_template(self.gguf.metadata) else None
        number, self.given = self.given, self.given + 1
        return Served(number, name, file, digest, template, adapter.other_base(self.gguf), adapter.rank)

    def _give_back(self, gone: Served) -> None:
        held = [*self.adapters.values(), *(served for _, served in self.of_runs.values())]
        if all(other.digest != gone.digest for other in held):
            self.scheduler.retire(gone.digest)


def _shown(name: str) -> str:
    """A name out of a request in a sentence; what could be no name is not repeated."""
    return repr(name) if NAME.fullmatch(name.replace(":", "-")) else "of that name"


def digest_of(adapter: Adapter) -> str:
    """SHA-256 of what an adapter does: equal ones share what was computed, whatever they are called."""
    made = hashlib.sha256(repr(float(adapter.scale)).encode())
    for name in sorted(adapter.tensors):
        for part in adapter.tensors[name]:
            made.update(f"{name} {part.shape}".encode())
            made.update(part.astype("<f4").tobytes())
    return made.hexdigest()
