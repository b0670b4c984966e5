"""Errors as answers: {"error": sentence}, without a traceback and without a path of this machine."""

from __future__ import annotations

import logging
import re
from pathlib import Path

# A path of two or more parts, in quotes (spaces and all) or bare; not the path of a URL, not a fraction.
_PART = r"[^\s/\\:,;'\"()<>|]+"
_BARE = re.compile(rf"(?<![\w:/.])(?:~|[A-Za-z]:)?(?:[/\\]{_PART})+[/\\]({_PART})")
log = logging.getLogger("anytune.http")


def without_paths(text: str, *folders: Path) -> str:
    """`text` with files by their names alone. folders: places whose paths may hold spaces."""
    for folder in sorted({str(folder) for folder in (*folders, Path.home())} - {"/"}, key=len, reverse=True):
        text = text.replace(folder + "/", "/-/").replace(folder, "/-/home")
    return _BARE.sub(r"\1", text)


def install(app, *folders: Path) -> None:
    """Handlers for what an application may raise."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    from anytune.errors import UserError

    @app.exception_handler(UserError)
    async def user(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": without_paths(" ".join(str(error).split()), *folders)}, 400)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code, getattr(error, "headers", None))

    @app.exception_handler(RequestValidationError)
    async def form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))[:100]
        return JSONResponse({"error": f"{place or 'The request'}: {first['msg']}."}, 422)

    @app.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> JSONResponse:
        log.exception("a request failed")
        return JSONResponse({"error": f"The disk refuses: {error.strerror or type(error).__name__}."}, 507)

    @app.exception_handler(Exception)
    async def other(_: Request, error: Exception) -> JSONResponse:
        log.exception("a request failed")
        return JSONResponse({"error": "Something broke that is not your fault; the studio's log has the details."}, 500)
