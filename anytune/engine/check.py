"""Every operation of an engine on small data against float64, forward and backward.

Run by `anytune doctor` on the user's own device, and before training (it also loads the compiled kernels): there
are drivers and compilers that report success and compute nonsense.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from anytune.errors import UserError

from .answers import Answer
from .check_operations import OperationChecks
from .check_products import ROWS, ProductChecks
from .check_states import StateChecks
from .check_trained import TrainedChecks


def known_answers(engine, blocks: tuple[str, ...] = ("F32", "Q8_0", "Q4_0"), trained: bool = True) -> list[Answer]:
    """Check every operation; `blocks` are the weight types that the products are checked with. trained: also what
    training a model's own weights needs."""
    from anytune.gguf import GGUF, write_gguf

    checks = ProductChecks(engine)
    row_padding, engine.row_padding = engine.row_padding, 8
    try:
        answers = list(OperationChecks(engine, checks.random).answers())
        answers += StateChecks(engine, checks.random).answers()
        with tempfile.TemporaryDirectory(prefix="anytune-check-") as folder:
            for block in blocks:
                path = Path(folder) / f"{block}.gguf"
                write_gguf(
                    path,
                    {"general.architecture": "check"},
                    [(n, (rows, 64), block, checks.draw(rows, 64)) for n, rows in ROWS.items()],
                )
                with GGUF.open(path) as gguf:
                    dense = {n: gguf.float32(n) for n in ROWS}
                    answers += checks.answers(gguf, dense, block)
        engine.row_padding = 0
        answers += TrainedChecks(engine).answers() if trained and not engine.adapters_only else ()
    finally:
        engine.row_padding = row_padding
    answers += engine.own_answers()
    return [replace(answer, tolerance=engine.tolerance) for answer in answers]


def prove(engine, trained: bool = False) -> None:
    """Raise UserError if an operation gives a wrong answer. trained: as known_answers() has it.

    It also brings every compiled kernel into memory, so that the process's size is known before training is planned.
    Costs some 50 ms, once an engine.
    """
    if engine.proved in (True, trained):  # with `trained` it is all
        return
    wrong = [a for a in known_answers(engine, ("F32", "Q8_0"), trained) if not a.ok]
    if wrong:
        raise UserError(
            f"on this machine the {engine.name} engine computes {wrong[0].operation} wrongly (relative error "
            f"{wrong[0].error:.1e}): run anytune doctor, and use another --device"
        )
    engine.proved = trained
