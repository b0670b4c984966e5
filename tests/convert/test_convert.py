"""A Hugging Face folder becomes the GGUF that llama.cpp's converter writes: weights to the bit, tokens, metadata."""

import json

import numpy as np
import pytest

import anytune
from anytune.cli.main import run as command
from anytune.convert import convert
from anytune.convert.checkpoint import read_weights
from anytune.convert.vocabulary import vocabulary
from anytune.errors import UserError
from anytune.export.huggingface import save
from anytune.export.tokenizer import write_tokenizer
from anytune.gguf import GGUF
from anytune.model.architectures import ARCHITECTURES
from anytune.text import Tokenizer
from anytune.text.pretokenizers import PRE
from tests.export import pairs
from tests.support import tiny, twin
from tests.support.distributions import kl
from tests.support.require import need
from tests.text import samples
from tests.text.llamacpp_vocab import Peer

TEXTS = [*samples.FIXED, *samples.texts(60, 3)]
SHAPE = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "attention.sliding_window",
    "ssm.group_count",
    "rope.dimension_count",
    "rope.scaling.type",
    "rope.scaling.factor",
)


def folder_of(base, folder, dtype="f32", **more):
    with GGUF.open(base) as file:
        save(file, None, folder, dtype=dtype, **more)
    return folder


SAME = sorted(set(tiny.SHAPES) - {"deepseek2-old"})  # a matrix of which is two tensors in newer files


@pytest.mark.parametrize("name", SAME)
def test_there_and_back_is_the_same_file(tmp_path, name):
    base = tiny.write(tmp_path / "m.gguf", name)
    facts = convert(folder_of(base, tmp_path / "hf"), tmp_path / "again.gguf")
    assert facts["type"] == "F32"
    with GGUF.open(base) as a, GGUF.open(tmp_path / "again.gguf") as b:
        assert sorted(a.tensors) == sorted(b.tensors)
        for tensor in a.tensors:
            right, found = a.float32(tensor), b.float32(tensor)
            if tensor == "rope_freqs.weight":
                np.testing.assert_allclose(found.reshape(-1), right.reshape(-1), rtol=1e-5)
            elif name.startswith(("gemma", "qwen35")) and tensor.endswith(("_norm.weight", "ssm_a")):
                np.testing.assert_allclose(found, right, rtol=1e-6, atol=1e-6)  # 1 is taken off and put back, or a log
            else:
                np.testing.assert_array_equal(found, right, tensor)
        arch = a.metadata["general.architecture"]
        for key in SHAPE:
            if (arch, key) == ("phi3", "attention.sliding_window"):
                continue  # llama.cpp leaves it out, and so does the folder
            assert b.metadata.get(f"{arch}.{key}") == pytest.approx(a.metadata.get(f"{arch}.{key}")), key
        # the folder's template begins with BOS where the file's rules add it
        template = b.metadata.get("tokenizer.chat_template")
        assert template.removeprefix("{{- bos_token }}") == a.metadata.get("tokenizer.chat_template")
        ours, theirs = Tokenizer(a.metadata), Tokenizer(b.metadata)
        assert (theirs.bos, theirs.eos, theirs.add_bos, theirs.eog) == (ours.bos, ours.eos, ours.add_bos, ours.eog)
        for text in TEXTS:
            assert theirs.encode(text, special=True) == ours.encode(text, special=True), text


@pytest.mark.parametrize("name", ["glm4moe", "deepseek2"])
def test_layers_for_speculative_decoding_are_left_out(tmp_path, name):
    """As the folders of GLM and DeepSeek have them: behind the layers that config.json counts."""
    save_file, folder = need("safetensors.numpy").save_file, tmp_path / "hf"
    base = tiny.write(tmp_path / "m.gguf", name)
    config = json.loads((folder_of(base, folder) / "config.json").read_text())
    layers = config["num_hidden_layers"]
    further = {f"model.layers.{layers}.{part}.weight": np.ones((4, 4), np.float32) for part in ("eh_proj", "mlp.gate")}
    save_file(further, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = {n: "model-00001-of-00002.safetensors" for n in read_weights(folder)} | dict.fromkeys(
        further, "model-00002-of-00002.safetensors"
    )
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(UserError, match="unknown"):
        convert(folder, tmp_path / "again.gguf")
    (folder / "config.json").write_text(json.dumps(config | {"num_nextn_predict_layers": 1}))
    convert(folder, tmp_path / "again.gguf")
    with GGUF.open(base) as a, GGUF.open(tmp_path / "again.gguf") as b:
        assert sorted(a.tensors) == sorted(b.tensors)


def test_old_files_become_new_ones(tmp_path):
    base = tiny.write(tmp_path / "m.gguf", "deepseek2-old")
    convert(folder_of(base, tmp_path / "hf"), tmp_path / "again.gguf")
    old, new = (anytune.load(path, device="numpy", threads=1) for path in (base, tmp_path / "again.gguf"))
    assert "blk.0.attn_kv_b.weight" in old.gguf.tensors and "blk.0.attn_k_b.weight" in new.gguf.tensors
    np.testing.assert_allclose(new.logits(pairs.IDS), old.logits(pairs.IDS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "llama-spm", "qwen2", "gemma3"])
def test_llama_cpp_reads_the_same_tokens_from_it(tmp_path, name):
    need("xllamacpp")
    base = tiny.write(tmp_path / "m.gguf", name)
    convert(folder_of(base, tmp_path / "hf"), tmp_path / "again.gguf")
    with Peer(base) as right, Peer(tmp_path / "again.gguf") as found:
        assert found.encode(TEXTS, special=True, add=True) == right.encode(TEXTS, special=True, add=True)
        assert found.facts == right.facts


@pytest.mark.parametrize(
    "kind", ["LlamaConfig", "Qwen2Config", "Qwen3Config", "Gemma3TextConfig", "MistralConfig", "Qwen3_5TextConfig"]
)
def test_a_model_that_transformers_made_computes_the_same(tmp_path, kind):
    transformers, torch = need("transformers"), need("torch")
    torch.manual_seed(0)
    sizes = dict(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=None,
    )
    more = {
        "Gemma3TextConfig": {"sliding_window": 8, "tie_word_embeddings": True, "query_pre_attn_scalar": 16},
        "LlamaConfig": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
        "MistralConfig": {"sliding_window": None},
        "Qwen3_5TextConfig": {
            "num_hidden_layers": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 6,
            "rope_parameters": {"rope_theta": 1e5, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]},
        },
    }
    model = (
        transformers.AutoModelForCausalLM.from_config(getattr(transformers, kind)(**sizes | more.get(kind, {})))
        .eval()
        .float()
    )
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, 1.0 if "norm" in kind else 0.1, 0.2)
    folder = tmp_path / "hf"
    model.save_pretrained(folder)
    words = folder_of(tiny.write(tmp_path / "words.gguf", "gemma3" if "Gemma" in kind else "llama"), tmp_path / "words")
    for file in words.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    assert convert(folder, tmp_path / "m.gguf")["notes"] == []
    theirs = twin.logits(model, pairs.IDS)
    ours = anytune.load(tmp_path / "m.gguf", device="numpy", threads=1).logits(pairs.IDS)
    assert kl(theirs, ours).max() < 1e-8
    gguf = need("gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    table = model.state_dict()["model.embed_tokens.weight"].numpy()
    np.testing.assert_array_equal(found["token_embd.weight"].data, table)


@pytest.mark.parametrize("name", SAME)
def test_what_transformers_saves_becomes_the_file_that_it_came_from(tmp_path, name):
    """config.json and weights as transformers itself writes them, of every architecture that trains."""
    need("transformers")
    base = tiny.write(tmp_path / "m.gguf", name)
    folder = tmp_path / "hf"
    twin.transformers_model(base).save_pretrained(folder)
    with GGUF.open(base) as file:
        write_tokenizer(file, folder)
    convert(folder, tmp_path / "again.gguf")
    with GGUF.open(base) as a, GGUF.open(tmp_path / "again.gguf") as b:
        # the twin takes a file's factors as they are, so that its config.json does not say them
        freqs = {"rope_freqs.weight"}
        assert set(a.tensors) - freqs == set(b.tensors) - freqs
        for tensor in b.tensors:
            np.testing.assert_allclose(b.float32(tensor), a.float32(tensor), rtol=1e-6, atol=1e-6, err_msg=tensor)
        arch = a.metadata["general.architecture"]
        windows = ("attention.sliding_window",) * bool(ARCHITECTURES[arch].window_period)  # phi3's is not computed
        for key in ("expert_count", "expert_used_count", "attention.key_length", *windows):
            assert b.metadata.get(f"{arch}.{key}") == a.metadata.get(f"{arch}.{key}"), key
    ids = list(range(2, 40))
    ours, theirs = (anytune.load(tmp_path / f, device="numpy", threads=1).logits(ids) for f in ("m.gguf", "again.gguf"))
    if "rope_freqs.weight" not in a.tensors:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_sixteen_bits_stay_what_they_are(tmp_path, dtype):
    base = tiny.write(tmp_path / "m.gguf", "qwen3")
    folder = folder_of(base, tmp_path / "hf", dtype, shard=40_000)
    assert convert(folder, tmp_path / "a.gguf")["type"] == dtype.upper()
    weights = read_weights(folder)
    with GGUF.open(tmp_path / "a.gguf") as file:
        info = file.tensors["blk.1.ffn_down.weight"]
        weight = weights["model.layers.1.mlp.down_proj.weight"]
        assert info.type.name == dtype.upper()
        raw = weight.file.read_bytes()[weight.at : weight.at + weight.nbytes]
        assert bytes(file.blocks("blk.1.ffn_down.weight")) == raw
        assert file.tensors["blk.1.attn_norm.weight"].type.name == "F32"
    assert convert(folder, tmp_path / "b.gguf", "q8_0")["type"] == "Q8_0"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf", "hf", "m.gguf"]


def test_every_pre_tokenizer_is_found_again(tmp_path):
    from anytune.export.tokenizer import tokenizer_json

    base = tiny.write(tmp_path / "m.gguf", "llama")
    for name, pre in PRE.items():
        if not pre.bytes_:
            continue
        with GGUF.open(base) as file:
            file.metadata["tokenizer.ggml.pre"] = name
            folder = tmp_path / name
            folder.mkdir()
            (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json(file)))
        found = PRE[vocabulary(folder, "llama", {})["tokenizer.ggml.pre"]]
        assert (found.patterns, found.ignore_merges) == (pre.patterns, pre.ignore_merges), name
    # as the models themselves publish it
    qwen2 = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    published = {
        "qwen2": [{"type": "Split", "pattern": {"Regex": qwen2}}, {"type": "ByteLevel", "use_regex": False}],
        "smollm": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel", "use_regex": True}],
    }
    for pre, steps in published.items():
        described = json.loads((tmp_path / "llama-bpe" / "tokenizer.json").read_text())
        described["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
        described["model"]["ignore_merges"] = False
        (tmp_path / "llama-bpe" / "tokenizer.json").write_text(json.dumps(described))
        assert vocabulary(tmp_path / "llama-bpe", "llama", {})["tokenizer.ggml.pre"] == pre


def test_sentencepiece_model_gives_its_own_ids(tmp_path):
    spm = need("sentencepiece")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(TEXTS[:40]) * 3 + "the rain in spain stays mainly in the plain\n" * 50)
    spm.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=500,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        minloglevel=2,
    )
    pieces = spm.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "bos_token": "<s>",
                "eos_token": {"content": "</s>"},
                "unk_token": "<unk>",
                "add_bos_token": True,
                "added_tokens_decoder": {"500": {"content": "<|mark|>", "special": True}},
            }
        )
    )
    words = vocabulary(tmp_path, "llama", {"vocab_size": 504})
    tokenizer = Tokenizer(words)
    assert words["tokenizer.ggml.tokens"][500:] == ["<|mark|>", "[PAD501]", "[PAD502]", "[PAD503]"]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.encode("<|mark|>", special=True, bos=False) == [500]
    for sample in TEXTS:
        if sample and "\0" not in sample:
            assert tokenizer.encode(sample, special=False, bos=False) == pieces.encode(sample), sample


def test_experts_in_one_matrix_or_one_each_are_the_same(tmp_path):
    from anytune.convert.checkpoint import Weight
    from anytune.convert.experts import stacked

    rng = np.random.default_rng(0)
    gate, up = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)  # [experts, hidden, d]

    def weight(name, x):
        (tmp_path / name).write_bytes(np.ascontiguousarray(x).tobytes())
        return Weight(tmp_path / name, 0, "F32", x.shape)

    start = "model.layers.0.mlp.experts"
    both = stacked({f"{start}.gate_up_proj": weight("both", np.concatenate([gate, up], 1))})
    each = {f"{start}.{n}.{part}_proj.weight": weight(f"{part}{n}", x[n])
            for part, x in (("gate", gate), ("up", up)) for n in (2, 0, 1)}  # fmt: skip
    for name, right in (("gate_proj", gate), ("up_proj", up)):
        for found in (both[f"{start}.{name}.weight"], stacked(each)[f"{start}.{name}.weight"]):
            assert found.shape == right.shape
            parts = [found.rows(low, high) for low, high in found.pieces(20)]
            np.testing.assert_array_equal(np.concatenate(parts), right)
    del each[f"{start}.1.up_proj.weight"]
    with pytest.raises(UserError, match="2 experts"):
        stacked(each)


def test_several_templates_are_kept_by_name(tmp_path):
    base = tiny.write(tmp_path / "m.gguf", "llama")
    folder = folder_of(base, tmp_path / "hf")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    convert(folder, tmp_path / "a.gguf")
    with GGUF.open(tmp_path / "a.gguf") as file:
        assert file.metadata["tokenizer.chat_template"] == tiny.CHATML
        assert file.metadata["tokenizer.chat_template.tool_use"] == "{{ tools }}"
        assert list(file.metadata["tokenizer.chat_templates"]) == ["tool_use"]


HEADERS = {"list": b"[]", "number": b"5", "dtype": b'{"x": {"dtype": [], "shape": [1], "data_offsets": [0, 0]}}'}


def damaged(folder, how):
    config = json.loads((folder / "config.json").read_text())
    weights = folder / "model.safetensors"
    if how == "class":
        config["architectures"] = ["GPT2LMHeadModel"]
    elif how == "pickle":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "header":
        weights.write_bytes((1 << 60).to_bytes(8, "little") + weights.read_bytes()[8:])
    elif how in HEADERS:
        weights.write_bytes(len(HEADERS[how]).to_bytes(8, "little") + HEADERS[how])
    elif how == "heads":
        config["num_attention_heads"] = 7
    elif how == "layers":
        config["num_hidden_layers"] = 3
    elif how == "rope":
        config["rope_scaling"] = {"rope_type": "longrope", "factor": 2}
    elif how == "quantized":
        config["quantization_config"] = {"quant_method": "gptq"}
    elif how == "vocabulary":
        config["vocab_size"] = 5
    elif how == "tokenizer":
        for file in folder.glob("tokenizer*"):
            file.unlink()
    elif how == "index":
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "how, said",
    [
        ("class", "GPT2LMHeadModel"),
        ("pickle", "pickles"),
        ("cut", "ends early"),
        ("header", "header would have"),
        ("list", "not a JSON object"),
        ("number", "not a JSON object"),
        ("dtype", "is stored as []"),
        ("heads", "config.json"),
        ("layers", "lacks the tensor"),
        ("rope", "longrope"),
        ("quantized", "16-bit"),
        ("vocabulary", "vocab_size"),
        ("tokenizer", "neither"),
        ("index", "outside of its folder"),
    ],
)
def test_what_cannot_be_converted_is_said_and_nothing_stays(tmp_path, capsys, how, said):
    folder = folder_of(tiny.write(tmp_path / "m.gguf", "llama"), tmp_path / "hf")
    damaged(folder, how)
    assert command(["convert", str(folder), "-o", str(tmp_path / "out.gguf")]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf", "m.gguf"]


def test_the_folder_itself_is_never_written_over(tmp_path):
    folder = folder_of(tiny.write(tmp_path / "m.gguf", "llama"), tmp_path / "hf")
    with pytest.raises(UserError, match="overwritten"):
        convert(folder, folder / "model.safetensors")
