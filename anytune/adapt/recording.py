"""Sums over tokens on their way into a file: a group at a time into a folder beside it, packed when all are there.

The file is a .npz: for each group of products G and C in float32, priors, and `about`, JSON with what the adapter is
for. No text, token or single activation of the data is in it, and no weight of the model.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapt.closed import Equations
from anytune.adapt.fit import Recipe
from anytune.adapt.ranks import costs
from anytune.errors import UserError
from anytune.files import atomic_write

if TYPE_CHECKING:
    from anytune.model import Model

ABOUT, FORMAT = "about", 1


def about(model: Model, recipe: Recipe, template: str | None) -> dict[str, Any]:
    """What an adapter that is solved from a file of sums must know. widths: outputs of each tensor; costs: what ranks
    are spread by, if they are."""
    widths = {
        name: info.shape[0]
        for name, info in model.gguf.tensors.items()
        if name.startswith("blk.") and len(info.shape) == 2
    }
    return {
        "architecture": model.config.architecture,
        "base_name": model.name,
        "base_sha256": model.gguf.sha256(),
        "widths": widths,
        "rank": recipe.rank,
        "costs": None if recipe.ranks is None else costs(model),
        "ridge": recipe.ridge,
        "collected_rank": recipe.rank,
        "collected_ridge": recipe.ridge,
        "template": template,
    }


class Recorder:
    """A file of sums under way, at `output`. add() is what fit() calls with each group's equations; groups lie in a
    folder beside the output until pack(), so that an interrupted run can be taken up (`resume`)."""

    def __init__(self, output: str | os.PathLike, resume: bool = False):
        self.path = Path(output)
        self.folder = self.path.with_name(f"{self.path.name}.sums")
        self.resume = resume

    def __enter__(self) -> Recorder:
        if self.folder.is_file():
            raise UserError(
                f"{self.folder} is a file, but sums are kept there while they are collected: move the file."
            )
        if not self.resume:
            self.remove()
        self.folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:  # else --resume may go on from them
            self.remove()

    def add(self, place: int, equations: Equations, priors: Sequence[Any] | None) -> None:
        """Write the sums of group `place` of Config.products(). Raises OSError."""
        la = equations.algebra
        gram, cross = equations.gram, equations.cross
        if gram is None:
            z = la.double(equations.z)
            gram, cross = z.T @ z, z.T @ la.double(equations.r)
        with atomic_write(self._group(place)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as pack:
            for name, values in (
                ("gram", gram),
                ("cross", cross),
                *((f"prior{i}", prior) for i, prior in enumerate(priors or ())),
            ):
                _write(pack, name, np.asarray(la.host(values), np.float32))

    def pack(self, products: list[list[str]], about: dict[str, Any]) -> None:
        """Make the file of all groups' sums, unless a run that is taken up made it. UserError where one is missing.

        products: as Config.products() has them.
        """
        places = range(len(products))
        if self.resume and self.path.exists() and not any(self._group(place).exists() for place in places):
            return
        groups = [{"names": names} for names in products]
        with atomic_write(self.path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as pack:
            for place in places:
                if not self._group(place).exists():
                    raise UserError(
                        f"The sums of {products[place][0]} are no longer in {self.folder}: start without --resume."
                    )
                with zipfile.ZipFile(self._group(place)) as group:
                    for name in group.namelist():
                        with pack.open(f"{place}.{name}", "w", force_zip64=True) as out:
                            out.write(group.read(name))
            text = json.dumps({**about, "format": FORMAT, "groups": groups})
            _write(pack, ABOUT, np.frombuffer(text.encode(), np.uint8))

    def remove(self) -> None:
        """Take the folder away with the groups that are in it."""
        for path in self.folder.glob("*.npz"):
            path.unlink()
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _group(self, place: int) -> Path:
        return self.folder / f"{place}.npz"


def _write(pack: zipfile.ZipFile, name: str, values: np.ndarray) -> None:
    with pack.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)
