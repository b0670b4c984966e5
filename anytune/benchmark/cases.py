"""What is measured: the tests by llama-bench's names, and which model and device each of them meets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anytune.errors import UserError

# devices for which a number of threads means something
CPUS = ("auto", "cpu", "numpy", "cpu-bf16", "cpu-torch", "fpga-sim")
MOST = 1 << 20  # of anything that is counted: beyond it lies a typing error
PEER = "llama.cpp"
ROUND = 0.3  # seconds that a round of training takes at least: one step of a fast GPU is too short to be timed


@dataclass(frozen=True)
class Test:
    """kind: train, file (steps on the data of Settings.train_file), prompt or generate; examples x tokens of a
    training step, else `examples` sequences of which each gets `tokens` on top of `depth` that it has already."""

    kind: str
    tokens: int
    examples: int = 1
    depth: int = 0

    __test__ = False  # pytest, which looks for classes of this name

    @property
    def name(self) -> str:
        """As llama-bench would call it: pp512, tg128, tg128 x4, pp512 @ d1024; train 4x128."""
        if self.kind == "file":
            return "train file"
        if self.kind == "train":
            return f"train {self.examples}x{self.tokens}"
        return (
            f"{'pp' if self.kind == 'prompt' else 'tg'}{self.tokens}"
            + (f" x{self.examples}" if self.examples > 1 else "")
            + (f" @ d{self.depth}" if self.depth else "")
        )

    @property
    def count(self) -> int:
        """Tokens that one round counts."""
        return self.examples * self.tokens

    @property
    def context(self) -> int:
        """The longest sequence that comes about."""
        return self.tokens + self.depth


@dataclass(frozen=True)
class Cell:
    """One measurement: a test of a model on a device. threads None: a probe chooses; peer: llama.cpp computes it."""

    model: Path
    device: str
    threads: int | None
    test: Test
    peer: bool = False


@dataclass(frozen=True)
class Settings:
    """What all measurements share. ubatch: the most tokens of a training step that are computed at once (None: all);
    memory, max_binding: bytes or None; timeout: seconds that one measurement may take, or None. train_file, epochs,
    context, batch: of a test of kind file."""

    repeats: int = 5
    warmup: int = 1
    rank: int = 16
    ubatch: int | None = None
    memory: int | None = None
    dtype: str = "auto"
    tf32: bool = False
    max_binding: int | None = None
    timeout: float | None = None
    train_file: str | None = None
    epochs: int = 1
    context: int = 512
    batch: int = 2048

    def shown(self) -> dict[str, Any]:
        """What may be shared: the data's file without its folder, and not what has no meaning."""
        found = asdict(self)
        if self.train_file is None:
            return {key: found[key] for key in found if key not in ("train_file", "epochs", "context", "batch")}
        return found | {"train_file": Path(self.train_file).name}


def tests(
    train: Sequence[str],
    prompts: Sequence[int],
    generated: Sequence[int],
    depths: Sequence[int],
    parallel: Sequence[int],
) -> list[Test]:
    """All combinations: steps, prompts, generation. Zeros leave a kind out. Raises UserError."""
    found = [Test("train", tokens, examples) for text in train if text != "0" for examples, tokens in [_shape(text)]]
    for depth in depths or (0,):
        found += [Test("prompt", n, 1, depth) for n in prompts if n]
        found += [Test("generate", n, many, depth) for n in generated if n for many in parallel or (1,)]
    if not found:
        raise UserError("Nothing is left to measure: give one of --train 1x512, -p 512 and -n 128.")
    return list(dict.fromkeys(found))


def _shape(text: str) -> tuple[int, int]:
    """'4x128' -> (4, 128)."""
    match = re.fullmatch(r"([0-9]{1,7})x([0-9]{1,7})", text.strip())
    examples, tokens = (int(match[1]), int(match[2])) if match else (0, 0)
    if not (0 < examples <= MOST and 2 <= tokens <= MOST):
        raise UserError(
            f"--train takes examples x tokens of each (two at least), such as 4x128, or 0 for none, not {text!r}."
        )
    return examples, tokens


def cells(
    models: Sequence[Path], devices: Sequence[str], threads: Sequence[int], asked: Sequence[Test], peer: bool
) -> list[Cell]:
    """Every test of every model on every device. A GPU does not care for threads; llama.cpp trains nothing."""
    found = []
    for model in models:
        for device in devices:
            counts = threads if threads and device in CPUS else (None,)
            found += [Cell(model, device, count, test) for count in counts for test in asked]
        if peer:
            found += [
                Cell(model, PEER, count, test, True)
                for count in threads or (None,)
                for test in asked
                if test.kind not in ("train", "file")
            ]
    return list(dict.fromkeys(found))
