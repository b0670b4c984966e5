"""What an interrupted fit leaves: the pairs of the layers that are done, and what they are of.

The streams between layers are not kept: running the finished layers again gives the same bytes, and is quick.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anytune.adapt.closed import Pair
from anytune.errors import UserError
from anytune.files import cannot_write
from anytune.train.tensors import Broken, read_tensors, write_tensors

IDENTITY, EXTRA = "identity", "extra:"


def partial_path(output: str | os.PathLike) -> Path:
    return Path(output).with_name(f"{Path(output).name}.partial")


class Partial:
    """The file beside an output. identity: what must be equal for the result to be the same bytes."""

    def __init__(self, output: str | os.PathLike, identity: Mapping[str, Any]):
        self.path = partial_path(output)
        self.identity = json.loads(json.dumps(identity, sort_keys=True, default=str))
        self.pairs: dict[str, Pair] = {}  # what load() found
        self.extra: dict[str, np.ndarray] = {}  # what else is done: kept by save(), found by load()

    def save(self, pairs: Mapping[str, Pair]) -> None:
        """Replace the file, whole or not at all. UserError if it cannot be written."""
        tensors: dict[str, np.ndarray] = {
            IDENTITY: np.frombuffer(json.dumps(self.identity, sort_keys=True).encode(), np.uint8)
        }
        tensors |= {f"{EXTRA}{name}": values for name, values in self.extra.items()}
        for name, pair in pairs.items():
            tensors |= {f"{name}.a": pair.a, f"{name}.b": pair.b, f"{name}.worth": pair.worth}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.unlink(missing_ok=True)
        try:
            write_tensors(temporary, tensors)
            os.replace(temporary, self.path)
        except OSError as error:
            raise cannot_write(self.path, error) from None
        finally:
            temporary.unlink(missing_ok=True)

    def load(self) -> dict[str, Pair]:
        """The pairs that are done; {} if there is no such file. UserError if it is of another job, or damaged."""
        if not self.path.exists():
            return {}
        try:
            tensors = read_tensors(self.path)
            found = json.loads(bytes(tensors[IDENTITY]).decode())
            names = [key.removesuffix(".a") for key in tensors if key.endswith(".a") and not key.startswith(EXTRA)]
            self.extra = {key.removeprefix(EXTRA): np.array(tensors[key]) for key in tensors if key.startswith(EXTRA)}
            pairs = {
                name: Pair(*(np.array(tensors[f"{name}.{part}"]) for part in ("a", "b", "worth"))) for name in names
            }
        except (Broken, OSError, KeyError, ValueError) as error:
            raise UserError(f"{self.path} is damaged ({error}): remove it, and start without --resume.") from None
        if found != self.identity:
            other = sorted(key for key in {*found, *self.identity} if found.get(key) != self.identity.get(key))
            raise UserError(
                f"{self.path} belongs to another run ({', '.join(other)} differ): use the same command, or start "
                "without --resume."
            )
        for name, pair in pairs.items():
            if pair.a.dtype != np.float32 or pair.a.ndim != 2 or pair.b.shape[1:] != pair.a.shape[:1]:
                raise UserError(f"{self.path} is damaged (the pair of {name}): remove it, and start without --resume.")
        self.pairs = pairs
        return pairs

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
