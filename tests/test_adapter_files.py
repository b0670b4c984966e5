"""Adapters as files: written, read back, understood by llama.cpp and peft, and refused when they are bad."""

import json
import random
import struct

import numpy as np
import pytest

from anytune.adapter.adapter import Adapter
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from anytune.llamacpp.judge import llamacpp_logprobs
from tests.gguf import fuzz_reader
from tests.support import tiny
from tests.support.distributions import log_softmax
from tests.support.require import need

IDS = [5, 17, 80, 33, 141, 200, 9, 64, 77, 310, 12, 45]
ARCHITECTURES = ("llama", "qwen2", "qwen3", "gemma3")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """name -> (path, open GGUF) of a tiny random model."""
    folder, found = tmp_path_factory.mktemp("base"), {}

    def get(name):
        if name not in found:
            path = tiny.write(folder / f"{name}.gguf", name)
            found[name] = path, GGUF.open(path)
        return found[name]

    yield get
    for _, gguf in found.values():
        gguf.close()


def random_adapter(gguf, rank=4, seed=0, only=(), **more):
    """An adapter of every linear (or of the names in `only`) that moves the logits by some nats."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, t in gguf.tensors.items():
        linear = name.startswith("blk.") and len(t.shape) == 2 or name == "output.weight"
        if linear and (not only or name in only):
            a, b = rng.standard_normal((rank, t.shape[1])), rng.standard_normal((t.shape[0], rank))
            tensors[name] = (a / t.shape[1] ** 0.5).astype(np.float32), (b * 0.3).astype(np.float32)
    return Adapter(tensors, rank, 8.0, **{"architecture": gguf.metadata["general.architecture"], **more})


def ask_llamacpp(path, adapter=None):
    """llama.cpp's log-probabilities after each of IDS, float32 [n, vocab]."""
    return llamacpp_logprobs(path, [IDS], vocab=320, adapter=adapter, threads=1)[0]


def disagreement(one, logits, plain):
    """The difference of two adapted models' log-probabilities, relative to the adapter's effect (rms)."""
    other = log_softmax(logits)
    change = np.sqrt(np.mean((one - plain) ** 2))
    assert change > 0.1, "the adapter does nothing"
    return np.sqrt(np.mean((one - other) ** 2)) / change


def assert_same(one, other):
    assert one.tensors.keys() == other.tensors.keys()
    for name, pair in one.tensors.items():
        for x, y in zip(pair, other.tensors[name], strict=True):
            assert y.dtype == np.float32 and np.array_equal(x, y), name
    assert (one.rank, one.rslora, one.architecture) == (other.rank, other.rslora, other.architecture)
    assert one.alpha == other.alpha and one.scale == other.scale


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_both_forms_come_back_unchanged(base, tmp_path, arch, rslora):
    _, gguf = base(arch)
    adapter = random_adapter(
        gguf, rank=5, rslora=rslora, base_name="Tiny", base_sha256="ab" * 32, chat_template="{{ messages }} ü"
    )
    adapter.alpha = 7.3
    adapter.save(tmp_path / "a.gguf")
    adapter.save(tmp_path / "folder", gguf)
    for path in (tmp_path / "a.gguf", tmp_path / "folder"):
        back = Adapter.load(path, gguf)
        assert_same(adapter, back)
        assert (back.base_name, back.base_sha256) == ("Tiny", "ab" * 32)
        assert back.chat_template == "{{ messages }} ü"


def test_the_same_adapter_gives_the_same_bytes(base, tmp_path):
    _, gguf = base("llama")
    for name in ("a", "b"):
        adapter = random_adapter(gguf, base_name="x", chat_template="y")
        adapter.save(tmp_path / f"{name}.gguf")
        adapter.save(tmp_path / name, gguf)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_llamacpp_scale_of_rslora(base, tmp_path):
    """llama.cpp computes alpha / rank; the stored alpha must make that our scale."""
    _, gguf = base("llama")
    adapter = random_adapter(gguf, rank=16, rslora=True)
    adapter.save(tmp_path / "a.gguf")
    with GGUF.open(tmp_path / "a.gguf") as file:
        assert file.metadata["adapter.lora.alpha"] == 8.0 * 4
        assert file.kinds["adapter.lora.alpha"] == "float32"
        a = file.tensors["blk.0.attn_k.weight.lora_a"]
        assert a.shape == (16, gguf.tensors["blk.0.attn_k.weight"].shape[1])
    assert adapter.scale == 2.0


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("arch", [*ARCHITECTURES, "mistral", "llama-tied"])
def test_llamacpp_and_peft_agree_on_the_adapter(base, tmp_path, arch, rslora):
    """One adapter, both forms, two programs: the same logits, which differ from the base's."""
    need("xllamacpp")
    peft = need("peft")
    from tests.support import twin

    path, gguf = base(arch)
    adapter = random_adapter(gguf, rslora=rslora)
    adapter.save(tmp_path / "a.gguf")
    adapter.save(tmp_path / "folder", gguf)
    plain, one = ask_llamacpp(path), ask_llamacpp(path, tmp_path / "a.gguf")
    model = peft.PeftModel.from_pretrained(twin.transformers_model(path), tmp_path / "folder")
    trained = sorted(name for name, _ in model.named_parameters() if "lora_" in name)
    assert len(trained) == 2 * len(adapter.tensors)
    other = twin.logits(model.eval(), IDS)
    assert disagreement(one, other, plain) < 0.01


def test_query_rows_in_the_wrong_order_are_seen(base, tmp_path):
    """The control of the test above: without the reordering the two programs disagree."""
    need("xllamacpp")
    peft = need("peft")
    from tests.support import twin

    path, gguf = base("llama")
    adapter = random_adapter(gguf)
    adapter.save(tmp_path / "a.gguf")
    adapter.architecture = "qwen2"  # has the same names and no reordering
    adapter.save(tmp_path / "folder")
    one = ask_llamacpp(path, tmp_path / "a.gguf")
    model = peft.PeftModel.from_pretrained(twin.transformers_model(path), tmp_path / "folder")
    assert disagreement(one, twin.logits(model.eval(), IDS), ask_llamacpp(path)) > 0.05


@pytest.mark.parametrize(
    "only", [("blk.1.attn_q.weight",), ("blk.0.ffn_up.weight", "blk.1.ffn_up.weight"), ("output.weight",)]
)
def test_peft_adapts_exactly_the_modules_that_were_trained(base, tmp_path, only):
    peft = need("peft")
    from tests.support import twin

    path, gguf = base("llama")
    adapter = random_adapter(gguf, only=only)
    adapter.save(tmp_path / "folder", gguf)
    model = peft.PeftModel.from_pretrained(twin.transformers_model(path), tmp_path / "folder")
    assert len([name for name, _ in model.named_parameters() if "lora_A" in name]) == len(only)
    assert_same(adapter, Adapter.load(tmp_path / "folder", gguf))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_folder_that_peft_wrote_is_read(base, tmp_path, dtype):
    """Half-precision weights too; and what is read acts in llama.cpp as it does in peft."""
    need("xllamacpp")
    peft, torch = need("peft"), need("torch")
    from tests.support import twin

    path, gguf = base("llama")
    settings = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q_proj", "k_proj", "down_proj"], init_lora_weights=False
    )
    torch.manual_seed(0)
    model = peft.get_peft_model(twin.transformers_model(path), settings).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "theirs")
    adapter = Adapter.load(tmp_path / "theirs", gguf)
    assert adapter.rank == 3 and adapter.scale == 2 and len(adapter.tensors) == 3 * 2
    adapter.save(tmp_path / "a.gguf")
    model = peft.PeftModel.from_pretrained(twin.transformers_model(path), tmp_path / "theirs").eval()
    ours = ask_llamacpp(path, tmp_path / "a.gguf")
    assert disagreement(ours, twin.logits(model, IDS), ask_llamacpp(path)) < 0.01


def test_half_precision_gguf_of_another_tool(base, tmp_path):
    """F16 and Q8_0 tensors, no metadata of ours, alpha 0: llama.cpp then takes the scale 1."""
    _, gguf = base("llama")
    adapter = random_adapter(gguf, rank=32, only=("blk.0.ffn_down.weight",))
    ((name, (a, b)),) = adapter.tensors.items()
    values = {
        "general.type": "adapter",
        "adapter.type": "lora",
        "general.architecture": "llama",
        "adapter.lora.alpha": 0.0,
    }
    write_gguf(
        tmp_path / "f.gguf", values, [(f"{name}.lora_b", b.shape, "Q8_0", b), (f"{name}.lora_a", a.shape, "F16", a)]
    )
    back = Adapter.load(tmp_path / "f.gguf", gguf)
    assert back.scale == 1 and np.array_equal(back.tensors[name][0], a.astype(np.float16).astype(np.float32))


def test_a_peft_folder_of_llama_needs_the_base(base, tmp_path):
    _, gguf = base("llama")
    with pytest.raises(UserError, match="depends on the base"):
        random_adapter(gguf).save(tmp_path / "folder")


@pytest.mark.parametrize("form", ["a.gguf", "folder"])
def test_mutated_adapters_are_refused_or_sound(base, tmp_path, form):
    """Bytes, numbers and lengths that lie: a UserError, or an adapter that fits the base and is finite."""
    _, gguf = base("llama")
    adapter = random_adapter(gguf, only=("blk.0.attn_q.weight", "blk.1.ffn_down.weight"), chat_template="x")
    adapter.save(tmp_path / form, gguf)
    file = tmp_path / form if form == "a.gguf" else tmp_path / form / "adapter_model.safetensors"
    good, results = file.read_bytes(), set()
    head = good[:1200]  # where the lies are worth something: the rest is weights
    for number in range(600):
        file.write_bytes(fuzz_reader.mutate(random.Random(number), [head]) + good[1200:])
        try:
            read = Adapter.load(tmp_path / form, gguf)
            read.check(gguf)
            assert all(np.isfinite(part).all() for pair in read.tensors.values() for part in pair)
            results.add("accepted")
        except UserError as error:
            assert "\n" not in str(error)
            results.add("refused")
    assert results == {"accepted", "refused"}


# Each entry changes a good file's (metadata, tensors: name -> array) and says what the refusal must name.
def _no_b(values, tensors):
    del tensors["blk.0.attn_q.weight.lora_b"]


def _swapped(values, tensors):
    for side in "ab":
        tensors[f"blk.0.attn_q.weight.lora_{side}"] = tensors[f"blk.0.attn_q.weight.lora_{side}"].T.copy()


def _wrong_width(values, tensors):
    tensors["blk.0.attn_q.weight.lora_a"] = tensors["blk.0.attn_q.weight.lora_a"][:, :-4].copy()


def _nan(values, tensors):
    tensors["blk.1.ffn_up.weight.lora_b"][3, 1] = np.nan


def _flat(values, tensors):
    tensors["blk.0.attn_q.weight.lora_a"] = tensors["blk.0.attn_q.weight.lora_a"].ravel()


def _unknown_name(values, tensors):
    for side in "ab":
        tensors[f"blk.99.attn_q.weight.lora_{side}"] = tensors[f"blk.0.attn_q.weight.lora_{side}"]


def _suffix(values, tensors):
    tensors["blk.0.attn_q.weight.lora_magnitude"] = np.ones(4, np.float32)


BAD = {
    "no-b": (_no_b, "lora_a"),
    "swapped": (_swapped, "rank"),
    "width": (_wrong_width, "weight of shape"),
    "nan": (_nan, "NaN"),
    "flat": (_flat, "rank"),
    "name": (_unknown_name, "blk.99"),
    "suffix": (_suffix, "lora_magnitude"),
    "empty": (lambda values, tensors: tensors.clear(), "no tensors"),
    "not-adapter": (lambda values, tensors: values.update({"general.type": "model"}), "not a LoRA adapter"),
    "control-vector": (lambda values, tensors: values.update({"adapter.type": "aloha"}), "not a LoRA adapter"),
    "other-arch": (lambda values, tensors: values.update({"general.architecture": "qwen3"}), "architecture"),
    "alpha-nan": (lambda values, tensors: values.update({"adapter.lora.alpha": float("nan")}), "alpha"),
    "alpha-kind": (lambda values, tensors: values.update({"adapter.lora.alpha": "8"}), "alpha"),
    "no-alpha": (lambda values, tensors: values.pop("adapter.lora.alpha"), "alpha"),
    "name-kind": (lambda values, tensors: values.update({"general.base_model.0.name": 3}), "base_model"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_gguf_adapters_are_refused(base, tmp_path, case):
    _, gguf = base("llama")
    good, bad = tmp_path / "good.gguf", tmp_path / "bad.gguf"
    random_adapter(gguf).save(good)
    with GGUF.open(good) as file:
        values, tensors = dict(file.metadata), {name: file.float32(name) for name in file.tensors}
    change, names = BAD[case]
    change(values, tensors)
    write_gguf(
        bad,
        values,
        [(name, array.shape, "F32", array) for name, array in tensors.items()],
        kinds={"anytune.lora.alpha": "float64"},
    )
    Adapter.load(good, gguf)
    with pytest.raises(UserError, match=names):
        Adapter.load(bad, gguf)


def _config(**change):
    def apply(folder):
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    return apply


def _weights(content):
    return lambda folder: (folder / "adapter_model.safetensors").write_bytes(content)


BAD_FOLDERS = {
    "no-config": (lambda folder: (folder / "adapter_config.json").unlink(), "cannot be read"),
    "no-weights": (lambda folder: (folder / "adapter_model.safetensors").unlink(), "cannot be read"),
    "nested-json": (lambda folder: (folder / "adapter_config.json").write_text("[" * 100_000), "not valid"),
    "list": (lambda folder: (folder / "adapter_config.json").write_text("[]"), "not a JSON object"),
    "other-kind": (_config(peft_type="LOHA"), "peft_type"),
    "dora": (_config(use_dora=True), "use_dora"),
    "bias": (_config(bias="all"), "bias"),
    "parameters": (_config(target_parameters=["mlp.experts.down_proj"]), "target_parameters names"),
    "alpha": (_config(lora_alpha="8"), "lora_alpha"),
    "alpha-inf": (_config(lora_alpha=float("inf")), "lora_alpha"),
    "empty-weights": (_weights(b""), "damaged"),
    "header-size": (_weights(struct.pack("<Q", 2**63) + b"{}"), "damaged"),
    "header-json": (_weights(struct.pack("<Q", 100_000) + b"[" * 100_000), "damaged"),
    "pickle": (_weights(b"\x80\x04\x95" + bytes(100)), "damaged"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_folders_are_refused(base, tmp_path, case):
    _, gguf = base("qwen3")
    random_adapter(gguf).save(tmp_path, gguf)
    Adapter.load(tmp_path, gguf)
    change, names = BAD_FOLDERS[case]
    change(tmp_path)
    with pytest.raises(UserError, match=names):
        Adapter.load(tmp_path, gguf)
