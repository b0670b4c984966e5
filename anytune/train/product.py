"""What a run makes of its trainee: an adapter, or the whole model as a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anytune.errors import UserError
from anytune.files import copy
from anytune.train import preflight


class AdapterProduct:
    """A LoRA adapter, as GGUF or as a peft folder. template: the chat template that the data went through, or None."""

    noun, file, flag = "adapter", "adapter.gguf", "--output-adapter"
    again = "--lora continues from it"

    def __init__(self, trainee, gguf, template: str | None):
        self.trainee, self.gguf, self.template = trainee, gguf, template

    def now(self) -> Any:
        """The parameters as they are, with a save(path); without a copy, so it is to be saved at once."""
        made = self.trainee.adapter(copy=False)
        made.chat_template = self.template
        return made

    def load(self, path: Path) -> Any:
        return read_adapter(path, self.gguf)

    def nbytes(self) -> int:
        """Bytes of the file, about."""
        return 4 * self.trainee.n_parameters

    def trial(self, path: Path) -> str:
        """Save to `path`'s folder once, so that saving cannot fail after hours -> what was found. Raises UserError."""
        preflight.trial_save(self.now(), path, self.load, self.gguf)
        return f"{path} (checked: a test file was written and read back)"

    def deliver(self, made: Path, output: Path) -> None:
        """Put the run's file where it was asked for: the same bytes, or converted to a peft folder. Raises OSError."""
        if output.suffix.lower() == ".gguf":
            copy(made, output)
        else:
            self.load(made).save_peft(output, self.gguf)


class ModelProduct:
    """The model with its trained tensors. kind: its file type (quantization.filetypes), None: each tensor's own."""

    noun, file, flag = "model", "model.gguf", "--output"
    again = "-m continues from it"
    load = None

    def __init__(self, trainee, gguf, template: str | None, kind: str | None):
        self.trainee, self.gguf, self.template, self.kind = trainee, gguf, template, kind
        self.size = self._model({}).nbytes()  # raises UserError if there is no such type

    def _model(self, values: dict) -> Any:
        from anytune.train.trained_model import TrainedModel  # it brings Numba

        return TrainedModel(self.gguf, values, self.kind)

    def now(self) -> Any:
        made = self._model(self.trainee.values())
        made.chat_template = self.template
        return made

    def nbytes(self) -> int:
        return self.size

    def trial(self, path: Path) -> str:
        """Make sure that a file can be made there. A model is too large to be written for a trial."""
        path = path.resolve()
        if path.suffix.lower() != ".gguf":
            raise UserError(f"{self.flag} {path} must be a file name that ends in .gguf.")
        preflight.check_writable(path.parent, self.flag)
        return f"{path} (checked: a file can be written there)"

    def deliver(self, made: Path, output: Path) -> None:
        copy(made, output)


def read_adapter(path: Path, gguf) -> Any:
    from anytune.adapter.adapter import Adapter

    return Adapter.load(path, gguf=gguf)
