"""Logits and generation: the cache in pieces, several sequences at once, adapters, wrong input."""

import numpy as np
import pytest

from anytune.errors import UserError
from anytune.model import Lora, load
from tests.model.test_trainee import NAMES, trainee_of
from tests.model.conftest import stream

IDS = np.random.default_rng(4).integers(5, 300, 45).tolist()


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_gives_the_logits_of_the_whole(tiny_model, name):
    model = tiny_model(name, threads=2)
    whole, decoder, at = model.logits(IDS), model.decoder(batch=2, context=64), 0
    for size in (1, 20, 3, 1, 20):  # few at a time and many, past the window
        last = decoder.feed([[], IDS[at : at + size]])
        at += size
        np.testing.assert_allclose(last[1], whole[at - 1], rtol=2e-4, atol=2e-4)
        assert np.isnan(last[0]).all()
    decoder.truncate(1, 10)
    np.testing.assert_allclose(decoder.feed([[], IDS[10:30]])[1], whole[29], rtol=2e-4, atol=2e-4)
    assert decoder.lengths == [0, 30]


def test_sequences_at_once_are_as_if_alone(tiny_model):
    model, prompts = tiny_model("llama"), [IDS[:7], IDS[20:21], IDS[3:40]]
    together = model.decoder(batch=3, context=64)
    got = together.feed(prompts)
    more = together.feed([[9], [10], [11]])
    for slot, prompt in enumerate(prompts):
        np.testing.assert_allclose(got[slot], model.logits(prompt)[-1], rtol=2e-4, atol=2e-4)
        np.testing.assert_allclose(more[slot], model.logits([*prompt, 9 + slot])[-1], rtol=2e-4, atol=2e-4)


def test_long_prompts_are_fed_in_chunks(tiny_model, monkeypatch):
    from anytune.model import decoder

    model = tiny_model("gemma3")
    want = model.decoder(batch=2, context=64).feed([IDS, IDS[:30]])
    monkeypatch.setattr(decoder, "CHUNK", 13)
    np.testing.assert_allclose(model.decoder(batch=2, context=64).feed([IDS, IDS[:30]]), want, rtol=2e-4, atol=2e-4)


def test_a_pair_that_would_be_ignored_is_refused(tiny_model):
    model = tiny_model("llama")
    adapter = trainee_of(model).adapter()
    rows, width = model.gguf.tensors["token_embd.weight"].shape
    adapter.tensors["token_embd.weight"] = np.ones((adapter.rank, width)), np.ones((rows, adapter.rank))
    for use in (
        lambda: model.logits(IDS, adapter),
        lambda: model.decoder(adapter),
        lambda: model.trainee(Lora(), adapter),
    ):
        with pytest.raises(UserError, match="token_embd.weight.*without adapters"):
            use()


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_means_the_same_trained_and_served(tiny_model, name):
    model = tiny_model(name)
    trainee, batch = trainee_of(model), stream([40])
    logits = model.logits(batch.ids, trainee.adapter()).astype(np.float64)
    rows = np.flatnonzero(batch.targets >= 0)
    log_sums = np.logaddexp.reduce(logits[rows], axis=1)
    assert (log_sums - logits[rows, batch.targets[rows]]).sum() == pytest.approx(trainee.evaluate(batch), rel=1e-5)
    assert np.abs(logits - model.logits(batch.ids)).max() > 1e-3, "the adapter did nothing"
    np.testing.assert_allclose(
        model.decoder(trainee.adapter(), context=64).feed([batch.ids.tolist()])[0], logits[-1], rtol=2e-4, atol=2e-4
    )


def test_prompts_of_every_length_do_not_pile_up(tiny_model, monkeypatch):
    from anytune.engine.numpy import engine

    model, limit = tiny_model("llama"), 1 << 20
    monkeypatch.setattr(engine, "FORGET", limit)
    largest = 0
    for length in range(1, 45):
        model.engine.release()
        model.logits(IDS[:length])
        largest = max(largest, model.engine.pool.bytes)
    model.engine.release()
    for _ in range(2):
        for length in range(1, 45):
            model.logits(IDS[:length])
            assert model.engine.pool.bytes <= limit + largest


def test_too_long_wrong_ids_and_strange_adapters_are_refused(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(UserError, match="context"):
        model.decoder(context=16).feed([IDS])
    for ids in ([], [-1], [10**6], [[1]]):
        with pytest.raises(UserError):
            model.logits(ids)
    other = tiny_model("qwen2").trainee(Lora(rank=2), ubatch=8).adapter()
    with pytest.raises(UserError, match="trained on"):
        model.logits(IDS, other)


def test_devices_and_threads_are_checked(tiny_model):
    path = tiny_model("llama").gguf.path
    with pytest.raises(UserError, match="--device"):
        load(path, device="tpu")
    with pytest.raises(UserError, match="--threads"):
        load(path, threads=0)
    assert load(path, device="cpu", threads=1).engine.name == "numpy"


def test_the_engine_is_told_of_the_widest_head(tiny_model):
    """Kernels fit heads up to a width: what records its steps must know."""
    assert tiny_model("gemma4").engine.widest == 32 and tiny_model("qwen2").engine.widest == 16


def test_blocks_behind_the_layers_change_nothing(tiny_model, tmp_path):
    """Those of speculative decoding: skipped here and in llama.cpp, kept in the file."""
    from anytune.gguf import GGUF, write_gguf
    from tests.support import tiny

    plain = tiny_model("qwen35")
    count = plain.config.layers
    with GGUF.open(plain.gguf.path) as file:
        last = f"blk.{count - 1}."  # a layer of another kind than block `count` would be
        more = {name.replace(last, f"blk.{count}."): name for name in file.tensors if name.startswith(last)}
        tensors = [(name, t.shape, "F32", file.float32(name)) for name, t in file.tensors.items()]
        tensors += [(name, file.tensors[of].shape, "F32", 9 * file.float32(of)) for name, of in more.items()]
        values = file.metadata | {"qwen35.block_count": count + 1, "qwen35.nextn_predict_layers": 1}
        path = tmp_path / "behind.gguf"
        write_gguf(path, values, tensors, kinds=file.kinds)
    model = load(path, threads=1)
    assert model.config.layers == count and tiny.SHAPES["qwen35"].layers == count
    np.testing.assert_array_equal(model.logits(IDS), plain.logits(IDS))
    names = model.trainee(Lora(rank=2), ubatch=8).names
    assert names and not any(name.startswith(f"blk.{count}.") for name in names)
    assert f"blk.{count}.ffn_down.weight" in model.gguf.tensors
