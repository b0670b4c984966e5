"""QERA's closed form: equal to the paper's formula, the best of its rank, and better than rounding alone."""

import json

import numpy as np
import pytest

import anytune
from anytune.cli.main import run as command
from anytune.export.absorb import reconstruct, residual, statistics
from anytune.export.adapters import merged_rows
from anytune.export.merge import Merge
from anytune.gguf import GGUF
from anytune.quantization.collect import collect
from tests.export import pairs
from tests.support import tiny
from tests.support.distributions import kl
from tests.support.require import need


def problem(seed: int = 0, out: int = 48, width: int = 64):
    """(error [out, in], inputs [n, in] with correlated columns of different sizes)."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((width, width)) * np.exp(rng.standard_normal(width))
    x = rng.standard_normal((500, width)) @ mixed
    return rng.standard_normal((out, width)).astype(np.float32), x.astype(np.float32)


def output_error(error, a, b, x) -> float:
    return float(np.linalg.norm(x @ (error - b @ a).T))


def test_it_is_the_papers_formula():
    error, x = problem()
    r = x.T.astype(np.float64) @ x / len(x)
    values, vectors = np.linalg.eigh(r)
    root, inverse = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    u, s, v = np.linalg.svd(error.astype(np.float64) @ root)
    wanted = (u[:, :6] * s[:6]) @ v[:6] @ inverse
    a, b = reconstruct(error, r.astype(np.float32), 6)
    assert np.linalg.norm(b @ a - wanted) < 0.03 * np.linalg.norm(wanted)
    best, found = output_error(error, wanted, np.eye(48), x), output_error(error, a, b, x)
    assert found < 1.001 * best


def test_exact_beats_approx_beats_none_and_plain_svd_is_beaten():
    for seed in range(3):
        error, x = problem(seed)
        r = (x.T @ x / len(x)).astype(np.float32)
        exact, approx = (output_error(error, *reconstruct(error, inputs, 6), x) for inputs in (r, np.diag(r).copy()))
        plain = output_error(error, *reconstruct(error, np.ones(64, np.float32), 6), x)
        assert exact < 0.95 * min(approx, plain) and max(approx, plain) < np.linalg.norm(x @ error.T)


def test_a_rank_beyond_the_matrix_holds_all_of_the_error():
    error, x = problem()
    a, b = reconstruct(error, np.ones(64, np.float32), 60)
    assert a.shape == (60, 64) and b.shape == (48, 60)
    np.testing.assert_allclose(b @ a, error, atol=1e-4)


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """(model, adapter, path of the pair merged in Q3_K_M)."""
    folder = tmp_path_factory.mktemp("absorb")
    base = tiny.write(folder / "m.gguf", "llama", "Q6_K")
    adapter = pairs.adapter(base, size=0.2)
    model = anytune.load(base, device="numpy", threads=1)
    Merge(model.gguf, adapter, anytune.load).write(folder / "q.gguf", "Q3_K_M")
    return model, adapter, folder / "q.gguf"


def test_autocorrelations_have_the_mean_squares_on_their_diagonals(merged):
    model, adapter, _ = merged
    exact, way = statistics(model, adapter, pairs.TEXT, "exact", context=64)
    approx, other = statistics(model, adapter, pairs.TEXT, "approx", context=64)
    found = collect(model, pairs.TEXT, context=64, adapter=adapter)
    sums, without = found.sums, collect(model, pairs.TEXT, context=64).sums
    assert (way, other) == ("exact", "approx") and exact.keys() == approx.keys() == sums.keys()
    for name, r in exact.items():
        np.testing.assert_allclose(r, r.T, atol=1e-4)
        np.testing.assert_allclose(np.diag(r), approx[name], rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(approx[name], found.means(name))
    assert exact["blk.0.attn_q.weight"] is exact["blk.0.attn_k.weight"]
    assert not np.allclose(sums["blk.1.ffn_down.weight"], without["blk.1.ffn_down.weight"], rtol=0.01)


def test_the_residual_adapter_brings_a_rounded_merge_back(merged):
    """Against the rounded file alone, in the output of each matrix on the text and in the model's distributions."""
    model, adapter, path = merged
    served = model.logits(pairs.IDS, adapter)
    rounded = anytune.load(path, device="numpy", threads=1)
    alone = kl(served, rounded.logits(pairs.IDS)).mean()
    inputs, _ = statistics(model, adapter, pairs.TEXT, "exact", context=64)
    whole = merged_rows(model.gguf, adapter)
    errors = {}
    for way, known in (("exact", inputs), ("approx", {name: np.diag(r).copy() for name, r in inputs.items()})):
        made = residual(model.gguf, adapter, rounded.gguf, known, 32)
        assert made.base_sha256 == rounded.gguf.sha256() and len(made.tensors) == 14
        lost = []
        for name, (a, b) in made.tensors.items():
            error = whole[name](0, len(b)) - rounded.gguf.float32(name)
            before, after = (float(np.sum(e @ inputs[name] * e)) for e in (error, error - b @ a))
            assert after < before, name
            lost.append(after / before)
        errors[way] = np.mean(lost)
        assert kl(served, rounded.logits(pairs.IDS, made)).mean() < 0.9 * alone  # of another text than the inputs
    assert errors["exact"] < errors["approx"] < 1


def test_the_command(tmp_path, capsys):
    need("xllamacpp")
    base = tiny.write(tmp_path / "m.gguf", "qwen3", "F16")
    pairs.adapter(base, size=0.3).save(tmp_path / "a.gguf")
    (tmp_path / "t.txt").write_text(pairs.TEXT * 3)
    assert (
        command(
            [
                "export",
                "merge",
                "-m",
                str(base),
                "--lora",
                str(tmp_path / "a.gguf"),
                "-t",
                "1",
                "--json",
                "-o",
                str(tmp_path / "q.gguf"),
                "--type",
                "Q4_0",
                "--absorb",
                "16",
                "--residual-lora",
                str(tmp_path / "r.gguf"),
                "-f",
                str(tmp_path / "t.txt"),
            ]
        )
        == 0
    )
    told = json.loads(capsys.readouterr().out)
    assert told["residual"]["way"] == "sequential" and told["residual"]["kl"] < 0.7 * told["taken"]["kl"]
    assert told["checks"][0]["peer"] == "llama.cpp" and told["ok"]
    with GGUF.open(tmp_path / "r.gguf") as file:
        assert file.tensors["blk.0.ffn_up.weight.lora_a"].shape == (10, 64)  # 16 on average over the products


def test_an_adapter_for_next_to_nothing_passes(tmp_path, capsys):
    need("xllamacpp")
    base = tiny.write(tmp_path / "m.gguf", "llama", "F32")
    (tmp_path / "t.txt").write_text(pairs.TEXT * 3)
    assert (
        command(
            [
                "export",
                "merge",
                "-m",
                str(base),
                "-o",
                str(tmp_path / "q.gguf"),
                "--absorb",
                "2",
                "--json",
                "-f",
                str(tmp_path / "t.txt"),
                "--type",
                "F16",
                "-t",
                "1",
            ]
        )
        == 0
    )
    assert json.loads(capsys.readouterr().out)["checks"][0]["ok"]


def test_a_model_alone_can_be_rounded_and_absorbed(tmp_path, capsys):
    base = tiny.write(tmp_path / "m.gguf", "llama", "F32")
    (tmp_path / "t.txt").write_text(pairs.TEXT * 3)
    common = [
        "export",
        "merge",
        "-m",
        str(base),
        "-o",
        str(tmp_path / "q.gguf"),
        "--absorb",
        "8",
        "-f",
        str(tmp_path / "t.txt"),
        "--no-verify",
        "-t",
        "1",
    ]
    assert command([*common, "--type", "Q4_1", "--qera", "approx"]) == 0
    assert "QERA-approx" in capsys.readouterr().out and (tmp_path / "q-residual.gguf").exists()
    assert command(common) == 2  # nothing is rounded
