"""Collecting and solving apart: sums over tokens in a file on one machine, an adapter from them on another.

The file is a .npz: for each group of products G and C in float32, priors, and `about`, JSON with what the adapter is
for. No text, token or single activation of the data is in it, and no weight of the model.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapt.closed import Equations, Pair, ridge
from anytune.adapter.adapter import Adapter
from anytune.engine.algebra import HostAlgebra
from anytune.errors import UserError
from anytune.files import atomic_write

if TYPE_CHECKING:
    from anytune.model import Model

ABOUT, FORMAT = "about", 1


class Statistics:
    """A file of sums under way: add() is what fit() calls with each group's equations."""

    def __init__(self, path: str | os.PathLike, about: dict[str, Any]):
        self.path, self.about, self.groups = Path(path), dict(about), []
        self._held = atomic_write(self.path)

    def __enter__(self) -> Statistics:
        self._zip = zipfile.ZipFile(self._held.__enter__(), "w", zipfile.ZIP_STORED)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                about = {**self.about, "format": FORMAT, "groups": self.groups}
                self._write(ABOUT, np.frombuffer(json.dumps(about).encode(), np.uint8))
            self._zip.close()
        except BaseException as problem:
            self._held.__exit__(type(problem), problem, None)
            raise
        self._held.__exit__(kind, error, trace)

    def add(self, names: Sequence[str], equations: Equations, priors: Sequence[Any] | None) -> None:
        la, number = equations.algebra, len(self.groups)
        for part in ("gram", "cross"):
            self._write(f"{number}.{part}", np.asarray(la.host(getattr(equations, part)), np.float32))
        for place, prior in enumerate(priors or ()):
            self._write(f"{number}.prior{place}", np.asarray(la.host(prior), np.float32))
        self.groups.append({"names": list(names)})

    def _write(self, name: str, values: np.ndarray) -> None:
        with self._zip.open(f"{name}.npy", "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)


def about(model: Model, widths: dict[str, int], **more: Any) -> dict[str, Any]:
    """What an adapter from a file of sums must know. widths: outputs of each tensor."""
    return {
        "architecture": model.config.architecture,
        "base_name": model.name,
        "base_sha256": model.gguf.sha256(),
        "widths": widths,
        **more,
    }


def solve(
    path: str | os.PathLike,
    *,
    rank: int | None = None,
    ridge_share: float | None = None,
    alpha: float | None = None,
    tell: Any = lambda *_: None,
) -> tuple[Adapter, dict[str, Any]]:
    """(the adapter of a file of sums, what the file says of itself). rank, ridge_share: in place of those that it was
    collected with; the sums of later layers were made with these, so that others are an approximation.

    UserError for a file that is damaged or no such file.
    """
    la = HostAlgebra()
    with _opened(path) as file:
        found = _about(path, file)
        rank = found["rank"] if rank is None else rank
        share = found["ridge"] if ridge_share is None else ridge_share
        pairs: dict[str, Pair] = {}
        for number, group in enumerate(found["groups"]):
            widths = [found["widths"][name] for name in group["names"]]
            gram, cross = (_array(path, file, f"{number}.{part}") for part in ("gram", "cross"))
            _check(path, gram, cross, sum(widths))
            equations = Equations(la, la.double(gram), la.double(cross))
            priors = [_array(path, file, f"{number}.prior{place}") for place in range(len(widths))]
            known = None if any(prior is None for prior in priors) else priors
            pairs |= dict(zip(group["names"], ridge(equations, widths, rank, share, known)))
            tell("layers", number + 1, len(found["groups"]), "")
    tensors, scale = {}, rank if alpha is None else alpha
    for name, pair in pairs.items():
        missing = rank - len(pair.a)
        tensors[name] = (
            np.pad(pair.a, ((0, missing), (0, 0))),
            np.pad(pair.b, ((0, 0), (0, missing))) * np.float32(rank / scale),
        )
    return Adapter(
        tensors,
        rank,
        float(scale),
        False,
        found["architecture"],
        found["base_name"],
        found["base_sha256"],
        found.get("template"),
    ), {**found, "rank": rank, "ridge": share}


def _opened(path: str | os.PathLike) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is no file of statistics that can be read ({error}): make it with `anytune adapt collect`."
        ) from None


def _about(path: str | os.PathLike, file: zipfile.ZipFile) -> dict[str, Any]:
    raw = _array(path, file, ABOUT)
    try:
        found = json.loads(bytes(raw).decode()) if raw is not None else {}
        assert found["format"] == FORMAT and 1 <= int(found["rank"]) <= 4096 and float(found["ridge"]) >= 0
        assert all(isinstance(found["widths"][name], int) for group in found["groups"] for name in group["names"])
        assert isinstance(found["architecture"], str) and found["groups"]
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError):
        raise UserError(
            f"{path} is no file of statistics of this version: make it with `anytune adapt collect`."
        ) from None
    return found


def _array(path: str | os.PathLike, file: zipfile.ZipFile, name: str) -> np.ndarray | None:
    """An array of the file, None if it has no such. Its size is that of its entry, which is not compressed."""
    try:
        info = file.getinfo(f"{name}.npy")
    except KeyError:
        return None
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > os.path.getsize(path):
        raise UserError(f"{path}: {name} is larger than the file; it is damaged.")
    try:
        values = np.lib.format.read_array(io.BytesIO(file.read(info)), allow_pickle=False)
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"{path}: {name} is damaged ({error}); collect it again.") from None
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UserError(f"{path}: {name} holds NaN or infinity; collect it again.")
    return values


def _check(path: str | os.PathLike, gram: np.ndarray | None, cross: np.ndarray | None, outputs: int) -> None:
    good = gram is not None and cross is not None and gram.ndim == cross.ndim == 2
    if not (good and gram.shape == (len(cross), len(cross)) and cross.shape[1] == outputs):
        raise UserError(f"{path}: a group's sums do not fit together; it is damaged.")
