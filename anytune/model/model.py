"""A model a person can use: a GGUF opened on an engine, with its tokenizer, template, logits and text."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack, overload

import numpy as np

from anytune.adapter.resolve import AdapterLike, resolve
from anytune.adapter.scaled import before_scale
from anytune.arguments import public
from anytune.errors import UserError

from .build import Weights
from .config import read_config
from .full import Full
from .lora import Lora, check_adapted
from .rope import tables
from .stack import Stack

# what engines may offer beyond the operations that all have, and which do
WORDS = {
    "delta": ("gated delta nets", "numpy, cpu-bf16, cuda or webgpu"),
    "sinks": ("attention sinks", "numpy, cpu-bf16, cuda or webgpu"),
    "convolution": ("short convolutions", "numpy, cpu-bf16, cuda or webgpu"),
    "latent": ("latent attention", "numpy, cpu-bf16, cuda or webgpu"),
    "experts": ("mixtures of experts", "numpy, cpu-bf16, cuda or webgpu"),
    "expert scales": ("a scale of each expert", "numpy, cpu-bf16, cuda or webgpu"),
}

if TYPE_CHECKING:
    from anytune.generation.public import Options, Prompt


class Model:
    """A GGUF model on a device. Weights are read at their first use; nothing of the file is changed.

    gguf: the open file; config: its sizes; engine: the device; tokenizer, template: made at first use. asked: the name
    of the device that was asked for, as "auto"; "" if an engine was given.
    """

    def __init__(self, gguf, engine, memory: int | None = None, asked: str = ""):
        self.gguf, self.engine, self.memory, self.asked = gguf, engine, memory, asked
        self.config = read_config(gguf)
        self._check(engine)
        self.weights = Weights(gguf, self.config, engine, "blocks")
        self.template_file: str | None = None

    def close(self) -> None:
        """Free what the engine holds of its device, and give the file back. The model is of no use from then on.

        A model is also a context manager: with anytune.load(path) as model: …
        """
        self.weights.clear()
        self.engine.close()
        self.gguf.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def name(self) -> str:
        return str(self.gguf.metadata.get("general.name") or self.gguf.path.stem)

    @functools.cached_property
    def tokenizer(self):
        from anytune.text.tokenizer import Tokenizer

        return Tokenizer.from_gguf(self.gguf)

    @functools.cached_property
    def template(self):
        from anytune.text.chat import ChatTemplate

        return ChatTemplate.for_model(self.gguf, self.tokenizer, self.template_file)

    @property
    def template_source(self) -> str | None:
        """The chat template's text once one was used, else the file's own."""
        made = self.__dict__.get("template")
        return made.source if made is not None else self.gguf.metadata.get("tokenizer.chat_template")

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Token ids; BOS as the model's rules say. special=True reads control tokens out of the text."""
        return self.tokenizer.encode(text, special=special)

    def _check(self, engine) -> None:
        """Raise UserError if the engine lacks an operation of some layer."""
        c = self.config
        engine.widest = max(map(c.size, range(c.layers)))
        needs = {part.NEEDS for i in range(c.layers) for part in c.arch.parts(c, i)} - {None, *engine.offers}
        for need in sorted(needs):
            raise UserError(
                f"{self.gguf.path.name} has {WORDS[need][0]}, which the {engine.name} engine does not compute "
                f"yet: use --device {WORDS[need][1]}"
            )

    def move(self, engine) -> None:
        """Compute on another engine from now on. What was made on the old one (trainees, pairs) stays there."""
        self._check(engine)
        self.engine, self.weights = engine, Weights(self.gguf, self.config, engine, "blocks")

    def hold(self, how: str) -> None:
        """How weights are held from now on: blocks, stream (nothing in memory) or float32."""
        for name, matrix in self.weights.matrices.items():
            if not self.config.looked_up(name):
                matrix.change_hold(how)

    def rope_tables(self, context: int):
        made = tables(self.config, context, self.weights.rope_factors(context))
        return {rope: tuple(map(self.engine.vector, pair)) for rope, pair in made.items()}

    def adapter_pairs(self, adapter) -> dict:
        """An adapter's pairs as engine pairs without gradients; it may be all that resolve() takes."""
        adapter = resolve(adapter, self.gguf)
        if adapter is None:
            return {}
        adapter.check(self.gguf)
        check_adapted(adapter)
        e = self.engine
        return {
            name: e.lora_pair(e.vector(a), e.vector(before_scale(self.gguf, name, b)), adapter.scale)
            for name, (a, b) in adapter.tensors.items()
        }

    @public({"lora": "adapter"})
    def logits(self, ids, adapter=None) -> np.ndarray:
        """float32 [n, vocab]: the logits after every token of one sequence."""
        e, c, w = self.engine, self.config, self.weights
        ids = np.asarray(ids if np.iterable(ids) else [])
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= c.vocabulary:
            raise UserError(f"logits need a list of token ids from 0 to {c.vocabulary - 1}")
        if ids.size > c.context:
            raise UserError(f"{ids.size} tokens are more than the model's context of {c.context}")
        ids, pairs = ids.astype(np.int32), self.adapter_pairs(adapter)
        stack = Stack(w, w.layers(self.rope_tables(ids.size), pairs), w.head(pairs))
        e.training = False
        e.begin(np.array([0, ids.size], np.int32), 0, (0, 0, 0))
        return e.host(e.logits(stack.hidden(e, e.integers(ids), e.integers(np.arange(ids.size))), stack.head))

    def decoder(self, adapter=None, batch: int = 1, context: int | None = None):
        from .decoder import Decoder

        return Decoder(self, adapter, batch, context)

    def trainee(self, lora: Lora, adapter=None, ubatch: int = 512, context: int | None = None):
        from .lora_trainee import LoraTrainee

        return LoraTrainee(self, lora, adapter, ubatch, context, self.memory)

    def full_trainee(self, full: Full, ubatch: int = 512, context: int | None = None):
        """What trains the model's own weights; the model itself stays as its file has it."""
        from .full_trainee import FullTrainee

        return FullTrainee(self, full, ubatch, context, self.memory)

    @overload
    def generate(self, prompt: Prompt, adapter: AdapterLike = None, **options: Unpack[Options]) -> str: ...

    @overload
    def generate(self, prompt: Sequence[str], adapter: AdapterLike = None, **options: Unpack[Options]) -> list[str]: ...

    def generate(self, prompt: Any, adapter: AdapterLike = None, **options: Any) -> Any:
        """The answer to a prompt, or a list of them to a list; see anytune.generate for the options."""
        from anytune.generation.public import generate

        return generate(self, prompt, adapter, **options)

    def stream(self, prompt: Prompt, adapter: AdapterLike = None, **options: Unpack[Options]) -> Iterator[str]:
        """The pieces of one answer as they come; see anytune.stream."""
        from anytune.generation.public import stream

        return stream(self, prompt, adapter, **options)

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.config.architecture}, {self.gguf.path}, on {self.engine.name}>"


def load(
    path,
    device: str = "auto",
    threads: int | None = None,
    memory: int | None = None,
    compiled: bool | None = None,
    dtype: str = "auto",
    tf32: bool = False,
    max_binding: int | None = None,
) -> Model:
    """Open a GGUF on a device.

    device: "auto", "cuda", "cuda:1", "rocm", "xpu", "mps", "cpu-bf16", "numpy" (or "cpu"), "fpga-sim". threads: None
    takes all cores. memory: bytes that may be taken, of the GPU's memory, or of the machine's by the whole process.
    compiled: None uses Numba if it is installed. dtype: "auto", "bf16", "fp16", "f32", of matrix products on
    torch's devices; tf32: let float32 ones run on tensor cores. max_binding: bytes, of webgpu. Raises UserError.
    """
    from anytune.engine.devices import engine_for
    from anytune.gguf import GGUF

    gguf = GGUF.open(Path(path))
    return Model(gguf, engine_for(device, threads, compiled, dtype, tf32, max_binding), memory, device)
