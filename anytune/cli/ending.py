"""How a command ends that cannot go on: one sentence, an exit code, and a log where it is not the user's fault."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import traceback

import click

import anytune
from anytune.errors import UserError
from anytune.files import FULL, cannot_write


def explain(error: Exception) -> int:
    """Print one sentence about `error`; returns the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # `anytune` alone; click 8.1 has no such class
        click.echo(error.ctx.get_help(), err=True)
        return 2
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "anytune"
        say(f"{_one_line(error.format_message())}  (see: {where} --help)")
        return 2
    if isinstance(error, click.ClickException):
        say(_one_line(error.format_message()))
        return 2
    if isinstance(error, UserError):
        say(_one_line(error.flags or str(error)))
        return 2
    if isinstance(error, OSError) and error.errno in (*FULL, errno.EROFS):
        say(str(cannot_write(os.fsdecode(error.filename or "The output"), error)))
        return 2
    if isinstance(error, OSError) and error.filename is not None:
        say(f"{os.fsdecode(error.filename)}: {(error.strerror or str(error)).lower()}")
        return 2
    log = _write_log(error)
    where = f"the details are in {log}" if log else "run it again with --debug for the details"
    if isinstance(error, MemoryError):
        say(f"the machine ran out of memory: lower -ub or -c, or set --memory ({where})")
    else:
        what = f"{type(error).__name__}: {_one_line(str(error))[:300]}"
        say(f"internal error ({what}); {where}")
    return 1


def _write_log(error: Exception) -> str | None:
    try:
        handle, name = tempfile.mkstemp(prefix="anytune-error-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"anytune {anytune.__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n")
            traceback.print_exception(error, file=file)
        return name
    except OSError:
        return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def say(message: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"anytune: {message}", err=True)
