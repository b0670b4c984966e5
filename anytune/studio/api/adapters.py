"""Adapters: what they are, proof in llama.cpp, exports, combinations; and the bin."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from anytune.errors import UserError
from anytune.studio import adapters, commands, datasets, jobs
from anytune.studio.api.data import About
from anytune.studio.home import Missing, about, set_about
from anytune.studio.places import folder_of as place_of
from anytune.studio.places import listed, lm_studio
from anytune.studio.state import Studio, short

router = APIRouter(prefix="/api", tags=["adapters"])


class On(BaseModel):
    model: str | None = Field(None, max_length=500, description="a model; default: the one it was trained on")


class Export(On):
    form: Literal["gguf", "peft", "merged", "ollama", "lmstudio"]
    place: str = Field("exports", max_length=300)
    name: str = Field("", max_length=100)
    type: str | None = Field(None, max_length=20, pattern=r"^[A-Za-z0-9_]+$", description="of merged weights")


class Part(BaseModel):
    id: str = Field(max_length=100)
    weight: float = Field(1.0, ge=-10, le=10)


class Combine(On):
    parts: list[Part] = Field(min_length=2, max_length=8)
    name: str = Field(min_length=1, max_length=200)


def _studio(request: Request) -> Studio:
    return request.app.state.studio


@router.get("/adapters")
async def listing(request: Request) -> list[dict[str, Any]]:
    """All adapters, the newest first, each with its lineage and its proof."""
    studio, found = _studio(request), []
    for folder in adapters.folders(studio.home):
        try:
            found.append(await _described(studio, folder))
        except (UserError, OSError):
            continue  # it is being written, or was damaged from outside
    return found


@router.get("/adapters/{identifier}")
async def describe(request: Request, identifier: str) -> dict[str, Any]:
    studio = _studio(request)
    return await _described(studio, adapters.folder_of(studio.home, identifier))


async def _described(studio: Studio, folder: Path) -> dict[str, Any]:
    facts = adapters.known_facts(folder)
    if facts is None:
        facts = await studio.reader.call("adapter_facts", file=str(folder / adapters.FILE))
        adapters.keep_facts(folder, facts)
    return adapters.describe(folder, facts)


@router.patch("/adapters/{identifier}")
async def rename(request: Request, identifier: str, new: About) -> dict[str, Any]:
    """Change the name or the note."""
    studio = _studio(request)
    folder = adapters.folder_of(studio.home, identifier)
    set_about(folder, new.name, new.note)
    if folder.parent == studio.home.jobs:
        studio.changed(identifier)
    return await _described(studio, folder)


@router.get("/adapters/{identifier}/file")
async def download(request: Request, identifier: str) -> FileResponse:
    """The adapter as GGUF, as llama.cpp loads it."""
    folder = adapters.folder_of(_studio(request).home, identifier)
    return FileResponse(
        folder / adapters.FILE, media_type="application/octet-stream", filename=adapters.file_name(folder)
    )


@router.delete("/adapters/{identifier}", status_code=204)
async def discard(request: Request, identifier: str) -> None:
    """Into the bin; an adapter of a run goes with its run."""
    studio = _studio(request)
    folder = adapters.folder_of(studio.home, identifier)
    if folder.parent == studio.home.jobs:
        from anytune.studio.api.runs import discard as discard_job

        return await discard_job(request, identifier)
    studio.home.discard(folder)


@router.post("/adapters/{identifier}/verify", status_code=201)
async def verify(request: Request, identifier: str, on: On) -> dict[str, Any]:
    """Let llama.cpp compute the same; the badge is given only when this has passed, for these very bytes."""
    studio = _studio(request)
    folder = adapters.folder_of(studio.home, identifier)
    found = await _described(studio, folder)
    name, model = await _model(studio, found, on.model)
    spec = {
        "args": commands.verify(model, folder / adapters.FILE),
        "model": {"name": name},
        "adapter": identifier,
        "proof": {"folder": str(folder), "which": "adapter", "sha256": found["facts"]["sha256"]},
    }
    return _begun(studio, "verify", spec, f"Verify {found['name']}", identifier)


@router.get("/places")
async def places(request: Request) -> dict[str, Any]:
    """Where exports may go: names, not paths."""
    import shutil

    studio = _studio(request)
    return {
        "places": listed(studio.home, studio.further),
        "lmstudio": lm_studio() is not None,
        "ollama": shutil.which("ollama") is not None,
    }


@router.post("/adapters/{identifier}/export", status_code=201)
async def export(request: Request, identifier: str, how: Export) -> dict[str, Any]:
    """Write it for another program, and check the result there where that is possible."""
    studio = _studio(request)
    folder = adapters.folder_of(studio.home, identifier)
    found = await _described(studio, folder)
    name, model = await _model(studio, found, how.model)
    target = place_of(studio.home, how.place, studio.further)
    if how.form == "lmstudio":
        target = lm_studio() or target
    label = how.name.strip() or found["name"] or identifier
    args, made = commands.export(how.form, model, [(folder / adapters.FILE, 1.0)], target, label, how.type)
    spec = {
        "args": args,
        "model": {"name": name},
        "adapter": identifier,
        "form": how.form,
        "place": how.place,
        "made": made,
        "folder": str(target),
    }
    return _begun(studio, "export", spec, f"Export {found['name']} as {made}", identifier)


@router.get("/jobs/{identifier}/files")
async def files(request: Request, identifier: str) -> list[dict[str, Any]]:
    """What an export made, to be downloaded."""
    root = _made(request, identifier)
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*") if path.is_file())
    return [{"name": path.relative_to(root.parent).as_posix(), "bytes": path.stat().st_size} for path in paths]


@router.get("/jobs/{identifier}/files/{name:path}")
async def file(request: Request, identifier: str, name: str) -> FileResponse:
    """One file of an export."""
    root = _made(request, identifier)
    for path in [root] if root.is_file() else root.rglob("*"):
        if path.is_file() and path.relative_to(root.parent).as_posix() == name:
            return FileResponse(path, media_type="application/octet-stream", filename=path.name)
    raise Missing("There is no such file in this export.")


def _made(request: Request, identifier: str) -> Path:
    studio = _studio(request)
    job = jobs.job_of(studio.home.place(studio.home.jobs, identifier))
    spec = job["spec"]
    if job["kind"] != "export" or not (path := Path(spec["folder"]) / spec["made"]).exists():
        raise Missing("This export has no files (yet).")
    return path


@router.post("/adapters/combine", status_code=201)
async def combine(request: Request, how: Combine) -> dict[str, Any]:
    """The weighted sum of several adapters of one model, as an adapter of its own."""
    studio = _studio(request)
    folders = [adapters.folder_of(studio.home, part.id) for part in how.parts]
    found = [await _described(studio, folder) for folder in folders]
    name, model = await _model(studio, found[0], how.model)
    weights = [(folder / adapters.FILE, part.weight) for folder, part in zip(folders, how.parts, strict=True)]
    spec = {
        "model": {"name": name},
        "name": how.name.strip(),
        "home": str(studio.home.root),
        "made_of": [
            {"id": one["id"], "name": one["name"], "weight": part.weight}
            for one, part in zip(found, how.parts, strict=True)
        ],
    }
    folder = jobs.prepare(studio.home, "combine", spec, f"Combine into {how.name.strip()}", None)
    with folder as made:
        final = studio.home.jobs / made.name.removeprefix(".new-")
        args, _ = commands.export("gguf", model, weights, final, "combined", None)
        spec["args"] = [*args, "--no-verify"]
        spec["keep"] = str(final / "combined.gguf")
    return studio.changed(final.name) or {}


async def _model(studio: Studio, found: dict[str, Any], name: str | None) -> tuple[str, str]:
    """(name, file) of the model that was named, else of the one that an adapter was trained on."""
    name = name or found["model"]
    if not name:
        raise UserError("The adapter's model is unknown: choose one.")
    return name, await studio.model_file(name)


def _begun(studio: Studio, kind: str, spec: dict[str, Any], name: str, parent: str | None) -> dict[str, Any]:
    folder = jobs.create(studio.home, kind, spec, name, parent)
    return studio.changed(folder.name) or {}


class Distill(BaseModel):
    model: str = Field(max_length=500)
    data: str = Field(max_length=100, description="a data set; its prompts are enough")
    system: str = Field(
        min_length=1, max_length=20_000, description="the prompt that the teacher sees and the adapter replaces"
    )
    rank: int = Field(16, ge=1, le=4096)
    context: int = Field(512, ge=2)
    name: str = Field("", max_length=200)


@router.post("/adapt", status_code=201)
async def adapt(request: Request, how: Distill) -> dict[str, Any]:
    """An adapter in closed form: the model says without the system message what it says with it."""
    studio = _studio(request)
    model = await studio.model_file(how.model)
    folder = studio.home.place(studio.home.data, how.data)
    file, version = datasets.file_of(folder, None)
    spec = {
        "model": {"name": how.model},
        "system": how.system,
        "data": {"id": how.data, "version": version, "name": about(folder)["name"]},
    }
    with jobs.prepare(studio.home, "adapt", spec, how.name.strip() or f"A prompt for {short(how.model)}") as made:
        final = studio.home.jobs / made.name.removeprefix(".new-")
        (made / "system.txt").write_text(how.system, "utf-8")
        spec["args"] = commands.distill(model, file, final / "system.txt", final / adapters.FILE, how.rank, how.context)
    return studio.changed(final.name) or {}


@router.get("/bin")
async def in_the_bin(request: Request) -> list[dict[str, Any]]:
    """What was deleted and can still be put back."""
    home = _studio(request).home
    found = []
    for folder in sorted(home.bin.iterdir(), reverse=True):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        kind = {"jobs": "run", "data": "data", "adapters": "adapter"}.get(folder.name.partition("-")[0], "")
        found.append({"id": folder.name, "kind": kind, "bytes": size, **about(folder)})
    return found


@router.post("/bin/{name}/restore")
async def restore(request: Request, name: str) -> dict[str, str]:
    """Put something back."""
    studio = _studio(request)
    identifier = studio.home.restore(name)
    if name.startswith("jobs-"):
        studio.changed(identifier)
    return {"id": identifier}


@router.delete("/bin", status_code=204)
async def empty(request: Request) -> None:
    """Delete what is in the bin for good."""
    _studio(request).home.empty_bin()
