"""A text's windows, told apart: what costs are measured on, what results are checked on, and the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from anytune.likelihood.windows import windows
from anytune.quantization.collect import collect_windows
from anytune.quantization.imatrix import Importance, normalized

if TYPE_CHECKING:
    from anytune.model import Model

CONTEXT, CHUNKS = 256, 4  # tokens of a window, windows
OTHERS = 32  # windows at most for importance

Window = list[int]


@dataclass(frozen=True)
class Windows:
    """measured: for predictions; held_out: seen by nothing before the end, none in a short text; others: for
    importance, the measured ones where the text has no more."""

    measured: Sequence[Window]
    held_out: Sequence[Window]
    others: Sequence[Window]

    @classmethod
    def of(cls, model: Model, text: str, context: int | None, chunks: int | None) -> Windows:
        """Windows all over the text. context, chunks: see search(). Raises UserError for a text of less than one."""
        every = windows(model, text, context or min(CONTEXT, model.config.context), None, least=1)
        count = min(chunks or CHUNKS, (len(every) + 1) // 2)
        places = np.linspace(0, len(every) - 1, min(2 * count, len(every))).round().astype(int)
        taken = set(places.tolist())
        rest = [at for at in range(len(every)) if at not in taken]
        some = [rest[at] for at in np.unique(np.linspace(0, len(rest) - 1, min(OTHERS, len(rest))).round().astype(int))]
        measured = [every[at] for at in places[::2]]
        return cls(measured, [every[at] for at in places[1::2]], [every[at] for at in some] or measured)


def importance_of(model: Model, pieces: Sequence[Window], progress: Callable[[int, int], None]) -> Importance:
    """The importance of columns on these windows."""
    found = collect_windows(model, pieces, progress=progress)
    return Importance(
        {
            name: normalized(np.atleast_2d(found.means(name)), np.reshape(found.counts[name], (-1, 1)) > 0)
            for name in found.sums
        },
        chunks=len(pieces),
        path="measured on the text",
    )
