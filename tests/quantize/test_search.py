"""anytune quantize search: costs against the whole model, the choice against all choices, the file, mistakes."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import anytune
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.gguf import GGUF, write_gguf
from anytune.likelihood.divergence import Reference
from anytune.likelihood.windows import windows
from anytune.quantization.search import search
from anytune.quantization.search.budget import parse
from anytune.quantization.search.calibrate import Uniform, factors, predicted
from anytune.quantization.search.choose import Option, choose
from anytune.quantization.search.curvature import curvature, sample
from anytune.quantization.search.whole import Whole
from tests.support import tiny

TEXT = "".join(chr(97 + n % 26) if n % 7 else " " for n in np.random.default_rng(3).integers(0, 1000, 6000))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """files(name) -> a float32 GGUF of tiny's shape `name` with rows of 256."""
    folder = tmp_path_factory.mktemp("search")

    def get(name: str) -> Path:
        path = folder / f"{name}.gguf"
        if not path.exists():
            shape = tiny.SHAPES[name]
            shape = replace(shape, layers=min(shape.layers, 3), width=256, ff=256, head_dim=256 // shape.heads)
            rng, table = np.random.default_rng(0), tiny.tensor_table(shape)
            if name == "gemma3":  # whose embeddings are scaled up: every token would be sure of itself
                dims, scale, kind = table["token_embd.weight"]
                table["token_embd.weight"] = dims, scale / 8, kind
            write_gguf(
                path,
                tiny.metadata(shape, name),
                [
                    (tensor, dims, "F32", ((kind == "norm") + scale * rng.standard_normal(dims)).astype(np.float32))
                    for tensor, (dims, scale, kind) in table.items()
                ],
            )
        return path

    return get


OTHERS = {  # what is tried of each
    "qwen3moe": ("ffn_gate_exps", "ffn_down_exps", "attn_q"),
    "qwen35moe": ("ffn_up_exps", "ffn_down_shexp", "ssm_out", "attn_qkv"),
    "gemma2": ("attn_v", "ffn_down", "token_embd"),
    "gemma4": ("attn_k", "inp_gate", "proj", "ffn_down"),
    "gemma4-experts": ("ffn_gate_up_exps", "ffn_down_exps", "ffn_up"),
    "gpt-oss": ("ffn_down_exps", "attn_output"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_costs_of_other_kinds_of_layers(tmp_path, name):
    """Experts, states, capped logits, keys and embeddings that layers have in common."""
    model = anytune.load(tiny.write(tmp_path / "m.gguf", name), device="numpy", threads=1)
    pieces = windows(model, TEXT, 48, 6, 1)
    tried = {}
    for part in OTHERS[name]:
        layers = (t for t in model.gguf.tensors if t.endswith(f".{part}.weight") and not t.startswith("blk.0."))
        tensor = next(layers, f"{part}.weight")
        tried[tensor] = ["Q4_0"]
    found = curvature(model, pieces, tried, draws=48)
    own = {tensor: t.type.name for tensor, t in model.gguf.tensors.items()}
    whole = Whole(model, pieces, None, tmp_path, 1)
    ratios = {t: found[t]["Q4_0"] / whole.kl(own | {t: "Q4_0"}).mean() for t in tried}
    logs = np.log(list(ratios.values()))
    assert found.keys() == tried.keys() and np.exp(np.abs(logs).max()) < 1.7, ratios


@pytest.mark.parametrize("name", ["llama", "qwen3-tied", "gemma3"])
def test_costs_are_those_of_the_whole_model(files, name, tmp_path):
    model = anytune.load(files(name), device="numpy", threads=1)
    pieces = windows(model, TEXT, 48, 6, 1)
    tried = {
        "token_embd.weight": ["Q4_0"],
        "blk.0.attn_v.weight": ["Q3_K", "Q5_0"],
        "blk.1.ffn_down.weight": ["Q4_K"],
        "blk.2.ffn_gate.weight": ["IQ4_NL"],
        "blk.1.attn_q.weight": ["Q2_K"],
        "blk.0.attn_output.weight": ["Q3_K"],
    }
    tried = {k: v for k, v in tried.items() if k in model.gguf.tensors}
    if not model.config.tied:
        tried["output.weight"] = ["Q4_K"]
    found = curvature(model, pieces, tried, draws=48)
    assert found.keys() == tried.keys()
    own = {tensor: t.type.name for tensor, t in model.gguf.tensors.items()}
    whole = Whole(model, pieces, None, tmp_path, 1)
    ratios = [
        found[tensor][kind] / whole.kl(own | {tensor: kind}).mean() for tensor, kinds in tried.items() for kind in kinds
    ]
    assert np.exp(np.abs(np.log(ratios)).max()) < 1.4, ratios
    assert np.exp(abs(np.log(ratios).mean())) < 1.15, ratios
    assert not list(tmp_path.iterdir())


def test_labels_are_drawn_from_the_distributions():
    logits = np.log(np.array([[0.5, 0.3, 0.2], [0.01, 0.01, 0.98]], np.float32)) + np.float32([[3], [-2]])
    drawn = sample(logits, np.array([3.0, -2.0]), 4000, np.random.default_rng(0))
    shares = np.stack([np.bincount(drawn[:, row], minlength=3) / 4000 for row in (0, 1)])
    assert np.abs(shares - [[0.5, 0.3, 0.2], [0.01, 0.01, 0.98]]).max() < 0.03


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_of_all(seed):
    rng = np.random.default_rng(seed)
    options = {
        str(n): [
            Option(str(k), int(rng.integers(1, 40)), float(rng.random() if k else np.inf))
            for k in range(int(rng.integers(2, 5)))
        ]
        for n in range(5)
    }
    feasible = {name: [o for o in some if np.isfinite(o.cost)] for name, some in options.items()}
    least = sum(min(o.price for o in some) for some in feasible.values())
    budget = least + int(rng.integers(0, 60))
    best = min(
        sum(o.cost for o in each)
        for each in itertools.product(*feasible.values())
        if sum(o.price for o in each) <= budget
    )
    chosen = choose(options, budget)
    taken = [next(o for o in options[name] if o.kind == kind) for name, kind in chosen.items()]
    assert sum(o.price for o in taken) <= budget
    assert sum(o.cost for o in taken) == pytest.approx(best)
    with pytest.raises(ValueError):
        choose(options, least - 1)


def test_a_choice_of_many_prices_stays_within_its_budget():
    rng = np.random.default_rng(0)
    options = {
        str(n): [Option(str(k), int(rng.integers(10**6, 10**9)), float(rng.random())) for k in range(6)]
        for n in range(150)
    }
    for budget in (3 * 10**10, 6 * 10**10):
        chosen = choose(options, budget)
        assert sum(o.price for name, some in options.items() for o in some if o.kind == chosen[name]) <= budget


def test_factors_recover_what_scales_a_type():
    true, rng = {"A": 1.5, "B": 0.8, "C": 1.1}, np.random.default_rng(0)
    models = []
    for _ in range(6):
        parts = dict(zip(true, rng.random(3), strict=True))
        models.append(Uniform("", {}, 0, parts, predicted(parts, true), 0.0))
    assert all(factors(models)[kind] == pytest.approx(value, rel=0.08) for kind, value in true.items())
    assert factors([]) == {}


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_mix_is_within_its_budget_and_better_than_one_type(files, name, tmp_path):
    model = anytune.load(files(name), device="numpy", threads=2)
    out = tmp_path / "mix.gguf"
    found = search(
        model,
        TEXT,
        "4.0bpw",
        target=out,
        types=["Q2_K", "Q3_K", "Q4_K", "Q4_0", "Q6_K"],
        context=48,
        chunks=8,
        threads=2,
    )
    assert found["bits_per_weight"] <= 4.0 and found["file_bytes"] == out.stat().st_size
    fitting = [u for u in found["uniform"] if u["fits"]]
    assert fitting and all(found["kl_measured"]["mean"] < u["kl"] for u in fitting)
    assert 0.8 < found["ratio"] < 1.25
    with GGUF.open(out) as file:
        assert {n: t.type.name for n, t in file.tensors.items()} == {t["name"]: t["to"] for t in found["tensors"]}
    again = anytune.load(out, device="numpy", threads=1)
    pieces = windows(model, TEXT, 48, None, 1)
    assert Reference(model, pieces).kl(again).mean() == pytest.approx(found["kl_held_out"]["mean"], rel=0.3)
    assert [p.name for p in tmp_path.iterdir()] == ["mix.gguf"]
    json.dumps(found)


def test_a_budget_in_bytes_is_the_files(files, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    size = files("llama").stat().st_size
    budget = size * 5 // 32
    assert (
        command(
            [
                "quantize",
                "search",
                "-m",
                str(files("llama")),
                "--budget",
                str(budget),
                "-f",
                str(text),
                "-c",
                "32",
                "--types",
                "Q3_K,Q4_K,Q8_0",
                "-o",
                str(tmp_path / "o.gguf"),
                "--json",
                "-t",
                "1",
            ]
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert 0.97 * budget < (tmp_path / "o.gguf").stat().st_size <= budget
    assert found["path"] == str(tmp_path / "o.gguf") and {t["to"] for t in found["tensors"]} <= {
        "Q3_K",
        "Q4_K",
        "Q8_0",
        "F32",
    }


def test_cycles_are_a_budget_of_their_own(files):
    model = anytune.load(files("llama"), device="numpy", threads=1)

    def price(tensor, kind):
        return {"Q4_0": 1, "Q8_0": 2}.get(kind) and tensor.n_elements // 1024 * {"Q4_0": 1, "Q8_0": 2}[kind]

    matrices = sum(t.n_elements // 1024 for t in model.gguf.tensors.values() if len(t.shape) == 2)
    found = search(
        model, TEXT, f"{int(1.5 * matrices)}cycles", types=["Q4_0", "Q8_0"], context=32, price=price, threads=1
    )
    assert found["price"] <= 1.5 * matrices and found["path"] is None
    assert {t["to"] for t in found["tensors"] if "costs" in t} == {"Q4_0", "Q8_0"}
    with pytest.raises(UserError, match="cannot be met"):
        search(model, TEXT, f"{matrices - 1}cycles", types=["Q4_0", "Q8_0"], context=32, price=price, threads=1)


@pytest.mark.parametrize("text", ["", "4", "-3bpw", "0bpw", "xMiB", "nancycles", "1e9bpw", "4.0 bpw extra"])
def test_what_is_no_budget(text):
    if text == "4":
        assert parse(text).unit == "bytes"
        return
    with pytest.raises(UserError):
        parse(text)
    assert parse("4.0bpw").amount == 4 and parse("1.5Mcycles").amount == 1_500_000 and parse("1KiB").amount == 1024


def test_mistakes_are_one_sentence(files, tmp_path, capsys):
    text, quantized = tmp_path / "text.txt", tmp_path / "q.gguf"
    text.write_text(TEXT)
    model = str(files("llama"))
    assert command(["quantize", model, str(quantized), "Q4_0"]) == 0
    base = ["quantize", "search", "-f", str(text), "-c", "32", "-t", "1"]
    for args, word in (
        (["-m", model, "--budget", "1KiB"], "cannot be met"),
        (["-m", model, "--budget", "much"], "not a budget"),
        (["-m", model, "--budget", "4bpw", "--types", "Q9_9"], "no tensor type"),
        (["-m", model, "--budget", "4bpw", "--types", ","], "--types"),
        (["-m", str(quantized), "--budget", "4bpw"], "rounding twice"),
        (["-m", model, "--budget", "4bpw", "-o", model], "the model itself"),
        (["-m", model, "--budget", "4bpw", "-o", str(text)], "the text itself"),
        (["-m", model, "--budget", "4bpw", "-o", str(text / "x.gguf")], "text.txt is a file"),
        (["-m", model, "--budget", "4bpw", "-c", "100000"], "context"),
    ):
        capsys.readouterr()
        assert command(base + args) == 2, args
        said = capsys.readouterr().err
        assert word in said and "Traceback" not in said, (args, said)
    text.write_text("short")
    assert command([*base, "-m", model, "--budget", "4bpw"]) == 2
