"""The page's files: read once, compressed once, sent with a tag so that a browser keeps them."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

FOLDER = Path(__file__).parent / "static"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".webmanifest": "application/manifest+json",
    ".txt": "text/plain; charset=utf-8",
}
ALONE = {"/sw.js": "sw.js", "/manifest.webmanifest": "manifest.webmanifest"}  # what must be at the top


@dataclass(frozen=True)
class File:
    body: bytes
    packed: bytes
    kind: str
    tag: str


def load(folder: Path = FOLDER) -> dict[str, File]:
    """name relative to `folder` -> File. The service worker carries a version of all of them."""
    names = sorted(path for path in folder.rglob("*") if path.suffix in TYPES)
    version = hashlib.sha256(b"".join(path.read_bytes() for path in names)).hexdigest()[:12]
    found = {}
    for path in names:
        body = path.read_bytes()
        if path.name == "sw.js":
            parts = [
                f"/static/{one.relative_to(folder).as_posix()}"
                for one in names
                if one.suffix in (".js", ".mjs", ".css", ".svg") and one.name not in ("sw.js", "docs.js")
            ]
            body = body.replace(b"$VERSION", version.encode()).replace(b'"$PARTS"', repr(parts).encode())
        found[path.relative_to(folder).as_posix()] = File(
            body, gzip.compress(body, 9, mtime=0), TYPES[path.suffix], f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        )
    return found


def install(app: FastAPI) -> None:
    """Serve the files, and the page itself at every address that is not the API's: its own code reads the address."""
    files = load()

    def send(request: Request, file: File | None) -> Response:
        if file is None:
            return JSONResponse({"error": "There is no such file."}, 404)
        headers = {"etag": file.tag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == file.tag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            return Response(file.packed, media_type=file.kind, headers=headers | {"content-encoding": "gzip"})
        return Response(file.body, media_type=file.kind, headers=headers)

    @app.get("/static/{name:path}", include_in_schema=False)
    async def part(request: Request, name: str) -> Response:
        return send(request, files.get(name))

    @app.get("/{name:path}", include_in_schema=False)
    async def page(request: Request, name: str) -> Response:
        if name.startswith("api/"):
            return JSONResponse({"error": "Not found; /docs lists the API."}, 404)
        return send(request, files.get(ALONE.get(f"/{name}", "docs.html" if name == "docs" else "index.html")))
