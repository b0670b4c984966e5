"""The application: OpenAI's API, and vLLM's and llama-server's ways to change adapters, behind the guard."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse, Response
from starlette.exceptions import HTTPException

import anytune
from anytune.errors import UserError
from anytune.http import errors
from anytune.http.guard import App, Guard
from anytune.http.limit import limited
from anytune.serve import forms
from anytune.serve.answering import chat, completion
from anytune.serve.bodies import Chat, Completion, Embedding, LoadAdapter, LoraScale, UnloadAdapter
from anytune.serve.scheduler import Busy
from anytune.serve.served import NoSuchModel, Served
from anytune.serve.service import Service

BODY = 32 << 20  # bytes of a request


@dataclass(frozen=True)
class Access:
    """Who may ask. token: None: whoever reaches the port. folders: where adapters may be loaded from by request; None:
    from anywhere that the server can read."""

    token: str | None = None
    hosts: tuple[str, ...] = ()
    secure: bool = False
    folders: tuple[Path, ...] | None = None


def application(service: Service, access: Access = Access()) -> App:
    """The server as an ASGI application."""
    app = FastAPI(title="anytune serve", version=anytune.__version__, docs_url=None, redoc_url=None)
    errors.install(app, *(access.folders or ()), body=_error, invalid=400)
    for kind, status in ((NoSuchModel, 404), (Busy, 429)):
        app.add_exception_handler(kind, _answers(status))
    _generation(app, service)
    _models(app, service)
    _adapters(app, service, access)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """llama-server's."""
        return {"status": "ok"}

    return Guard(
        limited(app, BODY),
        access.token,
        access.hosts,
        access.secure,
        is_open=lambda path: path == "/health",
        body=_error,
    )


def _generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions")
    async def chats(body: Chat, request: Request) -> Response:
        return await chat(service, body, request)

    @app.post("/v1/completions")
    async def completions(body: Completion, request: Request) -> Response:
        return await completion(service, body, request)

    @app.post("/v1/embeddings")
    async def embeddings(body: Embedding) -> Response:
        vectors, counts, label = await asyncio.to_thread(service.embeddings, body)
        return _json(forms.embeddings(vectors, counts, label, body.encoding_format))


def _models(app: FastAPI, service: Service) -> None:
    def listed() -> list[dict[str, Any]]:
        with service.catalog.lock:
            return service.catalog.models()

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": await asyncio.to_thread(listed)})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        def found() -> dict[str, Any]:
            with service.catalog.lock:
                wanted = service.catalog.label(service.catalog.resolve(name))
                return next(entry for entry in service.catalog.models() if entry["id"] == wanted)

        return _json(await asyncio.to_thread(found))


def _adapters(app: FastAPI, service: Service, access: Access) -> None:
    catalog = service.catalog

    def load(body: LoadAdapter) -> Served:
        path = _allowed(body.lora_path, access.folders)
        with catalog.lock:
            try:
                return catalog.load(body.lora_name, path, body.load_inplace)
            except OSError as error:
                raise UserError(f"The adapter cannot be read: {error.strerror or type(error).__name__}.") from None

    def unload(body: UnloadAdapter) -> Served:
        with catalog.lock:
            return catalog.unload(body.lora_name)

    def scales(body: list[LoraScale] | None) -> list[dict[str, Any]]:
        with catalog.lock:
            if body is not None:
                catalog.scale({entry.id: entry.scale for entry in body})
            return [{"id": s.id, "name": s.name, "path": s.file, "scale": s.scale} for s in catalog.adapters.values()]

    @app.post("/v1/load_lora_adapter")
    async def load_adapter(body: LoadAdapter) -> Response:
        """vLLM's: a GGUF file or a peft folder becomes the model base:NAME."""
        found = await asyncio.to_thread(load, body)
        return PlainTextResponse(f"Success: LoRA adapter '{found.name}' added successfully.")

    @app.post("/v1/unload_lora_adapter")
    async def unload_adapter(body: UnloadAdapter) -> Response:
        """vLLM's: answers under way are finished with it."""
        found = await asyncio.to_thread(unload, body)
        return PlainTextResponse(f"Success: LoRA adapter '{found.name}' removed successfully.")

    @app.get("/lora-adapters")
    async def adapters() -> Response:
        """llama-server's list; path is the file's name."""
        return _json(await asyncio.to_thread(scales, None))

    @app.post("/lora-adapters")
    async def set_scales(body: list[LoraScale]) -> Response:
        """llama-server's: which adapters act on requests for the base that say nothing of adapters."""
        await asyncio.to_thread(scales, body)
        return _json({"success": True})


def _allowed(given: str, folders: tuple[Path, ...] | None) -> Path:
    """The file that a request may name. Raises UserError, which says nothing of what is outside of the folders."""
    try:
        path = Path(given).expanduser()
        if folders is None:
            return path
        for folder in folders:
            whole = (folder / path).resolve()
            if whole.is_relative_to(folder.resolve()) and whole.exists():
                return whole
    except (OSError, ValueError, RuntimeError):
        raise UserError("This is not the path of an adapter.") from None
    raise UserError("There is no such adapter in the folders that this server loads from (--lora-dir).")


def _json(value: Any, status: int = 200) -> Response:
    return Response(forms.encoded(value), status, media_type="application/json")


def _error(status: int, sentence: str, error: Exception | None = None) -> dict[str, Any]:
    """OpenAI's form of an error."""
    if isinstance(error, HTTPException) and sentence in ("Not Found", "Method Not Allowed"):
        sentence = f"There is no such operation here ({sentence.lower()})."
    kinds = {
        401: ("authentication_error", "invalid_api_key"),
        403: ("permission_error", None),
        404: ("invalid_request_error", "not_found"),
        429: ("rate_limit_error", None),
    }
    kind, code = kinds.get(status, ("invalid_request_error" if status < 500 else "server_error", None))
    if isinstance(error, NoSuchModel):
        code = "model_not_found"
    param = None
    if hasattr(error, "errors"):
        param = ".".join(str(part) for part in error.errors()[0]["loc"][1:])[:100] or None
    return forms.error(sentence, kind, param, code)


def _answers(status: int) -> Callable:
    async def answer(_: Request, error: Exception) -> Response:
        return _json(_error(status, errors.without_paths(" ".join(str(error).split())), error), status)

    return answer
