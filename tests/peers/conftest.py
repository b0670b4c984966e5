"""Tiny models and their references, made once a session."""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from anytune.llamacpp.judge import llamacpp_logprobs
from tests.support import models, tiny, twin
from tests.support.require import need

IDS = np.random.default_rng(1).integers(5, 320, 40).tolist()  # 40 tokens: five sliding windows


@dataclass(frozen=True)
class Case:
    """A tiny file, with llama.cpp's log-probabilities and transformers' logits of IDS: f32 [40, vocab]."""

    path: Path
    ids: list[int]
    llamacpp: np.ndarray
    transformers: np.ndarray


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory):
    """(name, type) -> path of that tiny model."""
    folder = tmp_path_factory.mktemp("tiny")

    @functools.cache
    def file(name: str, type: str = "F32") -> Path:
        return tiny.write(folder / f"{name}-{type}.gguf", name, type)

    return file


@pytest.fixture(scope="session")
def case(tiny_file):
    """(name, type) -> Case."""
    need("xllamacpp"), need("torch").set_num_threads(1)

    @functools.cache
    def make(name: str, type: str = "F32") -> Case:
        path = tiny_file(name, type)
        theirs = twin.logits(twin.transformers_model(path), IDS)
        return Case(path, IDS, llamacpp_logprobs(path, [IDS], vocab=theirs.shape[1], threads=1)[0], theirs)

    return make


@pytest.fixture(scope="session")
def smollm2_f32(tmp_path_factory) -> Path:
    """SmolLM2 with every matrix dequantized to float32 (540 MB), metadata as it was."""
    from anytune.gguf import GGUF, write_gguf

    path = tmp_path_factory.mktemp("f32") / "smollm2-f32.gguf"
    with GGUF.open(models.smollm2()) as base:
        tensors = [(name, t.shape, "F32", functools.partial(base.float32, name)) for name, t in base.tensors.items()]
        write_gguf(path, base.metadata | {"general.file_type": 0}, tensors, kinds=base.kinds)
    return path
