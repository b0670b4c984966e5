"""Files that arrive: streamed to disk piece by piece, resumed where they broke off, checked before they count."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.studio.home import IDENTIFIER, Conflict, Home, Missing, new_identifier, write
from anytune.train.run_folder import read_json

MOST = 64 << 30  # bytes of one file
SPARE = 256 << 20  # bytes of the disk that are left alone
OLD = 7 * 86400  # seconds after which an upload that nobody goes on with is thrown away


class Uploads:
    def __init__(self, home: Home):
        self.home = home
        self.busy: set[str] = set()

    def begin(self, name: str, size: int) -> dict[str, Any]:
        """A new upload; the user's file name is kept only for display. Raises UserError if the disk is full."""
        if not 0 < size <= MOST:
            raise UserError("The file is empty." if size <= 0 else "The file is larger than 64 GiB.")
        if shutil.disk_usage(self.home.uploads).free < size + SPARE:
            raise UserError(f"The disk has no space for {size / 2**20:.0f} MiB: free some space, and upload it again.")
        self.sweep()
        identifier = new_identifier()
        write(self.home.uploads / f"{identifier}.json", {"id": identifier, "name": name[:200], "size": size})
        (self.home.uploads / identifier).touch()
        return self.state(identifier)

    def state(self, identifier: str) -> dict[str, Any]:
        """{id, name, size, received}. Raises Missing."""
        path = self._path(identifier)
        found = read_json(self.home.uploads / f"{identifier}.json") or {}
        return {"id": identifier, "name": found["name"], "size": found["size"], "received": path.stat().st_size}

    async def take(self, identifier: str, offset: int, pieces: AsyncIterator[bytes]) -> dict[str, Any]:
        """Append pieces at `offset`, which must be where the file ends. What arrives of a broken request stays."""
        path, state = self._path(identifier), self.state(identifier)
        if identifier in self.busy:
            raise Conflict("Another request is uploading this file.")
        if offset != state["received"]:
            raise Conflict(f"{state['received']} bytes have arrived: continue from there.")
        self.busy.add(identifier)
        try:
            left = state["size"] - offset
            with open(path, "ab", buffering=0) as file:
                async for piece in pieces:
                    if len(piece) > left:
                        raise UserError("More bytes were sent than announced: upload it again.")
                    file.write(piece)
                    left -= len(piece)
        finally:
            self.busy.discard(identifier)
        return self.state(identifier)

    def finish(self, identifier: str) -> tuple[Path, str]:
        """(the whole file, its name); forget() or a rename follows. Raises Conflict if a part is missing."""
        state = self.state(identifier)
        if state["received"] != state["size"]:
            raise Conflict(f"{state['received']} of {state['size']} bytes have arrived: continue from there.")
        path = self._path(identifier)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return path, state["name"]

    def forget(self, identifier: str) -> None:
        for path in (self.home.uploads / identifier, self.home.uploads / f"{identifier}.json"):
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        for path in self.home.uploads.glob("*.json"):
            data = path.with_suffix("")
            if not data.exists() or time.time() - data.stat().st_mtime > OLD:
                self.forget(path.stem)

    def _path(self, identifier: str) -> Path:
        path = self.home.uploads / identifier
        if not IDENTIFIER.fullmatch(identifier) or not path.is_file() or not path.with_suffix(".json").is_file():
            raise Missing("There is no such upload: start again.")
        return path
