"""The two small real models, from the cache that `anytune pull` fills."""

import functools
from pathlib import Path


@functools.cache
def smollm2() -> Path:
    from anytune.hub.pull import pull

    return pull("smollm2-135m")


@functools.cache
def gemma3() -> Path:
    from anytune.hub.pull import pull

    return pull("gemma3-270m")
