"""anytune data build: training data from files that are none yet."""

from __future__ import annotations

import click

from anytune.cli.data_build_email import email
from anytune.cli.data_build_pubmedqa import pubmedqa


@click.group()
def build() -> None:
    """Build training data from other files."""


build.add_command(email)
build.add_command(pubmedqa)
