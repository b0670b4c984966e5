"""What a run reads and writes, checked before any work is done."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from anytune.adapter import peft
from anytune.distributed.environment import torchrun_variables
from anytune.errors import UserError
from anytune.files import FilePath, check_output, spare_inputs
from anytune.text.given import Rows, sources
from anytune.text.reading import check_once, identity, reads_once
from anytune.train import checkpoint as ckpt
from anytune.train.preflight import check_writable
from anytune.train.resume import check_resume_from
from anytune.train.run_folder import FILES, refuse_other_run
from anytune.train.settings import TrainSettings


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What data a run reads, and how; see train().

    data, val_file: as text.given.sources makes them; chat_template: a file, None: the adapter's or the model's own.
    """

    data: list[Path | Rows]
    val_file: list[Path | Rows]
    val_split: float
    chat_template: FilePath | None
    loss: str
    format: str
    columns: dict[str, str] | None
    overflow: str | None

    @property
    def options(self) -> dict[str, Any]:
        """Of text.build_dataset."""
        return {name: getattr(self, name) for name in ("loss", "format", "columns", "overflow")}

    def record(self) -> dict[str, Any]:
        """What settings.json says of them."""
        return self.options | {
            "data": list(map(str, self.data)),
            "val_file": list(map(str, self.val_file)) or None,
            "val_split": self.val_split,
            "chat_template": self.chat_template,
        }


def check_inputs(inputs: Inputs, settings: TrainSettings) -> None:
    """Raise UserError for data that cannot be meant."""
    if inputs.val_file and inputs.val_split:
        raise UserError("Give --val-file or --val-split, not both.")
    trained = set(map(identity, inputs.data))
    both = next((path for path in inputs.val_file if identity(path) in trained), None)
    if both is not None:
        raise UserError(f"{both} is given for training and for validation: use --val-split to split one file.")
    check_pipes([*inputs.data, *inputs.val_file, inputs.chat_template], int(torchrun_variables().get("WORLD_SIZE", 1)))
    if settings.early_stop and not (inputs.val_file or inputs.val_split):
        raise UserError("--early-stop needs a validation set: give --val-file or --val-split.")


def check_pipes(paths: Iterable[FilePath | Rows | None], processes: int) -> None:
    """Raise UserError if a pipe would be read twice, by this process or by several. Paths that are None count for
    nothing."""
    paths = [path for path in paths if path is not None]
    check_once(paths)
    if processes > 1 and (pipe := next(filter(reads_once, paths), None)) is not None:
        raise UserError(
            f"{pipe} can be read only once, but {processes} processes read the data: write it to a file first."
        )


def check_outputs(
    output: FilePath | None,
    settings: TrainSettings,
    model: Any,
    data: Any,
    val_file: Any,
    adapter: FilePath | None,
    chat_template: FilePath | None,
    force: bool = True,
) -> None:
    """Raise UserError if the result, or a file of the run's folder, would replace what is read, or the result what
    exists (unless force, or a run goes on, which may have written it), or if --resume-from, --run-dir or
    --checkpoint-save-dir cannot be used. All are paths, or None; data and val_file may be lists."""
    check_resume_from(settings.resume_from)
    if settings.resume_from is None:
        if settings.run_dir:
            refuse_other_run(Path(settings.run_dir))
        check_writable(Path(settings.run_dir or "."), "--run-dir")
    if settings.checkpoint_save_dir:
        check_writable(Path(settings.checkpoint_save_dir), "--checkpoint-save-dir")
    written = [output]
    if output is not None and Path(output).suffix.lower() != ".gguf":
        written += [Path(output) / name for name in peft.FILES]
    resumed = Path(settings.resume_from or "auto").absolute()  # a checkpoint, or the folder of a run
    checkpoint = resumed if (resumed / ckpt.INFO).exists() else None
    folder = checkpoint.parent.parent if checkpoint else resumed
    # beside --checkpoint-save-dir there is no run's folder
    home = settings.run_dir or (folder if settings.resume_from and (folder / "settings.json").exists() else None)
    written += [Path(home) / name for name in FILES] if home else []
    spare_inputs(
        written,
        [
            ("the model", model),
            ("the adapter to continue from", adapter),
            ("the chat template", chat_template),
            *(("the data", path) for path in sources(data) if not isinstance(path, Rows)),
            *(("the validation data", path) for path in sources(val_file or ()) if not isinstance(path, Rows)),
            ("the checkpoint", checkpoint),
        ],
    )
    if output is not None:
        check_output(output, force or settings.resume_from is not None, folder=Path(output).suffix.lower() != ".gguf")
