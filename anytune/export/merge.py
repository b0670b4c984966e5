"""Merging: base and adapter as one GGUF file, in a type that is chosen by what rounding costs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapter.adapter import Adapter
from anytune.export.adapters import merged_rows
from anytune.export.chat import turn_end
from anytune.export.distance import Served, weight_error
from anytune.files import check_output, copy, is_special, sync_folder
from anytune.gguf import GGUF
from anytune.quantization.filetypes import file_type
from anytune.quantization.rewrite import FLOATS, rewrite
from anytune.text.served import template_changes

if TYPE_CHECKING:
    from anytune.model import Model

SAME = "same"  # every tensor keeps the type that it has
FINER = ("Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16", "F16", "F32")  # what is tried beside it

Progress = Callable[[str], Callable[[int, int], None]]


@dataclass(frozen=True)
class Merge:
    """What is merged and how files are written.

    metadata: further changes of metadata. open: path -> Model, for measuring. progress: called with the name of each
    piece of work, gives what is called with (done, of how many).
    """

    base: GGUF
    adapter: Adapter | None
    open: Callable[[Path], Model]
    overrides: Sequence[tuple[str, str]] = ()
    imatrix: str | os.PathLike | None = None
    threads: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    progress: Progress = lambda _: lambda *_: None

    def write(self, target: str | os.PathLike | None, kind: str) -> dict[str, Any]:
        """Write the merged file in `kind`, or tell what it would be (target None). Returns rewrite's facts."""
        values = merged_rows(self.base, self.adapter) if self.adapter is not None else {}
        # a finer type for what is rounded already would cost bytes and a little accuracy
        settled = {name for name, t in self.base.tensors.items() if name not in values and t.type.name not in FLOATS}
        facts = rewrite(
            self.base,
            target,
            None if kind == SAME else kind,
            values=values,
            metadata=self._metadata(),
            overrides=self.overrides,
            settled=settled,
            imatrix=self.imatrix,
            threads=self.threads,
            progress=self.progress(f"merge {kind}"),
        )
        return {**facts, "type": kind}

    def _metadata(self) -> dict[str, Any]:
        trained = self.adapter.chat_template if self.adapter is not None else None
        changes = template_changes(self.base.metadata, trained) | self.metadata
        return changes | turn_end(self.base, changes)

    def sizes(self, kinds: Sequence[str]) -> list[tuple[int, str]]:
        """(bytes, kind) of each, the smallest first; kinds that come out alike are named once."""
        found: dict[tuple[str, ...], tuple[int, str]] = {}
        for kind in kinds:
            facts = self.write(None, kind)
            found.setdefault(tuple(t["to"] for t in facts["tensors"]), (facts["bytes_after"], kind))
        return sorted(found.values(), key=lambda pair: (pair[0], pair[1] != SAME))

    def measure(self, path: Path, kind: str, served: Served) -> dict[str, Any]:
        """Facts about a merged file: its size, what happened to the weights, and its distance to the served pair."""
        with GGUF.open(path) as merged:
            facts = {
                "type": kind,
                "bytes": path.stat().st_size,
                **weight_error(self.base, self.adapter, merged, self.progress(f"weights of {kind}")),
            }
        model = self.open(path)
        try:
            return facts | served.distance(model)
        finally:
            model.gguf.close()

    def choose(
        self,
        target: Path | None,
        kinds: Sequence[str],
        served: Served,
        limit: float | None,
        tell: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> list[dict[str, Any]]:
        """Write and measure `kinds` from the smallest on; the first with KL <= limit becomes `target` and ends it.

        If none is within the limit, the nearest becomes it. limit None, or no target: all are measured. tell: called
        with the facts of each. Files that are not taken are removed, also by Ctrl-C. Returns the facts of all, with
        "taken" true for the one.
        """
        rows: list[dict[str, Any]] = []
        into = target is not None and is_special(target)  # a device, say, into which the file is copied
        place = target.parent if target is not None and not into else None
        check_output(target, True, [("the model", self.base.path), ("the importance file", self.imatrix)])
        with tempfile.TemporaryDirectory(prefix=".anytune-merge-", dir=place) as folder:
            best: Path | None = None
            for _, kind in self.sizes(kinds):
                path = Path(folder) / f"{kind}.gguf"
                self.write(path, kind)
                rows.append({**self.measure(path, kind, served), "taken": False})
                tell(rows[-1])
                if target is None or rows[-1]["kl"] > min((row["kl"] for row in rows[:-1]), default=np.inf):
                    path.unlink()
                else:
                    if best is not None:
                        best.unlink()
                    best = path
                if limit is not None and rows[-1]["kl"] <= limit:
                    break
            if best is not None and target is not None:
                if into:
                    copy(best, target)
                else:
                    os.replace(best, target)
                    sync_folder(target.parent)
                next(row for row in rows if row["type"] == best.stem)["taken"] = True
        return rows


def candidates(base: GGUF, kinds: Sequence[str] | None = None) -> list[str]:
    """Types to choose from: the file's own and finer ones, or the given ones. UserError for unknown names."""
    if kinds:
        return [kind if kind == SAME else file_type(kind).name for kind in kinds]
    own = sum(t.nbytes for t in base.tensors.values())
    return [SAME, *(kind for kind in FINER if rewrite(base, None, kind)["bytes_after"] > own)]
