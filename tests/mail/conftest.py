"""The command line inside this process, as the other commands' tests have it."""

from tests.cli.conftest import cli  # noqa: F401
