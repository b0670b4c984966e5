"""Models on this machine, and fetching others."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from anytune.memory import available_bytes
from anytune.studio import jobs
from anytune.studio.state import Studio, key_of

router = APIRouter(prefix="/api/models", tags=["models"])
HIDDEN = ("path", "also")


class Pull(BaseModel):
    name: str = Field(min_length=1, max_length=500, description="smollm2-135m, hf:owner/repo:Q4_K_M, or a URL")


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the list without paths: a model that only a path names is labelled by its file's name."""
    key = key_of(row)
    label = key.split(":", 2)[2] if key.startswith("file:") else key
    return {name: value for name, value in row.items() if name not in HIDDEN} | {"name": key, "label": label}


@router.get("")
async def models(request: Request) -> dict[str, Any]:
    """Every GGUF model that was found, and the memory that is free."""
    studio: Studio = request.app.state.studio
    return {"models": [shown(row) for row in await studio.find_models()], "free": available_bytes()}


@router.get("/facts")
async def facts(request: Request, name: str) -> dict[str, Any]:
    """What one model's file holds, and the memory that training it takes."""
    studio: Studio = request.app.state.studio
    return await studio.reader.call("facts", model=await studio.model_file(name))


@router.post("/pull", status_code=201)
async def pull(request: Request, wanted: Pull) -> dict[str, Any]:
    """Begin to fetch a model; a job that can be watched."""
    studio: Studio = request.app.state.studio
    name = wanted.name.strip()
    if not name.startswith(("hf:", "https://", "http://")) and not name.replace("-", "").replace(".", "").isalnum():
        name = f"hf:{name}"
    folder = jobs.create(studio.home, "pull", {"pull": name}, f"Fetch {name}")
    return studio.changed(folder.name) or {}
