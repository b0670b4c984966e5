"""Adapters of experts as peft writes them: fused parameters, one linear an expert, and the axes of old versions."""

import json
import random

import numpy as np
import pytest

import anytune
from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from tests.export import pairs
from tests.gguf import fuzz_reader
from tests.support import tiny, twin
from tests.support.distributions import kl
from tests.support.require import need

BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("experts"), {}

    def model(name):
        if name not in made:
            path = tiny.write(folder / f"{name}.gguf", name, **tiny.GENTLE.get(name, {}))
            made[name] = anytune.load(path, device="numpy", threads=1)
        return made[name]

    return model


def randomized(wrapped):
    """B of a fresh adapter is zero: here it is not. And A is the same in every run."""
    torch = need("torch")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        elif "lora_A" in name:
            parameter.data = (3 * parameter.shape[-1]) ** -0.5 * torch.randn(parameter.shape, generator=generator)
    return wrapped.eval()


@pytest.mark.parametrize(
    "name, parameters, rslora",
    [
        ("qwen3moe", BOTH, True),
        ("gpt-oss", BOTH, False),
        ("qwen35moe", BOTH[:1], False),
        ("mixtral", BOTH[1:], False),
        ("glm4moe", ["model.layers.2.mlp.experts.gate_up_proj", "mlp.gate.weight"], False),
    ],
)
def test_what_peft_made_acts_here_as_there(base, tmp_path, name, parameters, rslora):
    peft, model = need("peft"), base(name)
    settings = peft.LoraConfig(
        r=3, lora_alpha=5, use_rslora=rslora, target_modules=["q_proj"], target_parameters=parameters
    )
    wrapped = randomized(peft.get_peft_model(twin.transformers_model(model.gguf.path), settings))
    wrapped.save_pretrained(tmp_path / "peft")
    adapter = Adapter.load(tmp_path / "peft", gguf=model.gguf)
    assert adapter.rank == 3
    ours, plain = model.logits(pairs.IDS, adapter), model.logits(pairs.IDS)
    assert kl(plain, ours).mean() > 0.02, "the adapter does nothing"
    assert kl(twin.logits(wrapped, pairs.IDS), ours).max() < 1e-8


def written(folder, tensors, **config):
    """A peft folder of these weights, by their names within the model."""
    folder.mkdir(exist_ok=True)
    named = {
        f"base_model.model.model.{name}.weight": np.ascontiguousarray(w, np.float32) for name, w in tensors.items()
    }
    need("safetensors.numpy").save_file(named, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, "task_type": "CAUSAL_LM"} | config)
    )
    return folder


@pytest.mark.parametrize(
    "name, names", [("qwen3moe", ("gate_proj", "up_proj", "down_proj")), ("mixtral", ("w1", "w3", "w2"))]
)
def test_one_linear_an_expert_is_read_as_peft_reads_it(base, tmp_path, name, names):
    """As adapters were stored when transformers had a linear for each expert."""
    peft, model, rng = need("peft"), base(name), np.random.default_rng(0)
    c, block = model.config, "block_sparse_moe" if name == "mixtral" else "mlp"
    sizes = {
        names[0]: (c.expert_hidden, c.width),
        names[1]: (c.expert_hidden, c.width),
        names[2]: (c.width, c.expert_hidden),
    }
    tensors = {}
    for layer in range(c.layers):
        for expert in range(c.router.experts):
            for part, (out, inner) in sizes.items():
                place = f"layers.{layer}.{block}.experts.{expert}.{part}"
                tensors[f"{place}.lora_A"] = rng.standard_normal((2, inner)) / inner**0.5
                tensors[f"{place}.lora_B"] = 0.5 * rng.standard_normal((out, 2))
    folder = written(tmp_path / "peft", tensors, target_modules=list(names))
    adapter = Adapter.load(folder, gguf=model.gguf)
    ours = model.logits(pairs.IDS, adapter)
    assert kl(model.logits(pairs.IDS), ours).mean() > 0.02
    if name == "qwen3moe":
        theirs = peft.PeftModel.from_pretrained(twin.transformers_model(model.gguf.path), folder).eval()
        assert kl(twin.logits(theirs, pairs.IDS), ours).max() < 1e-8
    for tensor, (a, b) in adapter.tensors.items():
        layer, part = tensor.split(".")[1], tensor.split("_")[1]
        place = f"layers.{layer}.{block}.experts.1.{names[('gate', 'up', 'down').index(part)]}"
        np.testing.assert_array_equal(a[1], tensors[f"{place}.lora_A"].astype(np.float32))
        np.testing.assert_array_equal(b[1], tensors[f"{place}.lora_B"].astype(np.float32))


@pytest.mark.parametrize("name, version", [("qwen3moe", "0.18.0"), ("mixtral", "0.18.0"), ("mixtral", "0.19.1")])
def test_axes_of_old_versions(base, tmp_path, name, version):
    """peft before 0.19.1 multiplied the two matrices to what transformers has turned: mixtral's are square."""
    model, rng = base(name), np.random.default_rng(0)
    c, n = model.config, model.config.router.experts
    old = version == "0.18.0"
    out, inner = (c.expert_hidden, c.width) if old else (c.width, c.expert_hidden)
    a, b = rng.standard_normal((2 * n, inner)), rng.standard_normal((out, 2 * n))
    place = "layers.0.mlp.experts"
    tensors = {f"{place}.lora_A": a, f"{place}.lora_B": b}
    folder = written(tmp_path / "peft", tensors, target_modules=[], target_parameters=BOTH[1:], peft_version=version)
    ((tensor, (mine_a, mine_b)),) = Adapter.load(folder, gguf=model.gguf).tensors.items()
    assert tensor == "blk.0.ffn_down_exps.weight"
    change = np.einsum("ore,eri->eoi", b.reshape(out, 2, n), a.reshape(n, 2, inner))
    np.testing.assert_allclose(mine_b @ mine_a, change.swapaxes(1, 2) if old else change, rtol=1e-5, atol=1e-5)


def test_folders_that_contradict_themselves_are_refused(base, tmp_path):
    model = base("qwen3moe")
    n, d, inner = model.config.router.experts, model.config.width, model.config.expert_hidden
    place = "layers.0.mlp.experts"
    outer = {f"{place}.lora_A": np.ones((2 * n, inner)), f"{place}.lora_B": np.ones((d, 2 * n))}
    nested = {
        f"{place}.base_layer.lora_A": np.ones((2 * n, d)),
        f"{place}.base_layer.lora_B": np.ones((2 * inner, 2 * n)),
    }
    fitting = {"target_modules": [], "target_parameters": BOTH}
    one = f"{place}.9.gate_proj"
    cases = [
        (outer, {"target_parameters": BOTH}, "target_parameters"),
        (outer, {"target_modules": ["q_proj"]}, "target_parameters"),
        (nested, fitting, "target_parameters"),
        (outer | nested, fitting | {"target_parameters": "experts"}, "list of names"),
        (outer | nested, fitting | {"r": 3}, "rank 3"),
        ({**nested, f"{place}.lora_A": np.ones((2 * n, inner)), f"{place}.lora_B": np.ones((d, 4))}, fitting, "rank 2"),
        ({**nested, f"{place}.lora_A": np.ones((2 * n, d)), f"{place}.lora_B": np.ones((d, 2 * n))}, fitting, "shape"),
        ({f"{one}.lora_A": np.ones((2, d)), f"{one}.lora_B": np.ones((inner, 2))}, {}, "more than the model has"),
        ({f"{place}.1.gate_proj.lora_A": np.ones((2, d))}, {}, "only one"),
        ({f"{place}.base_layer.base_layer.lora_A": np.ones((2, d))}, {}, "cannot be adapted"),
    ]
    for number, (tensors, config, message) in enumerate(cases):
        folder = written(tmp_path / str(number), tensors, **config)
        with pytest.raises(UserError, match=message):
            Adapter.load(folder, gguf=model.gguf)
    adapter = Adapter.load(written(tmp_path / "good", outer | nested, **fitting), gguf=model.gguf)
    assert set(adapter.tensors) == {f"blk.0.ffn_{part}_exps.weight" for part in ("gate", "up", "down")}


@pytest.mark.parametrize("name", ["qwen3moe", "gpt-oss"])
def test_mutated_folders_are_refused_or_sound(base, tmp_path, name):
    """Headers and settings that lie, with and without the base: a UserError, or pairs that fit it."""
    model = base(name)
    adapter = pairs.adapter(model.gguf.path, rank=2, parts=("blk.0.ffn_",))
    adapter.save(tmp_path / "peft", gguf=model.gguf)
    results = set()
    for file in (tmp_path / "peft" / "adapter_model.safetensors", tmp_path / "peft" / "adapter_config.json"):
        good = file.read_bytes()
        for number in range(300):
            file.write_bytes(fuzz_reader.mutate(random.Random(number), [good[:1000]]) + good[1000:])
            try:
                read = Adapter.load(tmp_path / "peft", gguf=model.gguf if number % 3 else None)
                if number % 3:
                    read.check(model.gguf)
                results.add("accepted")
            except UserError as error:
                assert "\n" not in str(error)
                results.add("refused")
        file.write_bytes(good)
    assert results == {"accepted", "refused"}
