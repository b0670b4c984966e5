"""What a fit needs in memory at least, with weights streamed and layers run again for each product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from anytune.adapt.batching import batches
from anytune.adapt.statistics import sum_bytes
from anytune.errors import UserError
from anytune.memory import process_bytes
from anytune.units import bytes_text

if TYPE_CHECKING:
    from anytune.adapt.job import Task
    from anytune.model import Model

SPARE = 120 << 20  # pieces of weights on their way through a product, what NumPy's pools hold, the measure behind it


def layer_floats(model: Model) -> int:
    """float32 numbers that a layer computes of a token."""
    c = model.config
    return 6 * c.width + 2 * (c.heads + c.n_kv_heads) * c.head_size + 3 * c.hidden


def least_bytes(model: Model, tasks: Sequence[Task], guarded: int, rank: int, batch: int) -> int:
    """Bytes beside what the process has already. guarded: tokens of guarded text."""
    c = model.config
    heads, keys = c.heads * c.head_size, c.n_kv_heads * c.head_size
    groups = (
        (c.width, (heads, keys, keys)),
        (heads, (c.width,)),
        (c.width, (c.hidden, c.hidden)),
        (c.hidden, (c.width,)),
    )
    examples = [example for task in tasks for example in task.examples]
    own = sum(example.own for example in examples) + guarded
    ran = sum(len(example.ids) + len(example.behind) for example in examples) + guarded
    largest = max(
        len(part.ids)
        for task in tasks
        for teacher in (False, True)
        for part in batches(task.examples, batch, teacher, task.teacher.shares)[0]
    )
    streams = 4 * c.width * (ran + largest)
    layer = 4 * layer_floats(model) * max(largest, min(guarded, batch))
    sums = max(sum_bytes(columns, widths, own) for columns, widths in groups)
    pairs = 2 * 4 * rank * c.layers * sum(columns * len(widths) + sum(widths) for columns, widths in groups)
    return streams + layer + sums + pairs + SPARE


def check_memory(model: Model, tasks: Sequence[Task], guarded: int, rank: int, batch: int) -> None:
    """UserError where a fit cannot stay within the memory that the model was given."""
    if model.memory is None:
        return
    need = process_bytes() + least_bytes(model, tasks, guarded, rank, batch)
    if need > model.memory:
        tokens = sum(example.own for task in tasks for example in task.examples)
        raise UserError(
            f"Adapting takes about {bytes_text(need)} for {tokens} tokens of this model, and --memory is "
            f"{bytes_text(model.memory)}: give it that much, or less data, or a smaller -b "
            f"({batch} tokens run at once)."
        )
