"""Training runs: estimates and presets before, settings that never change, the queue, and what a run says meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from anytune.errors import UserError
from anytune.http.errors import without_paths
from anytune.studio import adapters, datasets, jobs
from anytune.studio.api.data import About
from anytune.studio.home import Conflict, set_about
from anytune.studio.series import rough
from anytune.studio.state import Studio, short
from anytune.studio.training import rows_of
from anytune.studio.watching import FILE as WATCHED

router = APIRouter(prefix="/api", tags=["runs"])
LONG = 4 << 20  # bytes of metrics above which the first view is a rough one
HIDDEN = ("file", "folder")
EVENTS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class Settings(BaseModel):
    """The fields of TrainSettings that a page may choose."""

    model_config = ConfigDict(extra="forbid")
    context: int | None = None
    ubatch: int | None = None
    batch: int | None = None
    epochs: int | None = None
    max_steps: int | None = None
    lr: float | None = None
    lr_min: float | None = None
    scheduler: Literal["constant", "linear", "cosine"] | None = None
    warmup_ratio: float | None = None
    weight_decay: float | None = None
    max_grad_norm: float | None = None
    seed: int | None = None
    val_every: int | None = None
    early_stop: int | None = None
    checkpoint_save_steps: int | None = None
    keep_checkpoints: int | None = None


class Lora(BaseModel):
    model_config = ConfigDict(extra="forbid")
    rank: int = Field(16, ge=1, le=4096)
    alpha: float = Field(32.0, gt=0)
    modules: str = Field("all", max_length=500)
    rslora: bool = False
    plus_ratio: float = Field(1.0, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)


class RunRequest(BaseModel):
    """What is to be trained, on what, how."""

    model: str = Field(max_length=500)
    data: str = Field(max_length=100, description="a data set")
    version: int | None = None
    settings: Settings = Settings()
    lora: Lora = Lora()
    val_split: float | None = Field(None, ge=0, lt=1)
    device: str = Field("auto", max_length=40, pattern=r"^[a-z0-9:-]+$")
    memory: int | None = Field(None, gt=0)
    start_from: str | None = Field(None, max_length=100, description="an adapter to continue from")
    prompts: list[str] = Field([], max_length=3)
    name: str = Field("", max_length=200)
    parent: str | None = Field(None, max_length=100, description="the run that this one modifies")


def _studio(request: Request) -> Studio:
    return request.app.state.studio


def _chosen(asked: RunRequest) -> dict[str, Any]:
    return asked.settings.model_dump(exclude_none=True)


@router.post("/estimate")
async def estimate(request: Request, asked: RunRequest) -> dict[str, Any]:
    """Memory, time and steps of a asked, before it starts."""
    studio = _studio(request)
    model, facts = await _look(studio, asked)
    if facts["nothing"]:
        return {"problem": facts["nothing"]}
    return await studio.reader.call(
        "estimate",
        model=model,
        device=_device(studio, asked),
        memory=asked.memory,
        lora=asked.lora.model_dump(),
        settings=_chosen(asked),
        data=facts,
    )


@router.get("/presets")
async def presets(request: Request, model: str, data: str, version: int | None = None) -> dict[str, Any]:
    """Three presets for this data and model: quick, good, thorough."""
    studio = _studio(request)
    _, facts = await _look(studio, RunRequest(model=model, data=data, version=version))
    if facts["nothing"]:
        raise Conflict(facts["nothing"])
    context = studio.models.get(model, {}).get("context", 0)
    return await studio.reader.call("presets", data=facts, context_length=context)


async def _look(studio: Studio, asked: RunRequest) -> tuple[str, dict[str, Any]]:
    """(the model's file, what its eyes see of the data)."""
    folder = studio.home.place(studio.home.data, asked.data)
    file, _ = datasets.file_of(folder, asked.version)
    model = await studio.model_file(asked.model)
    context = asked.settings.context or 512
    facts = await studio.reader.call(
        "look", model=model, file=str(file), context=max(2, context), reading=datasets.describe(folder)["reading"]
    )
    return model, facts


def _device(studio: Studio, asked: RunRequest) -> str:
    return studio.device if asked.device == "auto" else asked.device


@router.post("/runs", status_code=201)
async def begin(request: Request, asked: RunRequest) -> dict[str, Any]:
    """Queue a run. Its settings never change; "again with changes" is another run."""
    studio = _studio(request)
    model, facts = await _look(studio, asked)
    if facts["nothing"]:
        raise Conflict(f"This run cannot start: {facts['nothing']}")
    if facts["problem_count"]:
        raise Conflict(f"{facts['problem_count']} lines of the data have problems: fix or remove them first.")
    folder = studio.home.place(studio.home.data, asked.data)
    file, number = datasets.file_of(folder, asked.version)
    data = datasets.describe(folder)
    start = None
    if asked.start_from:
        start = str(adapters.folder_of(studio.home, asked.start_from) / adapters.FILE)
    spec = {
        "model": {"name": asked.model, "file": model},
        "settings": _chosen(asked),
        "lora": asked.lora.model_dump(),
        "data": {"id": asked.data, "version": number, "file": str(file), "name": data["name"]},
        "reading": {key: value for key, value in data["reading"].items() if value is not None},
        "val_split": data["val_split"] if asked.val_split is None else asked.val_split,
        "memory": asked.memory,
        "device": _device(studio, asked),
        "start": start,
        "start_from": asked.start_from,
        "prompts": [prompt[:4000] for prompt in asked.prompts if prompt.strip()],
    }
    _check(spec)
    label = asked.name.strip() or f"{data['name'].partition('.')[0] or 'Run'} on {short(asked.model)}"
    made = jobs.create(studio.home, "train", spec, label, asked.parent)
    return studio.changed(made.name) or {}


def _check(spec: dict[str, Any]) -> None:
    """Settings that cannot work are reported now, not by a process later. Raises UserError."""
    from anytune.train.settings import TrainSettings

    TrainSettings(**spec["settings"])
    if spec["settings"].get("early_stop") and not spec["val_split"]:
        raise UserError("Stopping early needs a validation set: hold out some of the data, or turn it off.")


@router.get("/jobs")
async def listing(request: Request, kind: str | None = None) -> list[dict[str, Any]]:
    """Runs and other work, the newest first."""
    return [_clean(request, row) for row in _studio(request).index.rows(kind)]


@router.get("/jobs/{identifier}")
async def describe(request: Request, identifier: str) -> dict[str, Any]:
    """One job: its state, its settings, what it said last."""
    studio = _studio(request)
    folder = studio.home.place(studio.home.jobs, identifier)
    row, spec = studio.index.refresh(identifier) or {}, jobs.job_of(folder)["spec"]
    log = _last_lines(folder / ("train.log" if row.get("kind") == "train" else "process.log"))
    return _clean(request, row | {"spec": _without_files(spec), "log": log, "progress": _progress(folder)})


def _without_files(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_files(part) for key, part in value.items() if key not in (*HIDDEN, "start", "args")}
    return [_without_files(part) for part in value] if isinstance(value, list) else value


def _clean(request: Request, value: Any) -> Any:
    """Strings without this machine's paths."""
    if isinstance(value, str):
        return without_paths(value, _studio(request).home.root) if "/" in value or "\\" in value else value
    if isinstance(value, dict):
        return {key: part if key in ("note", "name", "model") else _clean(request, part) for key, part in value.items()}
    return [_clean(request, part) for part in value] if isinstance(value, list) else value


def _last_lines(path: Any, count: int = 200) -> list[str]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 40_000))
            return file.read().decode("utf-8", "replace").splitlines()[-count:]
    except OSError:
        return []


def _progress(folder: Any) -> dict[str, Any] | None:
    from anytune.studio.work import PROGRESS
    from anytune.train.run_folder import read_json

    return read_json(folder / PROGRESS)


@router.patch("/jobs/{identifier}")
async def rename(request: Request, identifier: str, new: About) -> dict[str, Any]:
    """Change the name or the note."""
    studio = _studio(request)
    set_about(studio.home.place(studio.home.jobs, identifier), new.name, new.note)
    return studio.changed(identifier) or {}


@router.post("/jobs/{identifier}/{action}")
async def act(request: Request, identifier: str, action: Literal["pause", "cancel", "resume"]) -> dict[str, Any]:
    """Pause (after a checkpoint), cancel (again: at once), or go on from the last checkpoint."""
    studio = _studio(request)
    folder = studio.home.place(studio.home.jobs, identifier)
    if action == "resume":
        jobs.queue_again(folder)
    else:
        jobs.request(folder, action)
    return _clean(request, studio.changed(identifier) or {})


@router.delete("/jobs/{identifier}", status_code=204)
async def discard(request: Request, identifier: str) -> None:
    """Into the bin, with its adapter. A job that runs is cancelled first, by a person."""
    studio = _studio(request)
    folder = studio.home.place(studio.home.jobs, identifier)
    if jobs.alive(folder):
        raise Conflict("This job is running: cancel it first.")
    studio.home.discard(folder)
    studio.index.refresh(identifier)


@router.get("/jobs/{identifier}/series")
async def series(
    request: Request, identifier: str, first: int = 1, last: int = 1 << 60, points: int = 1000, quick: bool = False
) -> dict[str, Any]:
    """A run's points as columns, at most about twice `points` of them; quick: a rough view of a long run."""
    studio = _studio(request)
    folder = studio.home.place(studio.home.jobs, identifier)
    run, points = studio.follower[identifier], max(10, min(points, 5000))
    path = folder / "metrics.jsonl"
    if quick and not len(run.series) and path.is_file() and path.stat().st_size > LONG:
        return {"columns": await asyncio.to_thread(rough, path, points), "rough": True, "step": 0}
    await run.look()
    return {
        "columns": await asyncio.to_thread(run.series.view, first, last, points),
        "rough": False,
        "step": run.series.step,
    }


@router.get("/jobs/{identifier}/looks")
async def looks(request: Request, identifier: str) -> list[Any]:
    """The prompts' answers and the samples' losses at each checkpoint."""
    studio = _studio(request)
    return rows_of(studio.home.place(studio.home.jobs, identifier) / WATCHED)


@router.get("/jobs/{identifier}/events")
async def events(request: Request, identifier: str, after: int = 0) -> StreamingResponse:
    """Server-sent events: points (the id is their last step), back, log, look. Last-Event-ID goes on from there."""
    studio = _studio(request)
    studio.home.place(studio.home.jobs, identifier)
    known = request.headers.get("last-event-id", "")
    after = int(known) if known.isascii() and known.isdigit() and len(known) < 16 else max(0, min(after, 1 << 53))
    return StreamingResponse(
        _scrubbed(studio, studio.follower[identifier].events(after)), media_type="text/event-stream", headers=EVENTS
    )


async def _scrubbed(studio: Studio, stream: Any) -> Any:
    async for event in stream:
        yield without_paths(event.decode(), studio.home.root).encode() if event.startswith(b"event: log") else event


@router.get("/events")
async def news(request: Request) -> StreamingResponse:
    """Server-sent events: a job's row whenever it has changed."""
    return StreamingResponse(_studio(request).news.events(), media_type="text/event-stream", headers=EVENTS)
