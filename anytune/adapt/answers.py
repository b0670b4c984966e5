"""Prompts without answers: the teacher gives them, and student and teacher are compared on these."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anytune.adapt.batching import SHARED
from anytune.adapt.data import Context, Example, Reading
from anytune.adapt.walk import Side
from anytune.errors import UserError

if TYPE_CHECKING:
    from anytune.adapt.job import Teacher
    from anytune.generation.generate import Reply
    from anytune.generation.sampling import Sampling
    from anytune.model.decoder import Decoder

AT_ONCE, FEW = 24, 4  # prompts answered side by side; with --memory
LONGEST = 256  # tokens of an answer


@contextlib.contextmanager
def with_answers(
    teacher: Teacher, paths: Sequence[str | os.PathLike], reading: Reading, tell: Callable[[str, int, int, str], None]
) -> Iterator[tuple[list[Path], list[str]]]:
    """(files that all have answers, notes): those of prompts alone are answered into a temporary file."""
    with tempfile.TemporaryDirectory(prefix="anytune-adapt-") as folder:
        found, notes = [], []
        for number, path in enumerate(map(Path, paths)):
            if not _unanswered(path, reading):
                found.append(path)
                continue
            target = Path(folder) / f"{number}-{path.name}.jsonl"
            count = _answer(teacher, path, target, reading, tell)
            notes.append(f"{path} has prompts without answers: the teacher answered {count} of them.")
            found.append(target)
        yield found, notes


def _unanswered(path: Path, reading: Reading) -> bool:
    """Whether the first row is a prompt that nobody answers. A pipe is taken as it is: it can be read once."""
    from anytune.text.formats import read_records
    from anytune.text.reading import reads_once
    from anytune.text.rows import DataFile

    if path.is_dir() or reads_once(path):
        return False
    if not path.exists():
        raise UserError(f"The data file {path} does not exist.")
    file = DataFile(path, reading.format)
    if file.plain:
        return False
    row = file.first()
    if "prompt" in row and not {"completion", "response", "output", "messages", "text"} & set(row):
        return True
    try:
        record = next(read_records(path, reading.format, reading.columns))
    except UserError:  # told better where it is read in earnest
        return False
    return record.kind == "chat" and record.messages[-1]["role"] != "assistant"


def _answer(
    teacher: Teacher, path: Path, target: Path, reading: Reading, tell: Callable[[str, int, int, str], None]
) -> int:
    from anytune.evaluation.prompts import read_prompts
    from anytune.generation.prompts import encode_rendered
    from anytune.generation.sampling import Sampling

    model, context = teacher.model, teacher.context or Context()
    prompts = read_prompts(path, reading.columns)
    ids = [
        encode_rendered(
            model.tokenizer, reading.template.render(context.before(p.messages), p.tools, add_generation_prompt=True)
        )
        for p in prompts
    ]
    replies = spoken(teacher, ids, Sampling(temperature=0.0), LONGEST, tell)
    with target.open("w", encoding="utf-8") as out:
        for prompt, reply in zip(prompts, replies):
            said = [*prompt.messages, {"role": "assistant", "content": reply.text}]
            if reply.text.strip():
                out.write(json.dumps({"messages": said}, ensure_ascii=False) + "\n")
    return len(prompts)


def spoken(
    teacher: Teacher,
    prompts: Sequence[Sequence[int]],
    how: Sampling,
    most: int,
    tell: Callable[[str, int, int, str], None] = lambda *_: None,
) -> list[Reply]:
    """What the teacher says after each prompt (tokens, its context among them), `most` tokens at most, AT_ONCE side by
    side."""
    from anytune.generation.generate import decode

    model, found = teacher.model, []
    at_once = AT_ONCE if model.memory is None else FEW
    for low in range(0, len(prompts), at_once):
        some = prompts[low : low + at_once]
        context = min(max(map(len, some)) + most, model.config.context)
        decoder, replies = model.decoder(adapter=teacher.adapter, batch=len(some), context=context), []
        _begin_alike(decoder, teacher, some)
        for _ in decode(decoder, model.tokenizer, some, how, max_tokens=most, replies=replies):
            pass
        found += replies
        tell("answers of the teacher", min(low + at_once, len(prompts)), len(prompts), "")
    return found


def _begin_alike(decoder: Decoder, teacher: Teacher, prompts: Sequence[Sequence[int]]) -> None:
    """Let every slot of the decoder hold what all prompts begin with: it is computed once."""
    columns = zip(*(prompt[:-1] for prompt in prompts))  # a token of each is left to be fed
    front = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    if not teacher.shares or len(prompts) < 2 or front < SHARED:
        return
    side = Side(teacher.model, [], prompts[0][:front], adapter=teacher.adapter)
    side.start()
    e = side.engine
    for number, caches in enumerate(decoder.states):
        side.enter(number)
        side.leave()
        for cache, common in zip(caches, side.first.shared):
            for slot in range(len(prompts)):
                e.store(cache, e.places([(slot, 0, front, 0)]), common)
    decoder.lengths = [front] * len(prompts)


def continued(
    teacher: Teacher,
    examples: Sequence[Example],
    seed: int,
    tell: Callable[[str, int, int, str], None] = lambda *_: None,
) -> list[Example]:
    """Each example with an answer of the teacher in place of its last one, drawn by `seed`, and no longer than that.
    Running text has no answers, and stays as it is."""
    from anytune.generation.sampling import Sampling

    cuts = [_last_answer(e) for e in examples]
    answered = [(e, cut) for e, cut in zip(examples, cuts) if cut]
    prompts = [e.behind[: len(e.behind) - len(e.ids) + cut].tolist() for e, cut in answered]
    how = Sampling(temperature=0.7, top_k=0, top_p=1.0, min_p=0.0, seed=seed)
    replies = iter(spoken(teacher, prompts, how, max((len(e.ids) - cut for e, cut in answered), default=0), tell))
    return [_answered(e, cut, next(replies).ids[: len(e.ids) - cut]) if cut else e for e, cut in zip(examples, cuts)]


def _answered(example: Example, cut: int, said: Sequence[int]) -> Example:
    """The example up to `cut`, and `said`."""
    left = len(example.ids) - cut
    return Example(
        np.concatenate([example.ids[:cut], np.array(said, np.int32)]),
        np.concatenate([example.behind[: len(example.behind) - left], np.array(said, np.int32)]),
        example.own - left + len(said),
        np.arange(cut + len(said)) >= cut,
    )


def _last_answer(example: Example) -> int:
    """Where the last run of tokens that count begins, in what teacher and student both see; 0 if there is none."""
    loss = example.loss
    begins = np.flatnonzero(loss & ~np.concatenate([[True], loss[:-1]]))
    return int(begins[-1]) if len(begins) and begins[-1] > len(loss) - example.own else 0
