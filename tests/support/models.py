"""The two small real models, from the cache that `anytune pull` fills."""

import functools
import os
from pathlib import Path

import pytest


@functools.cache
def smollm2() -> Path:
    return _pulled("smollm2-135m")


@functools.cache
def gemma3() -> Path:
    return _pulled("gemma3-270m")


def _pulled(name: str) -> Path:
    """A machine without a network skips what needs the model, or fails as require.need() does."""
    from anytune.errors import UserError
    from anytune.hub.pull import pull

    try:
        return pull(name)
    except UserError as error:
        if os.environ.get("ANYTUNE_REQUIRE_PEERS") == "1":
            raise
        pytest.skip(str(error))
