"""Our logits against llama.cpp's and transformers' on the same file."""

import numpy as np
import pytest

import anytune
from anytune.llamacpp.judge import llamacpp_logprobs
from tests.support import models, tiny, twin
from tests.support.distributions import kl
from tests.support.require import need

TEXT = "The lighthouse keeper wrote in her diary every evening: wind, weather, the names of passing ships."
POSITIONS = 20


def ours(path, ids) -> np.ndarray:
    return anytune.load(path, device="numpy", threads=1).logits(ids)


@pytest.mark.parametrize("name", tiny.SHAPES)
def test_tiny_f32(case, name):
    c = case(name)
    mine = ours(c.path, c.ids)
    assert mine.shape == c.llamacpp.shape and mine.dtype == np.float32
    assert kl(c.transformers, mine).max() < 1e-9
    limit = 1e-5 if name.startswith("gemma") else 1e-8 if name == "qwen35moe" else 1e-9  # its GELU is a table of f16
    assert kl(c.llamacpp, mine).max() < limit


TYPES = ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", *(t for t in tiny.K_QUANTS if t != "TQ2_0")]


@pytest.mark.parametrize("name, type", [("bitnet", "TQ2_0"), *((n, t) for n in ("llama", "gemma3") for t in TYPES)])
def test_tiny_quantized(case, name, type):
    """The dequantized weights exactly; llama.cpp rounds activations to 8 bits here."""
    c = case(name, type)
    mine = ours(c.path, c.ids)
    assert kl(c.transformers, mine).max() < 1e-9
    assert np.median(kl(c.llamacpp, mine)) < 1e-2


@pytest.mark.parametrize("name, type", [("llama3", "F32"), ("qwen2", "Q8_0"), ("qwen3", "Q4_0"), ("gemma3", "F32")])
def test_without_numba(case, name, type):
    c = case(name, type)
    mine = anytune.load(c.path, device="numpy", threads=1, compiled=False).logits(c.ids)
    assert kl(c.transformers, mine).max() < 1e-9


def compare(path) -> tuple[np.ndarray, np.ndarray]:
    """(our logits, llama.cpp's log-probabilities) of `path` on POSITIONS tokens of TEXT."""
    need("xllamacpp")
    model = anytune.load(path, device="numpy", threads=2)
    ids = model.tokenize(TEXT)[:POSITIONS]
    assert len(ids) == POSITIONS
    mine = model.logits(ids)
    return mine, llamacpp_logprobs(path, [ids], vocab=mine.shape[1], threads=2)[0]


def same_choice(mine: np.ndarray, theirs: np.ndarray, margin: float) -> bool:
    """The same likeliest token wherever llama.cpp itself prefers one by more than `margin` nats."""
    best = np.sort(theirs, axis=-1)
    decided = best[:, -1] - best[:, -2] > margin
    assert decided.mean() > 0.7, "too few positions say something"
    return bool((mine.argmax(-1) == theirs.argmax(-1))[decided].all())


def test_smollm2_f32(smollm2_f32):
    mine, theirs = compare(smollm2_f32)
    assert kl(theirs, mine).max() < 1e-5
    assert same_choice(mine, theirs, margin=1e-3)


@pytest.mark.parametrize("model", [models.smollm2, models.gemma3])
def test_real_quantized(model):
    """llama.cpp rounds activations to 8 bits here, so single positions stray: the mean is held."""
    mine, theirs = compare(model())
    assert kl(theirs, mine).mean() < 1e-2
    assert same_choice(mine, theirs, margin=0.2)


def test_gemma3_is_exact():
    """Without llama.cpp's rounding: transformers on the real file's dequantized weights."""
    model = anytune.load(models.gemma3(), device="numpy", threads=2)
    ids = model.tokenize(TEXT)[:POSITIONS]
    theirs = twin.logits(twin.transformers_model(models.gemma3()), ids)
    assert kl(theirs, model.logits(ids)).max() < 1e-8
