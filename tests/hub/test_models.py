"""Models are found where other programs keep them, under names that -m takes; nothing there is changed."""

import json
import os
import subprocess
import sys

import pytest

from anytune.errors import UserError
from anytune.gguf import write_gguf
from anytune.hub import catalog, huggingface, ollama
from anytune.hub.dialect import ollamas_own
from anytune.hub.pull import local
from tests.hub import stores
from tests.support import tiny

QWEN = ("registry.ollama.ai", "library", "qwen3", "1.7b")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Bytes of three small models of different content."""
    folder = tmp_path_factory.mktemp("models")
    return [tiny.write(folder / f"{seed}.gguf", "qwen3", seed=seed).read_bytes() for seed in range(3)]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder without any store."""
    for name in (
        "OLLAMA_MODELS",
        "LLAMA_CACHE",
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HOME",
        "XDG_CACHE_HOME",
        "ANYTUNE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def names():
    return {row.stored.name: row for row in catalog.models()}


def contents(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_every_store_is_found_and_left_alone(home, files):
    stores.ollama(home / ".ollama/models", QWEN, files[0], ("template", b"{{ .Prompt }}"), ("params", b"{}"))
    studio = home / ".lmstudio/models/me/wren"
    studio.mkdir(parents=True)
    (studio / "wren.gguf").write_bytes(files[1])
    stores.hub(home / ".cache/huggingface/hub", "owner/repo-GGUF", {"repo-Q8_0.gguf": files[2]})
    (home / ".cache/llama.cpp").mkdir()
    write_gguf(home / ".cache/llama.cpp/flat.gguf", {"general.architecture": "rwkv7"}, [])
    before = contents(home)
    rows = names()
    assert set(rows) == {
        "ollama:qwen3:1.7b",
        "lmstudio:me/wren",
        "hf:owner/repo-GGUF:repo-Q8_0.gguf",
        str(home / ".cache/llama.cpp/flat.gguf"),
    }
    assert {name: (row.facts.architecture, row.facts.reason is None) for name, row in rows.items()} == {
        name: ("rwkv7", False) if name.endswith("flat.gguf") else ("qwen3", True) for name in rows
    }
    for name, row in rows.items():
        assert local(name) == row.stored.path
    assert {path: content for path, content in contents(home).items() if path.name != "models.json"} == before
    assert "qwen3" in rows["ollama:qwen3:1.7b"].as_dict()["architecture"]


def test_names_that_are_nearly_right_are_told(home, files):
    stores.ollama(home / ".ollama/models", QWEN, files[0])
    (home / ".lmstudio/models/me/wren").mkdir(parents=True)
    (home / ".lmstudio/models/me/wren/wren.gguf").write_bytes(files[1])
    stores.hub(home / ".cache/huggingface/hub", "owner/repo-GGUF", {"repo-Q8_0.gguf": files[2]})
    for given, meant in {
        "ollama:qwen3:1.7": "ollama:qwen3:1.7b",
        "ollama:qwn3:1.7b": "ollama:qwen3:1.7b",
        "qwen3:1.7b": "ollama:qwen3:1.7b",
        "lmstudio:me/wrem": "lmstudio:me/wren",
        "hf:owner/rep-GGUF:repo-Q8_0.gguf": "hf:owner/repo-GGUF:repo-Q8_0.gguf",
        "smolm2-135m": "smollm2-135m",
    }.items():
        with pytest.raises(UserError) as caught:
            local(given)
        assert f"Did you mean {meant}?" in str(caught.value), given
    with pytest.raises(UserError) as caught:
        local("ollama:something-else")
    assert "Did you mean" not in str(caught.value)


def test_the_command_trains_where_the_model_lies(home, files):
    blob = stores.ollama(home / ".ollama/models", QWEN, files[0])
    (home / "d.txt").write_text("one two three four. " * 40)
    run = [
        sys.executable,
        "-m",
        "anytune",
        "train",
        "-m",
        "ollama:qwen3:1.7b",
        "-f",
        "d.txt",
        "--max-steps",
        "1",
        "-c",
        "64",
        "-ub",
        "64",
        "-b",
        "64",
        "--json",
    ]
    done = subprocess.run(run, cwd=home, capture_output=True, text=True, env=os.environ | {"HOME": str(home)})
    assert done.returncode == 0, done.stderr
    settings = json.loads(next(home.glob("runs/*/settings.json")).read_text())
    assert settings["model"] == str(blob) and blob.read_bytes() == files[0]


def test_names_of_ollama(home, files):
    folder = home / ".ollama/models"
    stores.ollama(folder, ("registry.ollama.ai", "someone", "m", "latest"), files[0], sign=":")
    stores.ollama(folder, ("hf.co", "owner", "repo", "Q4_K_M"), files[1])
    assert set(names()) == {"ollama:someone/m:latest", "ollama:hf.co/owner/repo:Q4_K_M"}
    assert local("ollama:someone/m").read_bytes() == files[0]
    assert local("ollama:hf.co/owner/repo:Q4_K_M").read_bytes() == files[1]
    for name in ("ollama:", "ollama:../../x", "ollama:a/b/c/d", "ollama:missing", "ollama:m:..", "ollama:a//b"):
        with pytest.raises(UserError):
            local(name)


def test_manifests_that_are_damaged_or_hostile_are_passed_over(home, files):
    folder = home / ".ollama/models"
    (home / "secret").write_bytes(files[0])
    blob = stores.ollama(folder, QWEN, files[0])
    manifest = folder.joinpath("manifests", *QWEN)
    layer = json.loads(manifest.read_text())["layers"][0]
    for layers in (
        [layer | {"digest": "sha256-../../secret"}],
        [layer | {"digest": 5}],
        [layer | {"digest": None}],
        [5],
        "x",
        None,
        [layer | {"digest": "sha256:" + "0" * 64}],
        [layer | {"mediaType": "x.projector"}],
    ):
        manifest.write_text(json.dumps({"layers": layers}))
        assert names() == {}, layers
    for text in ("", "[", "[" * 100_000, '"x"', "\xff"):
        manifest.write_text(text, "latin-1")
        assert names() == {}, text[:9]
    manifest.write_text(json.dumps({"layers": [layer]}))
    blob.write_bytes(b"PK" + files[0])
    with pytest.raises(UserError, match="no GGUF file"):
        ollama.find("qwen3:1.7b")


def test_a_file_that_is_linked_twice_is_one_row(home, files):
    blob = stores.ollama(home / ".ollama/models", QWEN, files[0])
    studio = home / ".lmstudio/models/me/wren"
    studio.mkdir(parents=True)
    os.link(blob, studio / "wren.gguf")
    (row,) = catalog.models()
    assert row.stored.name == "ollama:qwen3:1.7b" and row.stored.also == ("lmstudio:me/wren",)


def test_what_only_goes_with_a_model_is_hidden_and_parts_are_joined(home, files):
    folder = home / "studio"
    (home / ".lmstudio").mkdir()
    (home / ".lmstudio/settings.json").write_text(json.dumps({"downloadsFolder": str(folder)}))
    model = folder / "pub/model"
    model.mkdir(parents=True)
    for name in (
        "mmproj-model-f16.gguf",
        "model.imatrix.gguf",
        "model-draft-Q4_0.gguf",
        "model-Q8_0.gguf",
        "big-00001-of-00002.gguf",
        "big-00002-of-00002.gguf",
        "torn-00002-of-00003.gguf",
    ):
        (model / name).write_bytes(files[0] + name.encode())
    write_gguf(model / "adapter.gguf", {"general.architecture": "qwen3", "general.type": "adapter"}, [])
    rows = names()
    assert set(rows) == {
        f"lmstudio:pub/model/{name}" for name in ("model-Q8_0.gguf", "big.gguf", "torn-00002-of-00003.gguf")
    }
    big = rows["lmstudio:pub/model/big.gguf"]
    assert len(big.stored.paths) == 2 and "2 parts" in big.facts.reason and big.bytes > 2 * len(files[0])
    assert "missing" in rows["lmstudio:pub/model/torn-00002-of-00003.gguf"].facts.reason
    with pytest.raises(UserError, match="several files"):
        local("lmstudio:pub/model")
    with pytest.raises(UserError, match="2 parts"):
        local("lmstudio:pub/model/big.gguf")


def test_a_repository_is_named_by_file_type_or_alone(home, files):
    cache = home / ".cache/huggingface/hub"
    stores.hub(cache, "o/m", {"m-Q8_0.gguf": files[0]}, "b" * 40)
    stores.hub(cache, "o/m", {"m-Q8_0.gguf": files[1], "sub/m-Q4_K_M.gguf": files[2]}, "c" * 40, main=False)
    assert local("hf:o/m:Q8_0").read_bytes() == files[0]  # what refs/main names
    for name in ("hf:o/m:Q4_K_M", "hf:o/m:sub/m-Q4_K_M.gguf", "hf:o/m/sub/m-Q4_K_M.gguf", "hf:o/m:q4_k_m", "hf:o/m"):
        assert local(name).read_bytes() == files[2], name
    with pytest.raises(UserError, match="anytune pull hf:o/m:Q5_0"):
        local("hf:o/m:Q5_0")


@pytest.mark.parametrize(
    ("variable", "below"),
    [
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
        ("LLAMA_CACHE", ""),
    ],
)
def test_the_hubs_cache_is_where_variables_say(home, files, monkeypatch, variable, below):
    stores.hub(home / "elsewhere" / below, "o/m", {"m.gguf": files[0]})
    assert not names()
    monkeypatch.setenv(variable, str(home / "elsewhere"))
    assert set(names()) == {"hf:o/m:m.gguf"}


def test_which_file_of_a_repository():
    files = ["README.md", "mmproj-m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-UD-Q4_K_M.gguf", "m-Q8_0.gguf"]
    assert huggingface.choose(files, None) == "m-Q4_K_M.gguf"
    assert huggingface.choose(files, "q8_0") == "m-Q8_0.gguf"
    assert huggingface.choose(files, "Q4_K") is None and huggingface.choose(files[:2], None) is None
    assert huggingface.choose(["only.gguf"], None) == "only.gguf"


@pytest.mark.parametrize(
    ("meta", "tensors", "own"),
    [
        ({"general.architecture": "gptoss"}, (), True),
        ({"general.architecture": "gpt-oss"}, (), False),
        ({"general.architecture": "gemma3"}, (), True),
        ({"general.architecture": "gemma3", "gemma3.attention.layer_norm_rms_epsilon": 1e-6}, (), False),
        ({"general.architecture": "gemma3", "gemma3.attention.layer_norm_rms_epsilon": 1e-6}, ("v.blk.0.x",), True),
        ({"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}, (), True),
        ({"general.architecture": "llama", "tokenizer.ggml.model": "llama"}, (), False),
    ],
)
def test_files_that_only_ollama_reads(meta, tensors, own):
    assert (ollamas_own(meta, tensors) is not None) == own


def test_a_file_that_only_ollama_reads_is_refused_in_a_sentence(home, tmp_path):
    path = tmp_path / "x.gguf"
    write_gguf(path, {"general.architecture": "gptoss"}, [])
    stores.ollama(home / ".ollama/models", QWEN, path.read_bytes())
    with pytest.raises(UserError, match="written by Ollama's own converter"):
        local("ollama:qwen3:1.7b")
    (row,) = catalog.models()
    assert "gptoss" in row.facts.reason


def test_facts_are_read_once(home, files, monkeypatch):
    stores.ollama(home / ".ollama/models", QWEN, files[0])
    first = catalog.models()
    monkeypatch.setattr("anytune.hub.facts.look", None)
    assert catalog.models() == first
    (home / ".cache/anytune/models.json").write_text('{"form": []}')
    with pytest.raises(TypeError):
        catalog.models()
