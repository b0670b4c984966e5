"""What distilling, repairing and merging share: teachers, examples held out, the fit, its measure and its file."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapt.batching import batches
from anytune.adapt.budget import check_memory, layer_floats
from anytune.adapt.closed import Pair
from anytune.adapt.data import Context, Example, text_examples
from anytune.adapt.fit import Couple, Progress, Recipe, fit
from anytune.adapt.partial import Partial
from anytune.adapt.walk import Side
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.memory import peak_bytes

if TYPE_CHECKING:
    from anytune.model import Model

BATCH = 4096  # tokens run at once
WINDOW = 256  # tokens of a window of ordinary text
ROOM = 4  # times the weights' bytes that must be free for them to stay in memory
GUARDED, DRIFTED = 8, 6  # windows of it that a fit holds to, and others that drift is measured on


@dataclass(frozen=True)
class Teacher:
    """model: the student's, or another file of the same shape; with an adapter, behind a context, or both."""

    model: Model
    adapter: Adapter | None = None
    context: Context = Context()

    @property
    def shares(self) -> bool:
        """Whether examples may have a beginning in common, whose keys and values are computed once."""
        return bool(self.context) and not any(self.model.config.recurrent)


@dataclass(frozen=True)
class Task:
    """Examples and who teaches them; held: others of the kind, which nothing is fitted to."""

    teacher: Teacher
    examples: Sequence[Example]
    held: Sequence[Example]
    name: str = ""


@dataclass
class Settings:
    """How a fit runs, beside its Recipe. batch: tokens run at once; alpha: of the adapter (None: its rank); output:
    where it goes (None: nowhere); resume: go on from what an interrupted run left; guard_text, drift_text: ordinary
    text in place of the built-in one; tell: called with what is done, as (what, done, of how many, remark)."""

    batch: int = BATCH
    alpha: float | None = None
    output: str | os.PathLike | None = None
    resume: bool = False
    guard_text: str | None = None
    drift_text: str | None = None
    tell: Callable[[str, int, int, str], None] = lambda *_: None
    keep: Callable[..., None] | None = None


@dataclass
class Fitted:
    """pairs: {tensor: Pair}; layers: what was told of each; cpu, seconds: of the fit; raised: the largest ridge that
    a factorization had to have, or 0."""

    pairs: dict[str, Pair]
    layers: list[Progress]
    cpu: float
    seconds: float

    @property
    def raised(self) -> float:
        return max((layer.raised for layer in self.layers), default=0.0)


def ordinary_text() -> str:
    return (Path(__file__).parent / "ordinary.txt").read_text("utf-8")


def prepare(*models: Model) -> None:
    """Hold each model's weights as its memory allows: at hand where they fit, else read from the file for each use."""
    from anytune.engine.numpy.sizes import LEAN
    from anytune.memory import process_bytes
    from anytune.model.decoder import dense_fits

    for model in {id(model): model for model in models}.values():
        size = sum(matrix.nbytes for matrix in model.weights.matrices.values())
        if model.memory is not None and _on_host(model) and process_bytes() + ROOM * size > model.memory:
            model.hold("stream")
            model.engine.sizes = LEAN
        elif model.weights.slow and dense_fits(model):
            model.hold("float32")


def _on_host(model: Model) -> bool:
    return model.engine.name in ("numpy", "cpu-bf16")


def keeps(model: Model, tasks: Sequence[Task]) -> bool:
    """Whether what a layer computes can stay in memory until all of its products are solved for."""
    from anytune.memory import available_bytes, process_bytes

    need = sum(4 * layer_floats(model) * (len(e.ids) + len(e.behind)) for task in tasks for e in task.examples)
    free = available_bytes() // 2 if model.memory is None or not _on_host(model) else model.memory - process_bytes()
    return need < free // 2


def couple(
    model: Model, task: Task, examples: Sequence[Example], pairs: dict[str, Any], batch: int, keep: bool = True
) -> Couple:
    share = task.teacher.shares
    one, front = batches(examples, batch, False, share)
    other, behind = batches(examples, batch, True, share)
    return Couple(
        Side(model, one, front, pairs=pairs, keep=keep),
        Side(task.teacher.model, other, behind, adapter=task.teacher.adapter, keep=keep),
    )


def guard_side(model: Model, settings: Settings, recipe: Recipe) -> Side | None:
    """Ordinary text in the bare model's eyes, that the fit holds to."""
    if not recipe.guard:
        return None
    text = settings.guard_text
    examples = text_examples(model, ordinary_text() if text is None else text, WINDOW)
    examples = examples[:GUARDED] if text is None else examples
    return Side(model, batches(examples, settings.batch, False, False)[0], ())


def run_fit(
    model: Model, tasks: Sequence[Task], recipe: Recipe, settings: Settings, identity: Mapping[str, Any] | Partial
) -> Fitted:
    """Fit the student `model` to all tasks. After each layer what is done is kept beside the output.

    identity: what decides the result's bytes, or the file with what an earlier run did, already loaded.
    """
    pairs: dict[str, Any] = {}
    began, started = time.process_time(), time.perf_counter()
    partial, done = (identity, dict(identity.pairs)) if isinstance(identity, Partial) else (None, {})
    if partial is None and settings.output is not None:
        partial = Partial(settings.output, identity)
        done = partial.load() if settings.resume else {}
    keep, guard = keeps(model, tasks), guard_side(model, settings, recipe)
    if partial is not None:  # sums round otherwise where layers run again: a run that is taken up does as it did
        keep = bool(partial.extra.setdefault("keep", np.array([keep]))[0])
    if not keep and _on_host(model):
        check_memory(model, tasks, guard.tokens if guard else 0, recipe.largest, settings.batch)
    couples = [couple(model, task, task.examples, pairs, settings.batch, keep) for task in tasks]
    layers: list[Progress] = []
    made = dict(done)

    def tell(progress: Progress) -> None:
        layers.append(progress)
        made.update(progress.pairs)
        if partial is not None and progress.pairs:
            partial.save(made)
        settings.tell("layers", progress.layer + 1, progress.layers, f"the streams differ by {progress.gap:.3f}")

    pairs = fit(couples, recipe, guard=guard, done=done, tell=tell, keep=settings.keep)
    return Fitted(pairs, layers, time.process_time() - began, time.perf_counter() - started)


def fingerprint(model: Model, tasks: Sequence[Task], recipe: Recipe, settings: Settings, **more: Any) -> dict[str, Any]:
    """What decides the bytes of a fit's result."""
    numbers = {f.name: getattr(recipe, f.name) for f in dataclasses.fields(recipe) if f.name not in ("prior", "bases")}
    digest = hashlib.sha256()
    for task in tasks:
        for example in task.examples:
            for part in (example.ids, example.behind, example.loss, np.int64(example.own)):
                digest.update(np.ascontiguousarray(part).tobytes() + b"|")
    teachers = [[task.teacher.model.gguf.sha256(), adapter_hash(task.teacher.adapter)] for task in tasks]
    text = hashlib.sha256((settings.guard_text or "").encode()).hexdigest() if recipe.guard else None
    return {
        "-m": model.gguf.sha256(),
        "the teacher": teachers,
        "the data": digest.hexdigest(),
        "the guard": text,
        "--batch-size": settings.batch,
        "--device or --threads": model.engine.identity(),
        **numbers,
        **more,
    }


def adapter_hash(adapter: Adapter | None) -> str | None:
    if adapter is None:
        return None
    digest = hashlib.sha256(repr(adapter.scale).encode())
    for name in sorted(adapter.tensors):
        digest.update(name.encode())
        for part in adapter.tensors[name]:
            digest.update(np.ascontiguousarray(part, np.float32).tobytes())
    return digest.hexdigest()


def as_adapter(
    model: Model, pairs: Mapping[str, Pair], alpha: float | None = None, template: str | None = None
) -> Adapter:
    """Pairs as an adapter; those of a lower rank than others are filled up with zeros. UserError if all are empty."""
    rank = max((len(pair.a) for pair in pairs.values()), default=0)
    if not rank:
        raise UserError("Nothing is left of the adapter: a larger --rank or --size is needed.")
    alpha = float(rank) if alpha is None else alpha
    scale = np.float32(rank / alpha)
    tensors = {}
    for name, pair in pairs.items():
        if len(pair.a):
            missing = rank - len(pair.a)
            tensors[name] = (np.pad(pair.a, ((0, missing), (0, 0))), np.pad(pair.b, ((0, 0), (0, missing))) * scale)
    return Adapter(
        tensors,
        rank,
        alpha,
        False,
        model.config.architecture,
        model.name,
        model.gguf.sha256(),
        template if template is not None else model.template_source,
    )


def truncated(adapter: Adapter, rank: int) -> Adapter:
    """The plain way: the truncated SVD of each change, without a look at any data."""
    tensors = {}
    for name, (a, b) in adapter.tensors.items():
        q, r = np.linalg.qr(a.T.astype(np.float64))
        u, s, v = np.linalg.svd(b.astype(np.float64) * adapter.scale @ r.T, full_matrices=False)
        keep = min(rank, len(s))
        tensors[name] = ((v[:keep] @ q.T).astype(np.float32), (u[:, :keep] * s[:keep]).astype(np.float32))
    rank = max(len(a) for a, _ in tensors.values())
    return dataclasses.replace(adapter, tensors=tensors, rank=rank, alpha=float(rank), rslora=False)


def memory_peak(model: Model) -> int:
    """The most bytes that the device had, or the process where they are the same."""
    return model.engine.peak() or peak_bytes()
