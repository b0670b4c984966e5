"""Errors as answers: {"error": sentence}, without a traceback and without a path of this machine."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A path of two or more parts, in quotes (spaces and all) or bare; not the path of a URL, not a fraction.
_PART = r"[^\s/\\:,;'\"()<>|]+"
_BARE = re.compile(rf"(?<![\w:/.])(?:~|[A-Za-z]:)?(?:[/\\]{_PART})+[/\\]({_PART})")
log = logging.getLogger("anytune.http")


def without_paths(text: str, *folders: Path) -> str:
    """`text` with files by their names alone. folders: places whose paths may hold spaces."""
    for folder in sorted({str(folder) for folder in (*folders, Path.home())} - {"/"}, key=len, reverse=True):
        text = text.replace(folder + "/", "/-/").replace(folder, "/-/home")
    return _BARE.sub(r"\1", text)


def plain(status: int, sentence: str, error: Exception | None = None) -> dict[str, Any]:
    """The body of a refused request."""
    return {"error": sentence}


def install(
    app, *folders: Path, body: Callable[[int, str, Exception | None], dict[str, Any]] = plain, invalid: int = 422
) -> None:
    """Handlers for what an application may raise. invalid: the status of a request that is not in its form."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    from anytune.errors import UserError

    class Answer(JSONResponse):
        def render(self, content: Any) -> bytes:  # text of a request may hold what UTF-8 cannot
            return json.dumps(content, ensure_ascii=False).encode("utf-8", "replace")

    def answer(status: int, sentence: str, error: Exception, headers: Any = None) -> Answer:
        return Answer(body(status, sentence, error), status, headers)

    @app.exception_handler(UserError)
    async def user(_: Request, error: UserError) -> JSONResponse:
        return answer(400, without_paths(" ".join(str(error).split()), *folders), error)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return answer(error.status_code, str(error.detail), error, getattr(error, "headers", None))

    @app.exception_handler(RequestValidationError)
    async def form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))[:100]
        return answer(invalid, f"{place or 'The request'}: {first['msg']}.", error)

    @app.exception_handler(UnicodeEncodeError)
    async def surrogate(_: Request, error: UnicodeEncodeError) -> JSONResponse:
        return answer(invalid, "The request contains half of an escaped surrogate pair, which is no character.", error)

    @app.exception_handler(OSError)
    async def disk(_: Request, error: OSError) -> JSONResponse:
        log.exception("a request failed")
        return answer(507, f"Cannot write to the disk: {error.strerror or type(error).__name__}.", error)

    @app.exception_handler(Exception)
    async def other(_: Request, error: Exception) -> JSONResponse:
        log.exception("a request failed")
        return answer(500, "Internal error; the server's log has the details.", error)
