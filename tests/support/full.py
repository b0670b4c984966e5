"""Full training on an engine, held against the NumPy engine's and the reference optimizers, for each engine's tests.

`options` are those of anytune.model.load: device=, dtype=, threads=, …; or engine=, one that is open already.
"""

from __future__ import annotations

import numpy as np
import pytest

from anytune.engine import optimizers as rules
from anytune.gguf import GGUF
from anytune.model import Full, Model, load
from tests.model.conftest import stream
from tests.support import tiny

NAMES = ("llama", "llama-tied", "qwen2", "qwen3", "qwen3-tied", "gemma3", "gemma4")
SUBSETS = (Full("norm"), Full("embed"), Full("attn_q,ffn_down"), Full(layers=1))
BATCH = ([17, 1, 22], 40)  # examples' lengths, and their sum
SHAPES = ((7,), (320,), (5, 12), (40, 103), (130, 64), (5000,))  # small ones, whole blocks, blocks that are cut off


def files(folder, type: str = "F32") -> dict:
    """{name: path} of tiny models of all architectures."""
    return {name: tiny.write(folder / f"{name}.gguf", name, type=type) for name in NAMES}


def trainee_of(path, full: Full = Full(), tokens: int = BATCH[1], engine=None, **options):
    model = Model(GGUF.open(path), engine) if engine else load(path, **{"threads": 2, **options})
    return model.full_trainee(full, ubatch=tokens)


def gradients(trainee, batch=None) -> tuple[float, dict]:
    """(summed loss, {tensor: gradient}) of one micro-batch."""
    e = trainee.engine
    for gradient in trainee.gradients.values():
        e.load(gradient, np.zeros(gradient.shape, np.float32))
    loss = float(trainee.accumulate(batch or stream(BATCH[0]), 0.1, 1, 0))
    return loss, {name: e.host(gradient).astype(np.float64) for name, gradient in trainee.gradients.items()}


def nearness(got: dict, want: dict) -> tuple[float, float, str]:
    """(the smallest cosine, the largest relative difference of lengths, a tensor's name with the first)."""
    assert set(got) == set(want)
    size = {name: (np.linalg.norm(got[name]), np.linalg.norm(want[name])) for name in want}
    cosines = {name: got[name] @ want[name] / (size[name][0] * size[name][1]) for name in want}
    assert all(map(np.isfinite, cosines.values())), cosines  # min() passes over NaN
    worst = min(cosines, key=cosines.get)
    return cosines[worst], max(abs(a / b - 1) for a, b in size.values()), worst


def check_gradients(path, least: float, rel: float, runs: int = 1, **options) -> None:
    """Every tensor's gradient points where NumPy's does (cosine >= least), and is as long, with all layers kept and
    with none; rel: relative error of the loss, a twentieth of that of lengths."""
    loss, want = gradients(trainee_of(path, device="numpy"))
    trainee = trainee_of(path, **options)
    for keep in (trainee.keep, 0):
        trainee.keep = keep
        trainee.engine.release()  # a recorded step is one with the old choice
        for _ in range(runs):
            found, got = gradients(trainee)
            assert found == pytest.approx(loss, rel=rel)
            cosine, longer, name = nearness(got, want)
            assert cosine >= least and longer < 20 * rel, (name, cosine, longer)


def check_subsets(path, tolerance: float, **options) -> None:
    """What is frozen changes no gradient of the rest beyond rounding, and gets none."""
    _, every = gradients(trainee_of(path, **options))
    for full in SUBSETS:
        _, some = gradients(trainee_of(path, full, **options))
        assert 0 < len(some) < len(every)
        for name, gradient in some.items():
            assert np.linalg.norm(gradient - every[name]) <= tolerance * np.linalg.norm(every[name]), (full, name)


def check_accumulation(path, **options) -> None:
    """A second micro-batch adds to the first one's gradients."""
    trainee = trainee_of(path, **options)
    _, once = gradients(trainee)
    trainee.accumulate(stream(BATCH[0]), 0.1, 1, 0)
    for name, gradient in trainee.gradients.items():
        np.testing.assert_allclose(
            trainee.engine.host(gradient), 2 * once[name], rtol=1e-5, atol=1e-5 * np.abs(once[name]).max()
        )


def check_optimizer(engine, kind: str) -> None:
    """Steps of the engine's optimizer are the reference's: parameters, state, and gradients that are zero after it."""
    random = np.random.default_rng(0)
    for shape in SHAPES:
        size = int(np.prod(shape))
        p, state = random.standard_normal(size).astype(np.float32), rules.start(kind, shape)
        own, kept = engine.vector(p), engine.optimizer_state(kind, shape)
        g = engine.zeros(size)
        assert {name: (array.shape, array.dtype) for name, array in state.items()} == {
            name: (engine.host(array).shape, engine.host(array).dtype) for name, array in kept.items()
        }
        for step in range(1, 4):
            slope = (random.standard_normal(size) * 10.0 ** random.uniform(-4, 0, size)).astype(np.float32)
            slope[::9] = 0
            rule = rules.Rule(0.5 if step == 2 else 1.0, 1e-2, step, 0.9, 0.99, 1e-8, 0.1)
            before = engine.host(own).copy()
            engine.load(g, slope)
            for name, array in kept.items():  # each step from the reference's state: roundings do not pile up
                engine.load(array, state[name])
            engine.load(own, p)
            engine.optimize(kind, own, g, kept, shape, rule)
            rules.reference(kind, p, slope, state, shape, rule)
            found = engine.host(own)
            assert not np.array_equal(found, before) and not engine.host(g).any()
            np.testing.assert_allclose(found, p, rtol=0, atol=2e-6)
            for name, array in state.items():
                got = engine.host(kept[name])
                if array.dtype == np.uint8:  # a value in the middle of two codes may fall to either
                    assert np.abs(got.astype(int) - array).max() <= 1 and (got != array).mean() < 0.01, (shape, name)
                else:
                    np.testing.assert_allclose(
                        got, array, rtol=1e-5, atol=1e-7 * np.abs(array).max(), err_msg=f"{shape} {name}"
                    )


def check_norm(engine) -> None:
    """The norm over all tensors, of lengths that fill no piece evenly, one of several; NaN and infinity show."""
    random = np.random.default_rng(1)
    sizes = ((3, 5.0), ((1 << 20) + 70001, 1.0), (4096, 1e-3))
    parts = [random.standard_normal(n).astype(np.float32) * scale for n, scale in sizes]
    held = [engine.vector(part) for part in parts]
    want = np.sqrt(sum((part.astype(np.float64) ** 2).sum() for part in parts))
    assert engine.norm(held) == pytest.approx(want, rel=1e-6)
    for bad in (np.nan, np.inf):
        parts[1][-1] = bad
        engine.load(held[1], parts[1])
        assert not np.isfinite(engine.norm(held))


def check_steps(path, optimizer: str, rel: float, **options) -> None:
    """Losses and norms of a few steps are NumPy's, as weights, biases, gains and embeddings move."""
    runs = []
    for choice in ({"device": "numpy"}, options):
        trainee, rows = trainee_of(path, Full(optimizer=optimizer), **choice), []
        for step in range(1, 7):
            loss = sum(
                float(trainee.accumulate(stream(BATCH[0], seed=step % 2 + micro), 1 / 40, step, micro))
                for micro in range(2)
            )
            rows.append([loss, trainee.update(3e-3, step, weight_decay=0.01)])
        rows.append([float(trainee.evaluate(stream(BATCH[0]))), rows[-1][1]])
        runs.append(np.array(rows))
    assert runs[0][-1, 0] < 0.9 * runs[0][0, 0] / 2
    np.testing.assert_allclose(runs[1][:, 0], runs[0][:, 0], rtol=rel)
    np.testing.assert_allclose(runs[1][:, 1], runs[0][:, 1], rtol=10 * rel)


def check_resume(path, optimizer: str, **options) -> None:
    """Steps from a state put back end in the same bits."""
    trainee = trainee_of(path, Full(optimizer=optimizer), **options)

    def steps(*numbers) -> dict:
        for step in numbers:
            trainee.accumulate(stream(BATCH[0], seed=step), 1 / 30, step, 0)
            trainee.update(3e-3, step, weight_decay=0.01)
        return {key: np.array(array) for key, array in trainee.state().items()}

    middle = steps(1, 2, 3)
    end = steps(4, 5)
    trainee.load_state(middle)
    for key, array in steps(4, 5).items():
        assert array.dtype == end[key].dtype
        np.testing.assert_array_equal(array, end[key], err_msg=key)
    assert any(not np.array_equal(middle[key], end[key]) for key in end)


def check_not_finite(path, **options) -> None:
    """A norm that is not finite changes nothing."""
    trainee = trainee_of(path, **options)
    e, before = trainee.engine, {key: np.array(array) for key, array in trainee.state().items()}
    gradient = trainee.gradients["output_norm.weight"]
    for bad in (np.inf, np.nan):
        e.load(gradient, np.full(gradient.shape, bad, np.float32))
        assert not np.isfinite(trainee.update(1e-3, 1))
    for key, array in trainee.state().items():
        np.testing.assert_array_equal(array, before[key])
