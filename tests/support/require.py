"""What a test needs from outside: missing means FAIL where it was promised, and skip elsewhere."""

import importlib
import os
from pathlib import Path

import pytest


def need(what: str | Path):
    """Return the module named `what` (or the path); fail or skip as ANYTUNE_REQUIRE_PEERS says."""
    if isinstance(what, Path):
        if what.exists():
            return what
        problem = f"{what} does not exist"
    else:
        try:
            return importlib.import_module(what)
        except ImportError as error:
            problem = f"{what} cannot be imported: {error}"
    if os.environ.get("ANYTUNE_REQUIRE_PEERS") == "1":
        pytest.fail(problem)
    pytest.skip(problem, allow_module_level=True)


def need_bf16_products() -> None:
    """Skip where the processor has no bf16 products; a missing Numba is what need() says."""
    need("numba")
    from anytune.engine.cpu_bf16 import missing

    if (problem := missing()) is not None:
        pytest.skip(problem, allow_module_level=True)
