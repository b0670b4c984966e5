"""A command that knows --debug, renamed flags, sections of --help and an example."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import click

from anytune.cli.completing import complete
from anytune.cli.say import note

_debug = False


def debug_wanted() -> bool:
    """Whether the command line that runs has --debug (or ANYTUNE_DEBUG=1 is in the environment)."""
    return _debug or os.environ.get("ANYTUNE_DEBUG", "") not in ("", "0")


def set_debug(value: bool) -> None:
    global _debug
    _debug = value


def _take_debug(_context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        set_debug(True)


DEBUG = click.Option(
    ["--debug"],
    is_flag=True,
    hidden=True,
    expose_value=False,
    is_eager=True,
    callback=_take_debug,
    help="Show tracebacks.",
)
ADVANCED = "Advanced"
ADVANCED_OPTIONS = ("tf32", "max_binding", "ngl", "flash_attn")  # rarely needed, or accepted for other programs' sake


ELSEWHERE = {  # flags of peft's, transformers' and other trainers' scripts, and of other servers -> ours
    "--r": "--lora-rank",
    "--lora-r": "--lora-rank",
    "--target-modules": "--lora-modules",
    "--lora-target": "--lora-modules",
    "--lora-target-modules": "--lora-modules",
    "--num-train-epochs": "--num-epochs",
    "--max-length": "--ctx-size",
    "--max-seq-length": "--ctx-size",
    "--cutoff-len": "--ctx-size",
    "--lr-scheduler-type": "--lr-scheduler",
    "--adam-epsilon": "--adam-eps",
    "--save-steps": "--checkpoint-save-steps",
    "--save-total-limit": "--keep-checkpoints",
    "--eval-steps": "--val-every",
    "--resume-from-checkpoint": "--resume-from",
    "--output-dir": "--run-dir",
    "--max-tokens": "--predict",
    "--max-new-tokens": "--predict",
    "--adapter": "--lora",
}


class OrderedGroup(click.Group):
    """Lists its commands in the order in which they are added, not by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class Command(click.Command):
    """A command that also knows --debug and shows its example under --help.

    sections: parameter name -> title under which --help shows it ("Options" for the others). renamed: flags that were
    called otherwise in versions before -> their names now; the old ones work, with a notice.
    """

    def __init__(
        self,
        *args: Any,
        example: str = "",
        sections: dict[str, str] | None = None,
        renamed: dict[str, str] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.example, self.sections = example, (sections or {}) | dict.fromkeys(ADVANCED_OPTIONS, ADVANCED)
        self.renamed = renamed or {}
        self.params.append(DEBUG)
        for param in self.params:
            if isinstance(param.type, click.types.StringParamType) and param._custom_shell_complete is None:
                param._custom_shell_complete = _completed

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [self._renamed(arg) for arg in args] if self.renamed else args)

    def _renamed(self, arg: str) -> str:
        flag, equals, value = arg.partition("=")
        if flag not in self.renamed:
            return arg
        note(f"{flag} is now {self.renamed[flag]}")
        return self.renamed[flag] + equals + value

    def make_parser(self, ctx: click.Context) -> Any:
        """click's own, but -st is never -s with the value t: a letter is followed by a number, or by nothing."""
        parser = super().make_parser(ctx)
        short, long = parser._match_short_opt, parser._match_long_opt

        def translated(arg: str, value: str | None, state: Any) -> None:
            long(self._ours(arg, parser._long_opt), value, state)

        def strict(arg: str, state: Any) -> None:
            if len(arg) > 2 and not _NUMBER.fullmatch(arg[2:]):
                raise click.NoSuchOption(arg, possibilities=_close(arg, parser._long_opt), ctx=ctx)
            short(arg, state)

        parser._match_short_opt, parser._match_long_opt = strict, translated
        return parser

    def _ours(self, flag: str, known: Mapping[str, Any]) -> str:
        """The flag itself, or the one that means here what other programs call `flag`."""
        if flag in known:
            return flag
        ours = flag.replace("_", "-")
        ours = ours if ours in known else ELSEWHERE.get(ours, flag)
        if ours not in known:
            return flag
        note(f"{flag} is {ours} here")
        return ours

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if (record := param.get_help_record(ctx)) is not None:
                rows.setdefault(self.sections.get(param.name or "", "Options"), []).append(record)
        for title, records in sorted(rows.items(), key=lambda row: row[0] == ADVANCED):  # which comes last
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            with formatter.section("Example"):
                for line in self.example.strip().splitlines():
                    formatter.write(f"  {line.strip()}\n" if line.strip() else "\n")


def _completed(_ctx: click.Context, param: click.Parameter, incomplete: str) -> list:
    return complete(param, incomplete)


_NUMBER = re.compile(r"=?-?[0-9.]+(e-?[0-9]+)?")


def _close(arg: str, known: Iterable[str]) -> list[str] | None:
    return difflib.get_close_matches(arg, known) or None
