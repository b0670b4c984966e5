"""anytune embed: the vectors of anytune.evaluation.embeddings (tested there against llama.cpp), in a file."""

import numpy as np
import pytest

import anytune
from anytune.evaluation.embeddings import embed

TEXTS = ["the rain in", "a sea of waves", "on"]


def test_the_file_holds_texts_and_their_vectors(cli, model, tmp_path):
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    cli("embed", "-m", model, "-f", tmp_path / "texts.txt", "-o", tmp_path / "out.npz", "-t", "1", code=0)
    with np.load(tmp_path / "out.npz") as found:  # and without pickle
        assert found["texts"].tolist() == TEXTS and found["embeddings"].dtype == np.float32
        right = embed(anytune.load(model, threads=1), TEXTS)
        np.testing.assert_array_equal(found["embeddings"], right)
    shown = cli("embed", "-m", model, *(a for text in TEXTS for a in ("-p", text)), "-t", "1", "--json", code=0).json
    np.testing.assert_allclose([row["embedding"] for row in shown["results"]], right, rtol=1e-6)
    pairs = cli("embed", "-m", model, "-p", TEXTS[0], "-p", TEXTS[1], "-t", "1", code=0).out
    assert float(pairs.split()[0]) == pytest.approx(float(right[0] @ right[1]), abs=1e-4)


@pytest.mark.parametrize(
    "args, said",
    [
        (("-p", "x", "-o", "a.npy"), "end in .npz"),
        ((), "nothing to embed"),
        (("-p", "x"), "only one text"),
        (("-f", "missing.txt", "-o", "a.npz"), "no text file"),
    ],
)
def test_what_is_refused(cli, model, args, said):
    assert said in cli("embed", "-m", model, *args, code=2).err
