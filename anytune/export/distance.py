"""How far a file is from the pair that was trained, base and adapter: in its weights, and in what it says.

Rounding a merged weight to few bits can lose what training changed: a weight lies on its block's grid already, and a
small change rounds back. So three numbers: the error relative to the weights, how much of the change is kept, and the
KL divergence of next-token distributions on a text.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from anytune.adapter.adapter import Adapter
from anytune.adapter.scaled import before_scale
from anytune.errors import UserError
from anytune.export.adapters import change_of
from anytune.files import check_room
from anytune.gguf import GGUF
from anytune.likelihood.baseline import row_length, scored
from anytune.likelihood.perplexity import perplexity
from anytune.quantization.rewrite import PIECE, rows_of
from anytune.llamacpp.verify import TEXT

if TYPE_CHECKING:
    from anytune.model import Model

LEAST = 16  # tokens of a window that are worth measuring


def weight_error(
    base: GGUF, adapter: Adapter | None, merged: GGUF, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Facts about the matrices of `merged` against W + scale · B·A.

    error: |W' - W*| / |W*| (Frobenius, over all matrices that were rewritten); kept: the share of the adapter's
    change D that W' - W has in its direction, <W' - W, D> / <D, D> over adapted matrices (1: all; None without an
    adapter); worst: the matrix with the largest error.
    """
    pairs = adapter.tensors if adapter is not None else {}
    names = [name for name, t in base.tensors.items() if name in pairs or merged.tensors[name].type.name != t.type.name]
    total, done = sum(base.tensors[name].n_elements for name in names), 0
    lost = size = along = change = 0.0
    worst, worst_error = None, -1.0
    for name in names:
        t = base.tensors[name]
        step = max(1, PIECE // t.shape[-1])
        mine = np.zeros(2)
        for lo in range(0, t.rows, step):
            hi = min(lo + step, t.rows)
            before, after = rows_of(base, name, lo, hi), rows_of(merged, name, lo, hi)
            delta = np.float32(0)
            if name in pairs:
                a, b = pairs[name]
                delta = change_of(a, np.float32(adapter.scale) * before_scale(base, name, b), lo, hi)
                along += float(np.vdot(after - before, delta))
                change += float(np.vdot(delta, delta))
            wanted = before + delta
            mine += np.vdot(after - wanted, after - wanted), np.vdot(wanted, wanted)
            done += before.size
            if progress is not None:
                progress(done, total)
        error = float(np.sqrt(mine[0] / max(mine[1], 1e-300)))
        if error > worst_error:
            worst, worst_error = name, error
        lost, size = lost + float(mine[0]), size + float(mine[1])
    return {
        "error": float(np.sqrt(lost / max(size, 1e-300))),
        "kept": along / change if change else None,
        "worst": worst,
        "worst_error": max(worst_error, 0.0),
    }


class Served:
    """The served pair's next-token distributions on a text, kept in a temporary file to compare files with.

    text: None takes a short built-in one. chunks: windows at most. Raises UserError for a text that is too short.
    """

    def __init__(
        self,
        model: Model,
        adapter: Adapter | None,
        text: str | None = None,
        *,
        context: int | None = None,
        chunks: int | None = None,
    ) -> None:
        self.text = TEXT if text is None else text
        tokens = len(model.tokenize(self.text))
        if context is None:
            context = min(512, model.config.context, tokens // 2)  # two windows at least
        if context < min(LEAST, model.config.context):
            raise UserError(f"The text has {tokens} tokens, too few to measure: give a longer text with -f.")
        pieces = min(tokens // context, chunks or tokens)
        need = 2 * pieces * scored(context) * row_length(model.config.vocabulary)
        check_room(
            tempfile.gettempdir(), need, "a file of distributions", "lower --chunks, or set TMPDIR to another place"
        )
        self._folder = tempfile.TemporaryDirectory(prefix="anytune-export-")
        self._file = Path(self._folder.name) / "pair.bin"
        self.facts = perplexity(model, self.text, adapter, context=context, chunks=chunks, save=self._file)

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def distance(self, model: Model, adapter: Adapter | None = None) -> dict[str, float]:
        """kl: mean KL(pair || model), nats; kl_max; same_top: how often the likeliest token is the same; perplexity."""
        facts = perplexity(model, adapter=adapter, base=self._file)
        return {
            "kl": max(0.0, facts["kl_mean"]),
            "kl_max": facts["kl_max"],
            "same_top": facts["same_top"],
            "perplexity": facts["perplexity"],
        }
