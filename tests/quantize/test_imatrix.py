"""Importance matrices: what is measured, the file, mistakes."""

import numpy as np
import pytest

import anytune
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from anytune.likelihood.windows import Forward, windows
from anytune.quantization.collect import collect
from anytune.quantization.imatrix import read_imatrix, write_imatrix
from tests.support import tiny

TEXT = "the rest of the west wind was in the air. " * 40


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3"])
def model(request, tmp_path_factory):
    path = tiny.write(tmp_path_factory.mktemp("tiny") / "m.gguf", request.param)
    return anytune.load(path, device="numpy", threads=1)


def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=1, keepdims=True) + 1e-5) * gain


def test_the_first_layer_by_hand(model):
    """Attention's input is the first norm of the embeddings, BOS in the place of each window's first token."""
    found = collect(model, TEXT, context=32, chunks=5)
    ids = np.array(model.tokenize(TEXT)[: 32 * 5]).reshape(5, 32)
    if model.tokenizer.add_bos:
        ids[:, 0] = model.tokenizer.bos
    g = model.gguf
    x = g.float32("token_embd.weight").astype(np.float64)[ids.ravel()] * model.weights.embedding_scale
    want = (norm(x, g.float32("blk.0.attn_norm.weight")) ** 2).sum(axis=0)
    assert (found.tokens, found.windows) == (160, 5)
    for part in ("q", "k", "v"):
        assert np.allclose(found.sums[f"blk.0.attn_{part}.weight"], want, rtol=1e-4)


def test_every_linear_of_the_layers_is_measured(model):
    sums = collect(model, TEXT, context=32, chunks=1).sums
    want = {
        name: t.shape[-1] for name, t in model.gguf.tensors.items() if name.startswith("blk.") and len(t.shape) == 2
    }
    assert {name: len(values) for name, values in sums.items()} == want
    assert all((values > 0).any() for values in sums.values())


@pytest.mark.parametrize("name", ["qwen3moe", "glm4moe", "gpt-oss", "gemma4-experts", "gemma4", "qwen35moe", "lfm2moe"])
def test_experts_are_measured_apart(tmp_path, name):
    """What each read, of how many tokens: against the model run once more, its slots looked at one by one."""
    path = tiny.write(tmp_path / "m.gguf", name)
    model, seen = anytune.load(path, device="numpy", threads=1), []
    found = collect(model, TEXT, context=32, chunks=3, batch=32)
    e, n = model.engine, model.config.router and model.config.router.experts
    for call in ("expert_linear", "weigh"):

        def kept(x, *rest, call=call, real=getattr(e, call)):
            seen.append((call, np.array(x), rest[-1]))
            return real(x, *rest)

        setattr(e, call, kept)
    Forward(model, 32).hidden(windows(model, TEXT, 32, 3, 1))
    calls = [(x, routing) for call, x, routing in seen if call == "weigh"]
    layers = [i for i in range(model.config.layers) if f"blk.{i}.ffn_down_exps.weight" in model.gguf.tensors]
    assert len(calls) == len(layers) and bool(layers) == (n is not None)
    for layer, (x, routing) in zip(layers, calls):
        name = f"blk.{layer}.ffn_down_exps.weight"
        expert = np.sort(routing.chosen.ravel())
        assert found.counts[name].tolist() == np.bincount(expert, minlength=n).tolist()
        for i in range(n):
            np.testing.assert_allclose(found.sums[name][i], (x[expert == i] ** 2).sum(0), rtol=1e-4, atol=1e-6)
    measured = {t for t, info in model.gguf.tensors.items() if t.startswith("blk.") and t in model.weights.matrices}
    assert set(found.sums) >= measured
    write_imatrix(tmp_path / "im.gguf", found.sums, found.counts, ["x"], 3, 32)
    importance = read_imatrix(tmp_path / "im.gguf")
    for tensor in measured:
        shape = model.gguf.tensors[tensor].shape
        assert importance.of(tensor, shape).shape == (int(np.prod(shape[:-2])), shape[-1])


def test_an_expert_without_tokens_weighs_all_columns_alike(tmp_path):
    sums, counts = {"w": np.array([[4.0, 12.0], [0.0, 0.0]])}, {"w": np.array([4.0, 0.0])}
    write_imatrix(tmp_path / "im.gguf", sums, counts, ["x"], 1, 4)
    np.testing.assert_allclose(read_imatrix(tmp_path / "im.gguf").columns["w"], [[0.5, 1.5], [1, 1]])


def test_how_windows_are_batched_changes_nothing(model):
    one, other = (collect(model, TEXT, context=32, chunks=4, batch=batch).sums for batch in (1, 128))
    for name, values in one.items():
        assert np.allclose(values, other[name], rtol=1e-4), name


def test_the_command_writes_what_quantize_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = tiny.write(tmp_path / "m.gguf", "llama")
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    args = ["imatrix", "-m", str(path), "-f", "text.txt", "-c", "32", "-o", "im.gguf", "--device", "numpy"]
    assert command(args) == 0
    with GGUF.open("im.gguf") as file:
        assert file.metadata["general.type"] == "imatrix" and file.metadata["imatrix.chunk_size"] == 32
        assert file.metadata["imatrix.datasets"] == ["text.txt"]
        count = file.metadata["imatrix.chunk_count"]
        assert file.tensors["blk.0.ffn_down.weight.in_sum2"].shape == (1, 96)
        assert file.float32("blk.0.ffn_down.weight.counts").tolist() == [[32.0 * count]]
    assert command(["quantize", str(path), "q.gguf", "Q4_0", "--imatrix", "im.gguf"]) == 0
    assert "not in" not in capsys.readouterr().err


def test_means_are_normal_and_never_zero(tmp_path):
    sums = {"a.weight": np.array([0.0, 4.0, 8.0]), "b.weight": np.zeros(2)}
    write_imatrix(tmp_path / "im.gguf", sums, {"a.weight": 4, "b.weight": 4}, ["x"], 1, 4)
    found = read_imatrix(tmp_path / "im.gguf").columns
    assert np.allclose(found["a.weight"], [[1e-5, 1, 2]]) and found["b.weight"].tolist() == [[1, 1]]


@pytest.mark.parametrize(
    ("sums", "counts"),
    [([[1.0, np.nan]], [[4.0]]), ([[1.0, -1.0]], [[4.0]]), ([[1.0, 1.0]], [[np.inf]]), ([[1.0, 1.0]], [[1.0], [1.0]])],
)
def test_damaged_numbers_are_refused(tmp_path, sums, counts):
    tensors = [
        (name, np.shape(values), "F32", np.array(values, np.float32))
        for name, values in (("w.in_sum2", sums), ("w.counts", counts))
    ]
    write_gguf(tmp_path / "im.gguf", {"general.type": "imatrix"}, tensors)
    with pytest.raises(UserError, match="damaged"):
        read_imatrix(tmp_path / "im.gguf")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "old.dat").write_bytes(b"\1\0\0\0" * 50)
    with pytest.raises(UserError, match="llama-imatrix"):
        read_imatrix(tmp_path / "old.dat")
    write_gguf(
        tmp_path / "im.gguf", {"general.type": "imatrix"}, [("w.in_sum2", (1, 2), "F32", np.ones((1, 2), np.float32))]
    )
    with pytest.raises(UserError, match="counts"):
        read_imatrix(tmp_path / "im.gguf")


def test_a_text_that_is_too_short(model):
    with pytest.raises(UserError, match="tokens"):
        collect(model, "the west wind", context=128)
