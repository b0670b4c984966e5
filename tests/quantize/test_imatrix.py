"""Importance matrices: what is measured, the file, mistakes."""

import numpy as np
import pytest

import anytune
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
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
    sums, tokens, count = collect(model, TEXT, context=32, chunks=5)
    ids = np.array(model.tokenize(TEXT)[: 32 * 5]).reshape(5, 32)
    if model.tokenizer.add_bos:
        ids[:, 0] = model.tokenizer.bos
    g = model.gguf
    x = g.float32("token_embd.weight").astype(np.float64)[ids.ravel()] * model.weights.embedding_scale
    want = (norm(x, g.float32("blk.0.attn_norm.weight")) ** 2).sum(axis=0)
    assert (tokens, count) == (160, 5)
    for part in ("q", "k", "v"):
        assert np.allclose(sums[f"blk.0.attn_{part}.weight"], want, rtol=1e-4)


def test_every_linear_of_the_layers_is_measured(model):
    sums, _, _ = collect(model, TEXT, context=32, chunks=1)
    want = {
        name: t.shape[-1] for name, t in model.gguf.tensors.items() if name.startswith("blk.") and len(t.shape) == 2
    }
    assert {name: len(values) for name, values in sums.items()} == want
    assert all((values > 0).any() for values in sums.values())


def test_how_windows_are_batched_changes_nothing(model):
    one, other = (collect(model, TEXT, context=32, chunks=4, batch=batch)[0] for batch in (1, 128))
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
