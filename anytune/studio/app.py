"""The application: API and page, behind the guard."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request

import anytune
from anytune.http import errors
from anytune.http.guard import App, Guard
from anytune.http.limit import limited
from anytune.studio.api import adapters, compare, data, models, runs
from anytune.studio.page import install
from anytune.studio.state import Studio

DESCRIPTION = 'What the studio\'s page uses, for other programs too. Errors are {"error": sentence}.'
BODY = 32 << 20  # bytes of a request that is no upload


def application(studio: Studio, *, token: str | None = None, secure: bool = False, hosts: tuple[str, ...] = ()) -> App:
    """The studio as an ASGI application."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await studio.start()
        yield
        await studio.stop()

    app = FastAPI(
        title="anytune studio",
        version=anytune.__version__,
        description=DESCRIPTION,
        lifespan=lifespan,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.studio = studio
    errors.install(app, studio.home.root)
    _install_statuses(app, studio)
    for part in (models, data, runs, adapters, compare):
        app.include_router(part.router)

    @app.get("/api/health", tags=["studio"])
    async def health() -> dict[str, Any]:
        """Whether the studio answers, and its version."""
        return {"ok": True, "version": anytune.__version__}

    install(app)
    return Guard(
        limited(app, BODY, streamed=("PUT",)), token, hosts, secure, is_open=lambda path: not path.startswith("/api")
    )


def _install_statuses(app: FastAPI, studio: Studio) -> None:
    """Statuses of what is not there, and of what cannot be done now."""
    from fastapi.responses import JSONResponse

    from anytune.studio.home import Conflict, Missing

    for kind, status in ((Missing, 404), (Conflict, 409)):

        def answer(_: Request, error: Exception, status: int = status) -> JSONResponse:
            return JSONResponse({"error": errors.without_paths(str(error), studio.home.root)}, status)

        app.add_exception_handler(kind, answer)
