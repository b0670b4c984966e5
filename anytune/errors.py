"""The one exception that means "the user can fix this": a sentence, no traceback, exit code 2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what to do.

    flags: the same with the command line's flags, where the message names Python's arguments instead.
    """

    flags: str | None = None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " Did you mean X?" for the known name that a word is nearest to, in either case; "" if none is near."""
    import difflib

    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), names, 1)
    return f" Did you mean {names[near[0]]}?" if near else ""


def check_numbers(values: np.ndarray, what: str = "logits") -> None:
    """Raise UserError unless each row of a model's results [..., columns] has a finite maximum, which NaN never is."""
    import numpy as np

    if not np.isfinite(values.max(axis=-1)).all():
        raise UserError(
            f"The model's {what} are not numbers: the model or adapter file is damaged, or the adapter belongs to "
            "another model."
        )
