"""Uploads and data sets."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from anytune.errors import UserError
from anytune.studio import adapters, datasets
from anytune.studio.home import IDENTIFIER, set_about
from anytune.studio.state import Studio

router = APIRouter(prefix="/api", tags=["data"])


class Upload(BaseModel):
    name: str = Field(max_length=1000)
    size: int


class Finish(BaseModel):
    kind: Literal["data", "adapter"] = "data"
    model: str | None = Field(None, description="adapter: the model it is for")


class Reading(BaseModel):
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion", "text", "plain"] = "auto"
    columns: dict[str, str] | None = Field(None, max_length=10)
    loss: Literal["auto", "assistant", "all"] = "auto"
    overflow: Literal["split", "truncate", "drop", "error"] | None = None
    val_split: float = Field(0.0, ge=0, lt=1)


class Text(BaseModel):
    text: str = Field(min_length=1, max_length=20_000_000)
    name: str = Field("pasted.jsonl", max_length=200)


class About(BaseModel):
    name: str | None = Field(None, max_length=200)
    note: str | None = Field(None, max_length=20_000)


class Edit(BaseModel):
    version: int
    changes: dict[int, str | None] = Field(max_length=10_000, description="line -> its new text; null removes it")


def _studio(request: Request) -> Studio:
    return request.app.state.studio


@router.post("/uploads", status_code=201)
async def begin(request: Request, upload: Upload) -> dict[str, Any]:
    """Announce a file; its bytes follow by PUT, in as many pieces as one likes."""
    return _studio(request).uploads.begin(upload.name, upload.size)


@router.get("/uploads/{identifier}")
async def received(request: Request, identifier: str) -> dict[str, Any]:
    """How much of a file has arrived: where to go on."""
    return _studio(request).uploads.state(identifier)


@router.put("/uploads/{identifier}")
async def take(request: Request, identifier: str, offset: int) -> dict[str, Any]:
    """Append the request's body (application/octet-stream) at `offset`."""
    return await _studio(request).uploads.take(identifier, offset, request.stream())


@router.delete("/uploads/{identifier}", status_code=204)
async def forget(request: Request, identifier: str) -> None:
    """Throw an upload away."""
    _studio(request).uploads.state(identifier)
    _studio(request).uploads.forget(identifier)


@router.post("/uploads/{identifier}/finish", status_code=201)
async def finish(request: Request, identifier: str, how: Finish) -> dict[str, Any]:
    """Check a whole file, and keep it as a data set or an adapter. A file that is neither is thrown away."""
    studio = _studio(request)
    path, name = studio.uploads.finish(identifier)
    named = path.with_name(identifier + (datasets.suffix_of(name) if how.kind == "data" else ".gguf"))
    path.rename(named)
    try:
        if how.kind == "data":
            facts = await studio.reader.call("recognise", file=str(named))
            made = await asyncio.to_thread(datasets.create, studio.home, named, name)
            answer = datasets.describe(studio.home.data / made) | {"recognised": facts["kind"], "rows": facts["rows"]}
        else:
            model = await studio.model_file(how.model) if how.model else None
            facts = await studio.reader.call("adapter_facts", file=str(named), model=model)
            origin = {"kind": "imported", "model": how.model}
            made = await asyncio.to_thread(adapters.add, studio.home, named, name, origin)
            adapters.keep_facts(studio.home.adapters / made, facts)
            answer = adapters.describe(studio.home.adapters / made, facts)
        studio.uploads.forget(identifier)
        return answer
    except UserError:
        studio.uploads.forget(identifier)
        raise
    finally:
        named.unlink(missing_ok=True)


@router.post("/data/text", status_code=201)
async def paste(request: Request, text: Text) -> dict[str, Any]:
    """A data set of text that was typed or pasted."""
    studio, body = _studio(request), text.text.encode("utf-8", "replace")
    upload = studio.uploads.begin(text.name, len(body))

    async def pieces():
        yield body

    await studio.uploads.take(upload["id"], 0, pieces())
    return await finish(request, upload["id"], Finish())


@router.get("/data")
async def listing(request: Request) -> list[dict[str, Any]]:
    """All data sets, the newest first."""
    home = _studio(request).home
    found = []
    for folder in sorted(home.data.iterdir(), reverse=True):
        if IDENTIFIER.fullmatch(folder.name):
            try:
                found.append(datasets.describe(folder))
            except UserError:
                continue
    return found


@router.get("/data/{identifier}")
async def describe(request: Request, identifier: str) -> dict[str, Any]:
    studio = _studio(request)
    return datasets.describe(studio.home.place(studio.home.data, identifier))


@router.patch("/data/{identifier}")
async def rename(request: Request, identifier: str, new: About) -> dict[str, Any]:
    """Change the name or the note."""
    studio = _studio(request)
    folder = studio.home.place(studio.home.data, identifier)
    set_about(folder, new.name, new.note)
    return datasets.describe(folder)


@router.put("/data/{identifier}/reading")
async def read_as(request: Request, identifier: str, how: Reading) -> dict[str, Any]:
    """How the file is read: its format, which columns mean what, what is learned, what is held out."""
    studio = _studio(request)
    folder = studio.home.place(studio.home.data, identifier)
    datasets.set_reading(folder, how.model_dump(exclude={"val_split"}), how.val_split)
    return datasets.describe(folder)


@router.get("/data/{identifier}/look")
async def look(
    request: Request, identifier: str, model: str, context: int = 512, version: int | None = None
) -> dict[str, Any]:
    """Counts, lengths, what is learned, and lines with problems, as this model will see the data."""
    studio, reading, file = await _reading(request, identifier, version)
    return await studio.reader.call(
        "look", model=await studio.model_file(model), file=file, reading=reading, context=max(2, context)
    )


@router.get("/data/{identifier}/examples")
async def examples(
    request: Request,
    identifier: str,
    model: str,
    context: int = 512,
    version: int | None = None,
    start: int = 0,
    count: int = 20,
) -> list[dict[str, Any]]:
    """Examples with every token, and whether it is learned."""
    studio, reading, file = await _reading(request, identifier, version)
    return await studio.reader.call(
        "examples",
        model=await studio.model_file(model),
        file=file,
        reading=reading,
        context=max(2, context),
        start=start,
        count=max(1, min(count, 100)),
    )


@router.post("/data/{identifier}/edit", status_code=201)
async def edit(request: Request, identifier: str, change: Edit) -> dict[str, Any]:
    """Change or take out single examples: a new version, the old one stays."""
    studio = _studio(request)
    folder = studio.home.place(studio.home.data, identifier)
    await asyncio.to_thread(datasets.edit, folder, change.version, change.changes)
    return datasets.describe(folder)


@router.delete("/data/{identifier}", status_code=204)
async def discard(request: Request, identifier: str) -> None:
    """Into the bin."""
    studio = _studio(request)
    studio.home.discard(studio.home.place(studio.home.data, identifier))


async def _reading(request: Request, identifier: str, version: int | None) -> tuple[Studio, dict[str, Any], str]:
    studio = _studio(request)
    folder = studio.home.place(studio.home.data, identifier)
    file, _ = datasets.file_of(folder, version)
    return studio, datasets.describe(folder)["reading"], str(file)
