"""Perplexity and divergence, against sums by hand and against llama.cpp."""

import os

import numpy as np
import pytest

import anytune
from anytune.cli.main import run as command
from anytune.errors import UserError
from anytune.likelihood import baseline, perplexity
from anytune.quantization import quantize
from tests.support import models, tiny
from tests.support.require import need

TEXT = "the rest of the west wind was in the air; an old storm came on. " * 60


def load(path):
    return anytune.load(path, device="numpy", threads=2)


@pytest.fixture(scope="module", params=["llama", "llama-spm", "gemma3"])
def path(request, tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("tiny") / "m.gguf", request.param)


def log_softmax(logits):
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def by_hand(model, context, chunks):
    """float64 [scored tokens, vocabulary] and the tokens themselves: the second half of each window."""
    ids, rows, targets = model.tokenize(TEXT), [], []
    for k in range(chunks):
        window = ids[k * context : (k + 1) * context]
        if model.tokenizer.add_bos:
            window[0] = model.tokenizer.bos
        rows.append(log_softmax(model.logits(window))[context // 2 : -1])
        targets += window[context // 2 + 1 :]
    return np.concatenate(rows), np.array(targets)


@pytest.mark.parametrize(("context", "batch"), [(32, 1), (32, 200), (33, 128)])
def test_the_sum_by_hand(path, context, batch):
    model = load(path)
    facts = perplexity(model, TEXT, context=context, chunks=5, batch=batch)
    rows, targets = by_hand(model, context, 5)
    losses = -rows[np.arange(len(targets)), targets]
    assert facts["tokens"] == len(losses) == 5 * (context - 1 - context // 2)
    assert facts["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    deviation = np.sqrt((np.mean(losses**2) - losses.mean() ** 2) / (len(losses) - 1))
    assert facts["uncertainty"] == pytest.approx(facts["perplexity"] * deviation, rel=1e-4)


@pytest.mark.parametrize("kind", ["F32", "F16"])
def test_llama_cpp_finds_the_same(tmp_path, kind):
    """0.5 % apart at most, from its own distributions of the same windows."""
    need("xllamacpp")
    from anytune.llamacpp.judge import llamacpp_logprobs

    path = tiny.write(tmp_path / "m.gguf", "llama-spm", kind)
    model, context = load(path), 64
    facts = perplexity(model, TEXT, context=context, chunks=4)
    ids = model.tokenize(TEXT)
    windows = [[model.tokenizer.bos, *ids[k * context + 1 : (k + 1) * context]] for k in range(4)]
    places = [list(range(context // 2, context - 1))] * 4
    theirs = llamacpp_logprobs(path, windows, vocab=model.config.vocabulary, positions=places, threads=1)
    losses = [
        -rows[np.arange(len(rows)), window[context // 2 + 1 :]] for rows, window in zip(theirs, windows, strict=True)
    ]
    assert facts["perplexity"] == pytest.approx(np.exp(np.concatenate(losses).astype(np.float64).mean()), rel=5e-3)


def test_a_real_model_on_real_text():
    """SmolLM2 on Python's own documentation: in the range of English prose, and not by luck on other tokens."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[key] for key in sorted(topics))[:9000]
    value = perplexity(load(models.smollm2()), text, context=256, chunks=4)["perplexity"]
    mixed = " ".join(np.random.default_rng(0).permutation(text.split()))
    assert 5 < value < 60 and perplexity(load(models.smollm2()), mixed, context=256, chunks=4)["perplexity"] > 5 * value


def test_a_run_against_itself(path, tmp_path):
    model = load(path)
    alone = perplexity(model, TEXT, context=32, chunks=3, save=tmp_path / "base.bin")
    facts = perplexity(model, base=tmp_path / "base.bin")
    assert facts["perplexity"] == pytest.approx(alone["perplexity"], rel=1e-6)
    assert facts["perplexity_base"] == pytest.approx(alone["perplexity"], rel=1e-3)
    assert abs(facts["kl_mean"]) < 1e-5 and facts["kl_max"] < 1e-4  # 16 bits a number
    assert facts["same_top"] > 0.98 and facts["change_rms"] < 1e-4


def test_the_divergence_by_hand(tmp_path):
    """Of a 4-bit copy, from both models' logits; by LEAST the sum leaves out what is very unlikely."""
    path = tiny.write(tmp_path / "m.gguf", "llama")
    quantize(path, tmp_path / "q.gguf", "Q4_0")
    one, other = load(path), load(tmp_path / "q.gguf")
    perplexity(one, TEXT, context=64, chunks=4, save=tmp_path / "base.bin")
    facts = perplexity(other, base=tmp_path / "base.bin", batch=70)
    (p, targets), (q, _) = by_hand(one, 64, 4), by_hand(other, 64, 4)
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    assert facts["kl_mean"] == pytest.approx(kl.mean(), rel=1e-3) and kl.mean() > 1e-4
    assert facts["kl_max"] == pytest.approx(kl.max(), rel=1e-3)
    assert facts["same_top"] == pytest.approx((p.argmax(1) == q.argmax(1)).mean(), abs=0.02)
    rows = np.arange(len(targets))
    assert facts["ratio"] == pytest.approx(np.exp((p - q)[rows, targets].mean()), rel=1e-4)
    assert facts["change_mean"] == pytest.approx((np.exp(q) - np.exp(p))[rows, targets].mean(), abs=1e-5)


def test_packed_distributions_are_as_near_as_sixteen_bits():
    rng = np.random.default_rng(0)
    logits = (4 * rng.standard_normal((20, 101))).astype(np.float32)
    logits[3], logits[4, 7] = 1.0, 90.0
    want = log_softmax(logits)
    got = baseline.unpack(baseline.pack(logits, np.log(np.exp(logits.astype(np.float64)).sum(1))), 101)
    near = logits > logits.max(axis=1, keepdims=True) - 16
    assert np.abs(got - want)[near].max() < 16 / 65535
    assert (got.argmax(1) == want.argmax(1)).all()


def test_an_adapter_counts(tmp_path):
    path = tiny.write(tmp_path / "m.gguf", "llama")
    rng = np.random.default_rng(0)
    pair = tuple(rng.standard_normal(shape).astype(np.float32) for shape in ((2, 64), (128, 2)))
    adapter = anytune.Adapter({"blk.0.attn_q.weight": pair}, rank=2, alpha=4.0)
    model = load(path)
    plain, changed = (perplexity(model, TEXT, a, context=32, chunks=2)["perplexity"] for a in (None, adapter))
    assert changed != pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"GGUF" + b[4:], lambda b: b[:11], lambda b: b[:8] + b"\xff" * 12 + b[20:]]
)
def test_damaged_files_are_refused(tmp_path, damage):
    path = tiny.write(tmp_path / "m.gguf", "llama")
    model = load(path)
    perplexity(model, TEXT, context=32, chunks=2, save=tmp_path / "base.bin")
    (tmp_path / "bad.bin").write_bytes(damage((tmp_path / "base.bin").read_bytes()))
    with pytest.raises(UserError, match="bad.bin"):
        perplexity(model, base=tmp_path / "bad.bin")


def test_a_base_of_another_vocabulary(tmp_path):
    model = load(tiny.write(tmp_path / "m.gguf", "llama"))
    with (tmp_path / "base.bin").open("wb") as file:
        baseline.write_header(file, [[1] * 8], 77)
        file.write(bytes(2 * baseline.row_length(77) * baseline.scored(8)))
    with pytest.raises(UserError, match="77"):
        perplexity(model, base=tmp_path / "base.bin")


def test_an_interrupted_base_run_leaves_nothing(tmp_path):
    model = load(tiny.write(tmp_path / "m.gguf", "llama"))

    def stop(done, total, value):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perplexity(model, TEXT, context=32, chunks=4, batch=32, save=tmp_path / "base.bin", progress=stop)
    assert os.listdir(tmp_path) == ["m.gguf"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "{m}"], ["-f"]),
        (["-m", "{m}", "-f", "gone.txt"], ["gone.txt"]),
        (["-m", "{m}", "-f", "{t}", "-c", "4096"], ["4096", "256"]),
        (["-m", "{m}", "-f", "{short}"], ["tokens"]),
        (["-m", "{m}", "--kl-divergence"], ["--kl-divergence-base"]),
        (["-m", "{m}", "--kl-divergence", "--kl-divergence-base", "gone.bin"], ["gone.bin"]),
        (["-m", "{m}", "--kl-divergence", "--kl-divergence-base", "{t}"], ["text.txt"]),
        (["-m", "{m}", "-f", "{t}", "--hellaswag", "--multiple-choice"], ["choose one"]),
        (["-m", "{m}", "-f", "{t}", "--hellaswag"], ["text.txt", "6"]),
        (["-m", "{m}", "-f", "{t}", "--multiple-choice"], ["text.txt", "line 1"]),
        (["-m", "{m}", "-f", "{t}", "-c", "32", "--kl-divergence-base", "{short}/base.bin"], ["short.txt"]),
    ],
)
def test_mistakes_are_told_in_a_sentence(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    names = {"m": tiny.write(tmp_path / "m.gguf", "llama"), "t": tmp_path / "text.txt", "short": tmp_path / "short.txt"}
    names["t"].write_text(TEXT, "utf-8")
    names["short"].write_text("the west wind", "utf-8")
    assert command(["perplexity", *(a.format(**names) for a in arguments), "--device", "numpy"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("anytune: ") and said.count("\n") == 1, said
    assert all(word in said for word in words), said
