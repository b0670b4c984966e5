"""anytune adapt, with all its commands in the order of --help."""

from __future__ import annotations

from anytune.cli import adapt_collect, adapt_compress, adapt_distill, adapt_merge
from anytune.cli.adapt import adapt

COMMANDS = (
    adapt_distill.distill,
    adapt_compress.compress,
    adapt_compress.repair,
    adapt_merge.merge,
    adapt_collect.collect,
    adapt_collect.solve,
)
adapt.commands = {command.name: command for command in COMMANDS}
