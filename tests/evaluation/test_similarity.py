"""Measures of texts against sacrebleu and rouge-score, and embeddings against transformers and llama.cpp."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import anytune
from anytune.evaluation import embeddings
from anytune.evaluation.similarity import chrf, jaccard, longest_common_subsequence, rouge_l, words
from tests.support import tiny
from tests.support.require import need

WORDS = st.lists(
    st.sampled_from(["the", "The", "a", "rain", "in", "spain,", "it's", "x_y", "9", "—", "!", "\n", "été"]), max_size=25
).map(" ".join)
TEXTS = st.one_of(WORDS, st.text(max_size=40))


@settings(max_examples=150, deadline=None)
@given(TEXTS, TEXTS)
@example("", "")
@example("a", "")
@example("ab", "abcdefgh")
def test_chrf_is_sacrebleus(a, b):
    sacrebleu = need("sacrebleu")
    assert chrf(a, b) == pytest.approx(sacrebleu.sentence_chrf(a, [b]).score, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS)
@example("", "a")
def test_rouge_l_is_rouge_scores(a, b):
    scorer = need("rouge_score.rouge_scorer").RougeScorer(["rougeL"], use_stemmer=False)
    a, b = a.replace("été", "ete"), b.replace("été", "ete")  # rouge-score drops every letter outside ASCII
    assert rouge_l(a, b) == pytest.approx(scorer.score(b, a)["rougeL"].fmeasure, abs=1e-12)


@given(st.lists(st.sampled_from("abcd"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_longest_common_subsequence_is_the_tables(a, b):
    table = np.zeros((len(a) + 1, len(b) + 1), int)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1, j + 1] = table[i, j] + 1 if x == y else max(table[i, j + 1], table[i + 1, j])
    assert longest_common_subsequence(a, b) == table[-1, -1]


@given(TEXTS, TEXTS)
def test_equal_texts_score_fully_and_jaccard_is_symmetric(a, b):
    assert jaccard(a, b) == jaccard(b, a) and 0 <= jaccard(a, b) <= 1
    assert jaccard(a, a) == 1
    if words(a):
        assert rouge_l(a, a) == 1 and chrf(a, a) == pytest.approx(100)


def test_words_of_every_script_count():
    assert rouge_l("über den wolken", "über den dächern") == pytest.approx(2 / 3)
    assert jaccard("привет мир", "Привет, Мир!") == 1


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_embeddings_are_transformers_mean_of_last_hidden_states(tmp_path, name, monkeypatch):
    torch = need("torch")
    from tests.support.twin import transformers_model

    path = tiny.write(tmp_path / "m.gguf", name)
    model, peer = anytune.load(path, threads=1), transformers_model(path)
    texts = ["the rain in spain", "on", "a sea of the worst kind, with waves and then more of it"]
    monkeypatch.setattr(embeddings, "BATCH", 12)  # so that some run together and some alone
    found = embeddings.embed(model, texts)
    for row, text in zip(found, texts, strict=True):
        with torch.no_grad():
            out = peer(torch.tensor([model.tokenize(text)]), output_hidden_states=True)
        wanted = out.hidden_states[-1][0].mean(0).numpy()  # the last one is behind the norm
        np.testing.assert_allclose(row, wanted / np.linalg.norm(wanted), atol=2e-4)
    np.testing.assert_allclose(embeddings.cosines(found, found), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["llama-spm", "gemma3"])
def test_embeddings_are_llama_cpps_with_mean_pooling(tmp_path, name):
    library = need("xllamacpp")
    path = tiny.write(tmp_path / "m.gguf", name)
    wanted = library.CommonParams()
    wanted.model.path, wanted.embedding, wanted.n_ctx, wanted.n_parallel, wanted.warmup = str(path), True, 256, 1, False
    wanted.pooling_type = library.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    texts = ["the rain in spain", "a sea of the worst kind, with waves and then more of it"]
    answer = library.Server(wanted).handle_embeddings({"input": texts, "model": "m"})
    answer = json.loads(answer) if isinstance(answer, str) else answer
    theirs = np.array([row["embedding"] for row in answer["data"]])
    ours = embeddings.embed(anytune.load(path, threads=1), texts)
    np.testing.assert_allclose(ours, theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=2e-3)


def test_empty_texts_and_other_rows_partners():
    a = np.eye(3, dtype=np.float32)
    b = np.roll(a, 1, axis=0)
    assert embeddings.unrelated(a, b) == pytest.approx(3 / 6)
    assert embeddings.unrelated(a[:1], b[:1]) is None
