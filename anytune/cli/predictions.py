"""generate --prompts and -o: a file of prompts answered, a file of answers written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anytune import files
from anytune.cli.opening import text_file
from anytune.cli.options import forced
from anytune.cli.progress import Progress
from anytune.cli.say import note
from anytune.errors import UserError
from anytune.files import atomic_write

if TYPE_CHECKING:
    from anytune.adapter.adapter import Adapter
    from anytune.evaluation.prompts import Prompt
    from anytune.generation.generate import Reply
    from anytune.model import Model


def check_output(output: str, model: Path, lora: str | None, prompts: str | None, template: str | None) -> None:
    """Raise UserError unless answers may be written to `output`, before anything is computed."""
    path = Path(output).expanduser()
    if path.suffix.lower() not in (".jsonl", ".txt"):
        raise UserError(
            f"-o {output} is neither .jsonl (one object per prompt) nor .txt (one line per answer): name it so."
        )
    files.check_output(
        path,
        forced(),
        [
            ("the model", model),
            ("the adapter", lora),
            ("the file of prompts", prompts),
            ("the chat template", template),
        ],
    )


def read(path: str) -> list[Prompt]:
    """The prompts of a file. Raises UserError."""
    from anytune.evaluation.prompts import read_prompts

    return read_prompts(text_file(path, "prompt"))


def answer_all(
    model: Model, adapter: Adapter | None, prompts: list[Prompt], name: str, options: dict[str, Any]
) -> list[Reply]:
    """A reply to each prompt of the file `name`. options: as anytune.generation.generate.complete takes them. Raises
    UserError naming the line."""
    from anytune.evaluation.answers import answer
    from anytune.evaluation.prompts import Form
    from anytune.generation.prompts import context_length

    form = Form.of(model, {} if adapter is None else {"the adapter": adapter}, options["template"], options["chat"])
    if options["system"]:
        if form.template is None:
            raise UserError("A system prompt needs the chat template: omit --raw, or put it into the prompts.")
        prompts = [prompt.with_system(options["system"]) for prompt in prompts]
    ids = form.encode_all(prompts, name)
    limit = options["context"] or context_length(model)
    most = options["max_tokens"]
    if most < 0:
        most = max(1, limit - max(map(len, ids)))
    with Progress("answering", "tokens") as progress:
        return answer(
            model,
            adapter,
            ids,
            options["how"],
            max_tokens=most,
            stop=options["stop"],
            progress=lambda done, total: progress.to(done, total, ""),
        )


def write(output: str, prompts: Sequence[str], replies: Sequence[Reply]) -> None:
    """Write the answers, whole or not at all: {"prompt", "prediction"} an object a line, or one line an answer."""
    path, folded = Path(output).expanduser(), 0
    with atomic_write(path, "w") as file:
        for prompt, reply in zip(prompts, replies, strict=True):
            if path.suffix.lower() == ".jsonl":
                file.write(json.dumps({"prompt": prompt, "prediction": reply.text}, ensure_ascii=False) + "\n")
            else:
                line = " ".join(reply.text.split())
                folded += line != reply.text.strip()
                file.write(line + "\n")
    if folded:
        note(
            f"{folded} of {len(replies)} answers have several lines or spaces, which {output} folds into one; "
            "a .jsonl file keeps them"
        )
