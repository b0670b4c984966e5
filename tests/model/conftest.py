"""Tiny models and streams for the tests of model code."""

import numpy as np
import pytest

from anytune.model import load
from anytune.text.packing import MicroBatch
from tests.support import tiny


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """tiny_model(name, **options of load) -> a Model of a small random file."""
    folder, made = tmp_path_factory.mktemp("tiny"), {}

    def get(name: str, **options):
        if name not in made:
            made[name] = tiny.write(folder / f"{name}.gguf", name)
        return load(made[name], **{"threads": 1, **options})

    return get


def stream(lengths, vocab: int = 300, seed: int = 0, silent: float = 0.4) -> MicroBatch:
    """Random examples of these lengths, packed; about `silent` of the tokens carry no loss."""
    random = np.random.default_rng(seed)
    starts = np.cumsum([0, *lengths]).astype(np.int32)
    ids = random.integers(5, vocab, starts[-1]).astype(np.int32)
    targets = np.append(ids[1:], -1).astype(np.int32)
    targets[random.random(len(ids)) < silent] = -1
    targets[starts[1:] - 1] = -1
    positions = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    return MicroBatch(ids=ids, positions=positions, starts=starts, targets=targets)
