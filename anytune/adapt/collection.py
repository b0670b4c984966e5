"""Solving apart from collecting: an adapter from a file of sums (see recording.py) that another machine made."""

from __future__ import annotations

import io
import json
import os
import zipfile
from typing import Any

import numpy as np

from anytune.adapt.closed import Equations, Pair, ridge
from anytune.adapt.fit import Recipe
from anytune.adapt.ranks import kind_of, spread
from anytune.adapt.recording import ABOUT, FORMAT
from anytune.adapter.adapter import Adapter
from anytune.engine.algebra import HostAlgebra
from anytune.errors import UserError


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
        recipe = Recipe(rank, share, ranks=spread(found["costs"], rank) if found.get("costs") else None)
        pairs: dict[str, Pair] = {}
        for number, group in enumerate(found["groups"]):
            widths = [found["widths"][name] for name in group["names"]]
            ranks = [recipe.rank_of(name) for name in group["names"]]
            gram, cross = (_array(path, file, f"{number}.{part}") for part in ("gram", "cross"))
            _check(path, gram, cross, sum(widths))
            equations = Equations(la, la.double(gram), la.double(cross))
            priors = [_array(path, file, f"{number}.prior{place}") for place in range(len(widths))]
            known = None if any(prior is None for prior in priors) else priors
            pairs |= dict(zip(group["names"], ridge(equations, widths, ranks, share, known)))
            tell("layers", number + 1, len(found["groups"]), "")
    most = max(len(pair.a) for pair in pairs.values())
    tensors, scale = {}, most if alpha is None else alpha
    for name, pair in pairs.items():
        missing = most - len(pair.a)
        tensors[name] = (
            np.pad(pair.a, ((0, missing), (0, 0))),
            np.pad(pair.b, ((0, 0), (0, missing))) * np.float32(most / scale),
        )
    return Adapter(
        tensors,
        most,
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
            f"{path} is not a readable statistics file ({error}): create one with `anytune adapt collect`."
        ) from None


def _about(path: str | os.PathLike, file: zipfile.ZipFile) -> dict[str, Any]:
    raw = _array(path, file, ABOUT)
    try:
        found = json.loads(bytes(raw).decode()) if raw is not None else {}
        assert found["format"] == FORMAT and 1 <= int(found["rank"]) <= 4096 and float(found["ridge"]) >= 0
        assert all(isinstance(found["widths"][name], int) for group in found["groups"] for name in group["names"])
        assert isinstance(found["architecture"], str) and found["groups"]
        kinds = {kind_of(name) for group in found["groups"] for name in group["names"]}
        assert all(1 <= int(found["costs"][kind]) for kind in kinds) if found.get("costs") else True
    except (ValueError, LookupError, TypeError, AssertionError, AttributeError):
        raise UserError(
            f"{path} is not a statistics file of this version: create one with `anytune adapt collect`."
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
        raise UserError(f"{path}: {name} contains NaN or infinity; collect it again.")
    return values


def _check(path: str | os.PathLike, gram: np.ndarray | None, cross: np.ndarray | None, outputs: int) -> None:
    good = gram is not None and cross is not None and gram.ndim == cross.ndim == 2
    if not (good and gram.shape == (len(cross), len(cross)) and cross.shape[1] == outputs):
        raise UserError(f"{path}: a group's sums are inconsistent; the file is damaged.")
