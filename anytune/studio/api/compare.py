"""Answers side by side, votes on them, and the reports of `anytune evaluate`."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, Field

from anytune.errors import UserError
from anytune.http.errors import without_paths
from anytune.studio import adapters, commands, datasets, jobs
from anytune.studio.api.runs import EVENTS
from anytune.studio.follow import message
from anytune.studio.home import Missing
from anytune.studio.state import Studio
from anytune.studio.training import rows_of

router = APIRouter(prefix="/api", tags=["compare and evaluate"])
REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'self'"
)


class Message(BaseModel):
    role: Literal["user", "assistant"]
    content: str = Field(max_length=100_000)


class Ask(BaseModel):
    model: str = Field(max_length=500)
    columns: list[str | None] = Field(min_length=1, max_length=6, description="adapters; null: only the base")
    messages: list[Message] = Field(min_length=1, max_length=200)
    system: str | None = Field(None, max_length=20_000)
    temperature: float = Field(0.7, ge=0, le=5)
    top_p: float = Field(0.95, gt=0, le=1)
    seed: int = Field(0, ge=0, lt=1 << 53)
    max_tokens: int = Field(256, ge=1, le=4096)


class Vote(BaseModel):
    prompt: str = Field(max_length=20_000)
    model: str = Field(max_length=500)
    columns: list[str | None] = Field(min_length=2, max_length=6)
    chosen: int | None = Field(description="the column; null: a tie")
    blind: bool = True


class Evaluate(BaseModel):
    report: Literal["compare", "style", "perplexity"]
    model: str = Field(max_length=500)
    adapters: list[str] = Field([], max_length=6)
    data: str = Field(max_length=100)
    limit: int | None = Field(20, ge=1, le=100_000)
    max_tokens: int | None = Field(128, ge=1, le=4096)


def _studio(request: Request) -> Studio:
    return request.app.state.studio


@router.post("/compare")
async def compare(request: Request, ask: Ask) -> StreamingResponse:
    """One prompt, several adapters, the same seed. Server-sent events: piece {column, text}, end {column, hash, kl}."""
    studio = _studio(request)
    model = await studio.model_file(ask.model)
    files = [None if one is None else str(adapters.folder_of(studio.home, one) / adapters.FILE) for one in ask.columns]
    sampling = {"temperature": ask.temperature, "top_p": ask.top_p, "seed": ask.seed}
    stream = studio.talker.stream(
        "compare",
        model=model,
        device=studio.device,
        adapters=files,
        system=ask.system,
        messages=[one.model_dump() for one in ask.messages],
        sampling=sampling,
        max_tokens=ask.max_tokens,
    )
    return StreamingResponse(_events(studio, stream), media_type="text/event-stream", headers=EVENTS)


async def _events(studio: Studio, stream: AsyncIterator[dict[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for item in stream:
            yield message("piece" if "text" in item else "end", item)
        yield message("done", {})
    except UserError as error:
        yield message("problem", {"error": without_paths(str(error), studio.home.root)})


@router.post("/votes", status_code=201)
async def vote(request: Request, given: Vote) -> dict[str, Any]:
    """Keep which answer a person liked best."""
    if given.chosen is not None and not 0 <= given.chosen < len(given.columns):
        raise UserError("There is no such column.")
    row = given.model_dump() | {"time": time.time()}
    with open(_studio(request).home.root / "votes.jsonl", "ab") as file:
        file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
    return await tally(request)


@router.get("/votes")
async def tally(request: Request) -> dict[str, Any]:
    """How often each adapter (base: the model alone) was shown, won and drew."""
    counts: dict[str, dict[str, int]] = {}
    rows = rows_of(_studio(request).home.root / "votes.jsonl")
    for row in rows:
        for number, column in enumerate(row["columns"]):
            one = counts.setdefault(column or "base", {"shown": 0, "won": 0, "drew": 0})
            one["shown"] += 1
            one["won"] += row["chosen"] == number
            one["drew"] += row["chosen"] is None
    return {"votes": len(rows), "tally": counts}


@router.post("/evaluate", status_code=201)
async def evaluate(request: Request, how: Evaluate) -> dict[str, Any]:
    """One of the reports, on a data set."""
    studio = _studio(request)
    if how.report != "perplexity" and not how.adapters:
        raise UserError("Choose an adapter to measure.")
    model = await studio.model_file(how.model)
    folder = studio.home.place(studio.home.data, how.data)
    file, version = datasets.file_of(folder, None)
    chosen = []
    for identifier in how.adapters:
        where = adapters.folder_of(studio.home, identifier)
        chosen.append((f"{datasets.about(where)['name'] or 'adapter'}-{identifier[-4:]}", where / adapters.FILE))
    spec = {
        "model": {"name": how.model},
        "data": {"id": how.data, "version": version, "name": datasets.about(folder)["name"]},
        "report": how.report,
        "adapters": how.adapters,
    }
    name = f"{how.report.capitalize()} on {spec['data']['name']}"
    with jobs.prepare(studio.home, "evaluate", spec, name) as made:
        final = studio.home.jobs / made.name.removeprefix(".new-")
        spec["args"] = commands.evaluate(how.report, model, chosen, file, final / "report.html", how.model_dump())
    return studio.changed(final.name) or {}


@router.get("/jobs/{identifier}/report")
async def report(request: Request, identifier: str) -> FileResponse:
    """A report as a page of its own, which may run nothing and fetch nothing."""
    studio = _studio(request)
    path = studio.home.place(studio.home.jobs, identifier) / "report.html"
    if not path.is_file():
        raise Missing("This report does not exist (yet).")
    return FileResponse(
        path,
        media_type="text/html; charset=utf-8",
        headers={"content-security-policy": REPORT_POLICY, "cache-control": "no-store"},
    )
