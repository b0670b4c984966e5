"""Trained adapters, saved by us, act in llama.cpp and in transformers + peft as they act here."""

import copy

import numpy as np
import pytest

import anytune
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.llamacpp.judge import llamacpp_logprobs
from anytune.model import naming
from anytune.model.architectures import ARCHITECTURES
from tests.peers.batches import examples, micro_batch, targets_of
from tests.peers.conftest import IDS
from tests.support import models, tiny, twin
from tests.support.distributions import kl, log_softmax
from tests.support.require import need

TEXT = "Dear all, the meeting has moved to Thursday. Please bring your notes and, if you can, some cake."


AGREES = 1e-4  # the largest relative distance of two changes that are one


def train(model, steps: int, lr: float, **lora):
    """An Adapter after `steps` AdamW steps at a rate large enough to be seen."""
    trainee = model.trainee(anytune.Lora(**{"rank": 4, "alpha": 16.0} | lora), ubatch=64)
    rng = np.random.default_rng(8)
    for step in range(1, steps + 1):
        ids = examples(rng, 2, 32, model.config.vocabulary)
        batch = micro_batch(ids, targets_of(ids, silent=8))
        trainee.accumulate(batch, 1 / batch.loss_tokens, step, 0)
        trainee.update(lr, step, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0, max_grad_norm=1.0)
    return trainee.adapter()


def change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How the log-probabilities moved: [n, vocab] nats."""
    return log_softmax(after) - log_softmax(before)


def differ(mine: np.ndarray, theirs: np.ndarray) -> float:
    """Distance of two changes, relative to theirs."""
    return float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs))


@pytest.fixture(scope="module")
def small(tiny_file):
    """(name, modules, rslora) -> (path, model, adapter)."""

    def make(name: str, modules: str = "all", rslora: bool = False):
        model = anytune.load(tiny_file(name), device="numpy", threads=1)
        return tiny_file(name), model, train(model, 6, 2e-2, modules=modules, rslora=rslora)

    return make


TINY = [
    *(
        (name, "all,experts" if name in tiny.MIXTURES else "all", False)
        for name in dict.fromkeys((*tiny.EACH, *tiny.MIXTURES))
    ),
    ("qwen3moe", "experts", True),
    ("gpt-oss", "attn_q,ffn_up_exps", False),
    ("glm4moe", "ffn_gate_exps,ffn_down_exps", False),
    ("mixtral", "ffn_down_exps", False),
    ("llama", "all,output", True),
    ("qwen3", "attn_q,ffn_down,output", False),
    ("qwen35-wide", "all,ssm_alpha,ssm_beta", False),
    ("gemma4-experts", "all", False),
    ("gemma4-experts", "all,experts", True),
]
REORDERED = [name for name in (*tiny.EACH, "mixtral", "qwen35-wide") if ARCHITECTURES[tiny.SHAPES[name].arch].reordered]


@pytest.mark.parametrize("name, modules, rslora", TINY)
def test_tiny_in_llamacpp(case, small, tmp_path, name, modules, rslora):
    path, model, adapter = small(name, modules, rslora)
    adapter.save(tmp_path / "a.gguf")
    (theirs,) = llamacpp_logprobs(path, [IDS], vocab=320, adapter=tmp_path / "a.gguf", threads=1)
    mine = model.logits(IDS, adapter)
    moved = change(case(name).llamacpp, theirs)
    assert kl(case(name).llamacpp, theirs).mean() > 0.05, "the adapter does nothing"
    assert kl(theirs, mine).max() < (1e-5 if name.startswith("gemma") else 1e-8)
    assert differ(change(model.logits(IDS), mine), moved) < (
        5e-3 if name.startswith("gemma") else AGREES
    )  # f16 GELU table


@pytest.mark.parametrize("name", REORDERED)
def test_tiny_in_another_order_is_seen(case, small, tmp_path, name):
    """The control: rows and columns as Hugging Face has them, as a converter that does not move them writes them."""
    path, model, adapter = small(name)
    wrong, arch = copy.deepcopy(adapter), model.config.arch
    for tensor, (a, b) in adapter.tensors.items():
        rows, columns = naming.orders(arch, tensor, model.gguf)
        wrong.tensors[tensor] = naming.arranged(a, (None, columns)), naming.arranged(b, (rows, None))
    wrong.save(tmp_path / "a.gguf")
    (theirs,) = llamacpp_logprobs(path, [IDS], vocab=320, adapter=tmp_path / "a.gguf", threads=1)
    moved = change(case(name).llamacpp, theirs)
    assert differ(change(model.logits(IDS), model.logits(IDS, adapter)), moved) > 100 * AGREES


@pytest.mark.parametrize("name", ["lfm2moe", "deepseek2"])
def test_tiny_out_of_place_is_seen(case, small, tmp_path, name):
    """The control where nothing is moved: columns of A one place further."""
    path, model, adapter = small(name, "all,experts")
    wrong = copy.deepcopy(adapter)
    wrong.tensors = {tensor: (np.roll(a, 1, -1), b) for tensor, (a, b) in adapter.tensors.items()}
    wrong.save(tmp_path / "a.gguf")
    (theirs,) = llamacpp_logprobs(path, [IDS], vocab=320, adapter=tmp_path / "a.gguf", threads=1)
    moved = change(case(name).llamacpp, theirs)
    assert differ(change(model.logits(IDS), model.logits(IDS, adapter)), moved) > 100 * AGREES


@pytest.mark.parametrize("name", tiny.MIXTURES)
def test_pairs_of_other_experts_are_seen(case, small, tmp_path, name):
    """The control: each expert has its neighbour's pair."""
    path, model, adapter = small(name, "experts")
    wrong = copy.deepcopy(adapter)
    wrong.tensors = {tensor: (np.roll(a, 1, 0), np.roll(b, 1, 0)) for tensor, (a, b) in adapter.tensors.items()}
    wrong.save(tmp_path / "a.gguf")
    (theirs,) = llamacpp_logprobs(path, [IDS], vocab=320, adapter=tmp_path / "a.gguf", threads=1)
    moved = change(case(name).llamacpp, theirs)
    assert differ(change(model.logits(IDS), model.logits(IDS, adapter)), moved) > 100 * AGREES


@pytest.mark.parametrize("name", ["attn_q_a", "attn_kv_a_mqa", "output"])
def test_what_llamacpp_ignores_is_refused(tiny_file, name):
    model = anytune.load(tiny_file("deepseek2"), device="numpy", threads=1)
    assert not any("attn_q_" in tensor or "kv" in tensor for tensor in model.trainee(anytune.Lora()).names)
    with pytest.raises(UserError, match=f"llama.cpp computes {name} of deepseek2 without adapters"):
        model.trainee(anytune.Lora(modules=f"all,{name}"))


@pytest.mark.parametrize("name, part", [("deepseek2", "attn_v_b"), ("deepseek2-old", "attn_kv_b")])
def test_adapters_of_what_makes_keys_and_values_of_latents_are_refused(tiny_file, name, part):
    model = anytune.load(tiny_file(name), device="numpy", threads=1)
    tensor = f"blk.0.{part}.weight"
    *heads, out, width = model.gguf.tensors[tensor].shape
    pair = np.ones((*heads, 2, width), np.float32), np.ones((*heads, out, 2), np.float32)
    with pytest.raises(UserError, match=f"{tensor}.*without an adapter"):
        model.logits(IDS, Adapter({tensor: pair}, 2, 4.0, False, "deepseek2"))


def test_ranks_beside_each_other_are_seen_in_peft(small, tmp_path):
    """The control: columns of B by experts, as the rows of A are."""
    arrays = need("safetensors.numpy")
    path, model, adapter = small("qwen3moe", "experts")
    adapter.save(tmp_path / "peft", gguf=model.gguf)
    file, experts = tmp_path / "peft" / "adapter_model.safetensors", model.config.router.experts
    tensors = arrays.load_file(file)
    for name, b in tensors.items():
        if "lora_B" in name:
            tensors[name] = b.reshape(len(b), -1, experts).swapaxes(1, 2).reshape(b.shape).copy()
    arrays.save_file(tensors, file)
    assert kl(in_peft(path, tmp_path / "peft", IDS), model.logits(IDS, adapter)).max() > 1e-2


@pytest.mark.parametrize("name, modules, rslora", TINY)
def test_tiny_in_peft(small, tmp_path, name, modules, rslora):
    path, model, adapter = small(name, modules, rslora)
    adapter.save(tmp_path / "peft", gguf=model.gguf)
    theirs = in_peft(path, tmp_path / "peft", IDS)
    mine = model.logits(IDS, adapter)
    assert kl(model.logits(IDS), mine).mean() > 0.05
    assert kl(theirs, mine).max() < 1e-8
    again = Adapter.load(tmp_path / "peft", gguf=model.gguf)
    assert (again.rank, again.alpha, again.rslora) == (adapter.rank, adapter.alpha, adapter.rslora)
    assert set(again.tensors) == set(adapter.tensors)
    for tensor, pair in adapter.tensors.items():
        for found, right in zip(again.tensors[tensor], pair):
            np.testing.assert_array_equal(found, right, tensor)


def in_peft(path, folder, ids) -> np.ndarray:
    peft = need("peft")
    wrapped = peft.PeftModel.from_pretrained(twin.transformers_model(path), folder)
    return twin.logits(wrapped.eval(), ids)


@pytest.fixture(scope="module")
def smollm2_adapter():
    """(model, adapter): SmolLM2 from its Q4_1 file, and an adapter trained on it."""
    model = anytune.load(models.smollm2(), device="numpy", threads=2)
    return model, train(model, 5, 5e-3)


@pytest.fixture(scope="module")
def smollm2_moves(smollm2_adapter, smollm2_f32, tmp_path_factory):
    """Adapter -> (our log-probabilities' change, llama.cpp's on the F32 copy), [n, vocab]."""
    need("xllamacpp")
    model, trained = smollm2_adapter
    ids = model.tokenize(TEXT)
    folder = tmp_path_factory.mktemp("adapters")
    ask = dict(vocab=model.config.vocabulary, threads=2)
    (base,) = llamacpp_logprobs(smollm2_f32, [ids], **ask)
    mine = change(model.logits(ids), model.logits(ids, trained))

    def moves(saved) -> tuple[np.ndarray, np.ndarray]:
        saved.save(folder / "a.gguf")
        (after,) = llamacpp_logprobs(smollm2_f32, [ids], adapter=folder / "a.gguf", **ask)
        return mine, change(base, after)

    return moves


def test_smollm2_in_llamacpp(smollm2_adapter, smollm2_moves):
    mine, theirs = smollm2_moves(smollm2_adapter[1])
    assert np.abs(theirs).max() > 1, "the adapter does nothing"
    assert differ(mine, theirs) < AGREES


def test_rows_of_another_order_are_seen(smollm2_adapter, smollm2_moves):
    """The control: q and k rows in transformers' order, as a converter that does not permute writes them."""
    model, trained = smollm2_adapter
    wrong = copy.deepcopy(trained)
    for name, (a, b) in wrong.tensors.items():
        heads = {"attn_q": model.config.heads, "attn_k": model.config.n_kv_heads}.get(name.split(".")[2])
        if heads:
            wrong.tensors[name] = a, twin.unpermute(b, heads)
    assert differ(*smollm2_moves(wrong)) > 100 * AGREES


def test_smollm2_in_peft(smollm2_adapter, tmp_path):
    model, adapter = smollm2_adapter
    ids = model.tokenize(TEXT)
    adapter.save(tmp_path, gguf=model.gguf)
    assert kl(in_peft(models.smollm2(), tmp_path, ids), model.logits(ids, adapter)).max() < 1e-7
