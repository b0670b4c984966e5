"""Every setting of peft's LoraConfig is honoured as peft honours it, without effect, or refused by its name."""

import dataclasses
import json
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.adapter import settings as adapter_settings
from anytune.adapter.adapter import Adapter
from anytune.adapter.fit import level
from anytune.adapter.settings import HONOURED, REFUSED, WITHOUT_EFFECT, read_settings
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from tests.support import tiny
from tests.support.require import need
from tests.test_adapter_files import IDS, ask_llamacpp, random_adapter

GOOD = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "none"}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("base") / "llama.gguf", "llama")
    with GGUF.open(path) as gguf:
        yield path, gguf


def test_every_field_of_the_installed_peft_is_known():
    peft = need("peft")
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    known = {*HONOURED, *WITHOUT_EFFECT, *REFUSED}
    assert fields <= known, f"new in peft {peft.__version__}: {sorted(fields - known)}"
    assert len(known) == len(HONOURED) + len(WITHOUT_EFFECT) + len(REFUSED)


def test_settings_are_refused_by_name_unless_they_are_off():
    for key in (*REFUSED, "a_setting_of_tomorrow"):
        for value in (True, 1, "yes", [3], {"a": 1}):
            with pytest.raises(UserError, match=rf"\b{key}\b"):
                read_settings(GOOD | {key: value}, "x.json")
        for value in (None, False, [], {}):
            read_settings(GOOD | {key: value}, "x.json")
    assert set(GOOD) <= {*HONOURED, *REFUSED}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("r", 0),
        ("r", True),
        ("r", 2.0),
        ("r", None),
        ("lora_alpha", "8"),
        ("lora_alpha", -1),
        ("use_rslora", 1),
        ("use_rslora", "true"),
        ("rank_pattern", {"q_proj": 0}),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", {"q": "1"}),
        ("alpha_pattern", {"(": 1}),
        ("alpha_pattern", {"(a+)+x": 1}),
        ("alpha_pattern", {"a*b*c*d*e*": 1}),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "olora"),
        ("init_lora_weights", 1),
        ("peft_type", "ADALORA"),
    ],
)
def test_values_that_make_no_sense_name_their_key(key, value):
    with pytest.raises(UserError, match=rf"\b{key}\b"):
        read_settings(GOOD | {key: value}, "x.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=9), x, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from([*HONOURED, *WITHOUT_EFFECT, *REFUSED]) | st.text(max_size=9), JSON, max_size=5))
def test_any_json_is_read_or_refused(changes):
    try:
        found = read_settings(GOOD | changes, "x.json")
        found.check(["model.layers.0.self_attn.q_proj", "lm_head"], "x.json")
        assert found.of("model.layers.0.self_attn.q_proj")[1] > 0
    except UserError as error:
        assert "\n" not in str(error)


def peft_logits(path, folder):
    from tests.support import twin

    peft = need("peft")
    return twin.logits(peft.PeftModel.from_pretrained(twin.transformers_model(path), folder).eval(), IDS)


def made_by_peft(path, folder, seed=0, **config):
    """A folder that peft saves, its matrices random (but those that the start needs)."""
    from tests.support import twin

    peft, torch = need("peft"), need("torch")
    torch.manual_seed(seed)
    model = peft.get_peft_model(twin.transformers_model(path), peft.LoraConfig(**{"r": 4, "lora_alpha": 8} | config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


def differs(path, folder, gguf) -> float:
    """The largest distance of our logits with a peft folder from peft's own."""
    import anytune

    model = anytune.load(path, device="numpy", threads=1)
    return float(np.abs(model.logits(IDS, Adapter.load(folder, gguf)) - peft_logits(path, folder)).max())


@pytest.mark.parametrize(
    "start", [True, False, "gaussian", "orthogonal", "eva", "mica", "pissa", "pissa_niter_4", "olora"]
)
def test_starts_are_what_they_are_in_peft(base, tmp_path, start):
    """Those that leave the base alone are loaded and compute the same; the others are refused, and would be wrong."""
    path, gguf = base
    folder = made_by_peft(path, tmp_path / "a", init_lora_weights=start, target_modules=["q_proj", "down_proj"])
    if isinstance(start, bool) or start in adapter_settings.STARTS:
        assert differs(path, folder, gguf) < 1e-4
        return
    with pytest.raises(UserError, match="init_lora_weights"):
        Adapter.load(folder, gguf)
    config = json.loads((folder / "adapter_config.json").read_text())
    ours = tmp_path / "plain"
    ours.mkdir()
    (ours / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": True}))
    (ours / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes())
    import anytune

    model = anytune.load(path, device="numpy", threads=1)
    assert np.abs(model.logits(IDS, Adapter.load(ours, gguf)) - peft_logits(path, folder)).max() > 0.1


@pytest.mark.parametrize("seed", range(4))
def test_ranks_and_alphas_by_pattern_are_pefts(base, tmp_path, seed):
    path, gguf = base
    rng = random.Random(seed)
    names = [
        "q_proj",
        "v_proj",
        r"0\.self_attn.k_proj",
        "layers.1.mlp.down_proj",
        r"model.layers.\d+.mlp.up_proj",
        "up_proj",
        "^model.layers.0.self_attn.o_proj",
        "mlp",
        "proj",
    ]
    config = {
        "rank_pattern": {name: rng.randint(1, 6) for name in rng.sample(names, 4)},
        "alpha_pattern": {name: rng.choice([1, 3, 16, 32]) for name in rng.sample(names, 4)},
        "use_rslora": bool(seed % 2),
        "r": rng.randint(1, 6),
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
        "exclude_modules": ["layers.0.mlp.up_proj"],
        "layers_to_transform": [0] if seed == 3 else None,
    }
    folder = made_by_peft(path, tmp_path / "a", seed, **config)
    assert differs(path, folder, gguf) < 1e-4
    adapter = Adapter.load(folder, gguf)
    adapter.save(tmp_path / "again", gguf)
    assert Adapter.load(tmp_path / "again", gguf).scale == pytest.approx(adapter.scale)
    assert differs(path, tmp_path / "again", gguf) < 1e-4


def test_weights_and_settings_that_contradict_each_other_are_refused(base, tmp_path):
    path, gguf = base
    folder = made_by_peft(path, tmp_path / "a", target_modules=["q_proj", "v_proj"])
    config = json.loads((folder / "adapter_config.json").read_text())
    for change, said in [
        ({"target_modules": ["q_proj"]}, "target_modules excludes .*v_proj"),
        ({"exclude_modules": ["q_proj"]}, "exclude_modules excludes .*q_proj"),
        ({"layers_to_transform": 1}, "layers_to_transform excludes .*layers.0"),
        ({"r": 8}, "the rank 8, and its weights have 4"),
        ({"rank_pattern": {"q_proj": 2}}, "q_proj the rank 2"),
    ]:
        (folder / "adapter_config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=said):
            Adapter.load(folder, gguf)


def varied(gguf, path):
    """A GGUF adapter whose tensors have the ranks 1 to 5."""
    tensors, rng = [], np.random.default_rng(3)
    for number, (name, (a, b)) in enumerate(random_adapter(gguf, rank=5).tensors.items()):
        rank = 1 + number % 5
        tensors += [
            (f"{name}.lora_a", (rank, a.shape[1]), "F32", np.ascontiguousarray(a[:rank])),
            (f"{name}.lora_b", (b.shape[0], rank), "F32", np.ascontiguousarray(b[:, :rank])),
        ]
    rng.shuffle(tensors)
    write_gguf(
        path,
        {"general.type": "adapter", "adapter.type": "lora", "general.architecture": "llama", "adapter.lora.alpha": 3.0},
        tensors,
    )
    return path


def test_ranks_of_a_gguf_adapter_are_llamacpps(base, tmp_path):
    need("xllamacpp")
    import anytune

    path, gguf = base
    file = varied(gguf, tmp_path / "a.gguf")
    adapter = Adapter.load(file, gguf)
    adapter.save(tmp_path / "level.gguf")
    theirs, level = ask_llamacpp(path, file), ask_llamacpp(path, tmp_path / "level.gguf")
    mine = anytune.load(path, device="numpy", threads=1).logits(IDS, adapter)
    from tests.support.distributions import log_softmax

    assert adapter.rank == 5 and np.abs(log_softmax(mine) - theirs).max() < 1e-3 and np.abs(theirs - level).max() < 1e-3


def test_filled_up_ranks_stay_zero_in_training(base, tmp_path):
    import anytune

    path, gguf = base
    adapter = Adapter.load(varied(gguf, tmp_path / "a.gguf"), gguf)
    (tmp_path / "d.txt").write_text("the cat sat on a warm stone in the sun\n" * 9)
    run = anytune.finetune(
        anytune.load(path, device="numpy", threads=1),
        tmp_path / "d.txt",
        adapter=adapter,
        max_steps=3,
        context=32,
        ubatch=32,
        batch=32,
        run_dir=str(tmp_path / "run"),
        quiet=True,
    )
    for name, (a, b) in adapter.tensors.items():
        new_a, new_b = run.adapter.tensors[name]
        unused = ~a.any(axis=1)
        assert not new_a[unused].any() and not new_b[:, unused].any() and np.abs(new_b - b).max() > 0


def test_ranks_that_differ_by_far_are_refused():
    def pair(rank):
        return np.zeros((rank, 8), np.float32), np.zeros((8, rank), np.float32)

    few = {f"t{i}": pair(1) for i in range(99)}
    assert level("x", few | {"z": pair(9)}, dict.fromkeys([*few, "z"], 1.0))[1] == 9
    with pytest.raises(UserError, match="differ by too much"):
        level("x", few | {"z": pair(64)}, dict.fromkeys([*few, "z"], 1.0))


@pytest.mark.parametrize("key", ["adapter.alora.invocation_tokens", "adapter.lora.of_tomorrow"])
def test_a_gguf_adapter_that_means_more_is_refused(base, tmp_path, key):
    _, gguf = base
    value = np.array([3], np.uint32) if "tokens" in key else 1
    write_gguf(
        tmp_path / "a.gguf",
        {
            "general.type": "adapter",
            "adapter.type": "lora",
            "general.architecture": "llama",
            "adapter.lora.alpha": 3.0,
            key: value,
        },
        [
            (f"blk.0.attn_k.weight.lora_{side}", shape, "F32", np.zeros(shape, np.float32))
            for side, shape in (("a", (1, 64)), ("b", (64, 1)))
        ],
    )
    with pytest.raises(UserError, match=key):
        Adapter.load(tmp_path / "a.gguf", gguf)
