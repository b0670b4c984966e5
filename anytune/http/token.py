"""The token of a server that others may reach: made once, kept in a file that only its owner may read."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from anytune.errors import UserError


def token_in(path: Path) -> str:
    """The token that `path` holds, made if it is missing. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            found = path.read_text("utf-8").strip()
            if len(found) < 20:
                raise UserError(f"{path} contains no token: remove it to create a new one.") from None
            return found
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            token = secrets.token_urlsafe(24)
            file.write(token + "\n")
        return token
    except OSError as error:
        raise UserError(f"The token cannot be kept in {path}: {error.strerror or error}.") from None
