"""The entry point: names the commands and turns every ending into a sentence and an exit code.

0 done; 1 a check failed or something crashed (the log's path is printed); 2 the user can fix it; 130 Ctrl-C, or
another request to stop.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn

import click

import anytune
from anytune.cli.command import DEBUG, OrderedGroup, debug_wanted, set_debug
from anytune.cli.ending import explain, say
from anytune.signals import STOP, handled, interrupt

COMMANDS = {  # name: the module that defines it, subcommands included; in the order of --help
    "models": "models",
    "pull": "pull",
    "info": "info",
    "data": "data",
    "train": "train",
    "finetune": "finetune",
    "adapt": "adapt_commands",
    "monitor": "monitor",
    "runs": "runs",
    "generate": "generate",
    "chat": "chat",
    "verify": "verify",
    "convert": "convert",
    "quantize": "quantize",
    "imatrix": "imatrix",
    "perplexity": "perplexity",
    "embed": "embed",
    "evaluate": "evaluate_biomed",
    "export": "export_card",
    "serve": "serve",
    "studio": "studio",
    "bench": "bench",
    "fpga": "fpga",
    "doctor": "doctor",
    "completion": "completion",
}


class _Commands(Mapping):
    """COMMANDS, each imported when it is asked for: running one does not import the others."""

    def __getitem__(self, name: str) -> click.Command:
        return getattr(importlib.import_module(f"anytune.cli.{COMMANDS[name]}"), name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


@click.group(
    cls=OrderedGroup,
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Each command has its own --help with an example.  Start with: anytune pull smollm2-135m",
)
@click.version_option(anytune.__version__, prog_name="anytune", message="%(prog)s %(version)s")
def cli() -> None:
    """Train the exact GGUF you run, on whatever device you have, and prove the result in llama.cpp."""


cli.params.append(DEBUG)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; a traceback is shown only if --debug or ANYTUNE_DEBUG=1 asks for it."""
    try:
        code = run(sys.argv[1:] if args is None else list(args))
    except KeyboardInterrupt:  # pressed again while the first was handled
        code = 130
    if code == 130:  # pressed again while threads end, Python would print a traceback of that wait
        for number in STOP:
            signal.signal(number, lambda *_: os._exit(130))
    gc.freeze()  # the interpreter collects three times at exit: in hundreds of modules, for nothing
    sys.exit(code)


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
        with handled(interrupt):  # whatever asks it to stop, a command cleans up
            result = cli.main(list(args), prog_name="anytune", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as exit_:
        return exit_.exit_code
    except (click.Abort, KeyboardInterrupt):
        say("interrupted")
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug_wanted():
            raise
        return explain(error)
