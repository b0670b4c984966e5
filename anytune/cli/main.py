"""The entry point: gathers the commands and turns every ending into a sentence and an exit code.

0 done; 1 a check failed or something broke (the log's place is printed); 2 the user can mend it; 130 Ctrl-C.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

import anytune
from anytune.cli import (
    adapt_commands,
    bench,
    chat,
    completion,
    convert,
    data,
    doctor,
    embed,
    evaluate_biomed,
    export_card,
    finetune,
    fpga,
    generate,
    imatrix,
    info,
    models,
    monitor,
    perplexity,
    pull,
    quantize,
    runs,
    serve,
    studio,
    train,
    verify,
)
from anytune.cli.command import DEBUG, debug_wanted, set_debug
from anytune.errors import UserError

_NO_PLACE = (errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC))
COMMANDS = (  # in the order in which they are met
    models.models,
    pull.pull,
    info.info,
    data.data,
    train.train,
    finetune.finetune,
    adapt_commands.adapt,
    monitor.monitor,
    runs.runs,
    generate.generate,
    chat.chat,
    verify.verify,
    convert.convert,
    quantize.quantize,
    imatrix.imatrix,
    perplexity.perplexity,
    embed.embed,
    evaluate_biomed.evaluate,
    export_card.export,
    serve.serve,
    studio.studio,
    bench.bench,
    fpga.fpga,
    doctor.doctor,
    completion.completion,
)


class _Root(click.Group):
    """Lists the commands in the order in which they are met, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(
    cls=_Root,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command has its own --help with an example.  Start with: anytune pull smollm2-135m",
)
@click.version_option(anytune.__version__, prog_name="anytune", message="%(prog)s %(version)s")
def cli() -> None:
    """Train the exact GGUF you run, on whatever device you have, and prove the result in llama.cpp."""


cli.params.append(DEBUG)
for _command in COMMANDS:
    cli.add_command(_command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; a traceback is shown only if --debug or ANYTUNE_DEBUG=1 asks for it."""
    sys.exit(run(sys.argv[1:] if args is None else list(args)))


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code (see the module's text)."""
    try:
        code = _run(args)
        sys.stdout.flush()
        return code
    except (BrokenPipeError, ValueError) as error:
        if isinstance(error, ValueError) and not sys.stdout.closed:
            raise
        # The reader (head, less) has gone: point stdout elsewhere, or Python complains again while it exits.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(args: Sequence[str]) -> int:
    set_debug(False)
    try:
        result = cli.main(list(args), prog_name="anytune", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except (click.Abort, KeyboardInterrupt):
        _say("interrupted")
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug_wanted():
            raise
        return _explain(error)


def _explain(error: Exception) -> int:
    """Print one sentence about `error`; returns the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # `anytune` alone; click 8.1 has no such class
        click.echo(error.ctx.get_help(), err=True)
        return 2
    if isinstance(error, click.UsageError):
        where = error.ctx.command_path if error.ctx else "anytune"
        _say(f"{_one_line(error.format_message())}  (see: {where} --help)")
        return 2
    if isinstance(error, click.ClickException):
        _say(_one_line(error.format_message()))
        return 2
    if isinstance(error, UserError):
        _say(_one_line(error.flags or str(error)))
        return 2
    if isinstance(error, OSError) and error.filename is not None:
        _say(f"{os.fsdecode(error.filename)}: {(error.strerror or str(error)).lower()}")
        return 2
    if isinstance(error, OSError) and error.errno in _NO_PLACE:
        _say(f"what is written has no place: {(error.strerror or str(error)).lower()}")
        return 2
    log = _write_log(error)
    where = f"the details are in {log}" if log else "run it again with --debug for the details"
    if isinstance(error, MemoryError):
        _say(f"the machine ran out of memory: lower -ub or -c, or set --memory ({where})")
    else:
        what = f"{type(error).__name__}: {_one_line(str(error))[:300]}"
        _say(f"something broke that is not your fault ({what}); {where}")
    return 1


def _write_log(error: Exception) -> str | None:
    import tempfile
    import traceback

    try:
        handle, name = tempfile.mkstemp(prefix="anytune-error-", suffix=".log")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(f"anytune {anytune.__version__}, Python {sys.version}\n{' '.join(sys.argv)}\n\n")
            traceback.print_exception(error, file=file)
        return name
    except OSError:
        return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _say(message: str) -> None:
    with contextlib.suppress(OSError):
        click.echo(f"anytune: {message}", err=True)
