"""The commands around a trained adapter, on each architecture: verify, perplexity, and both exports as GGUF."""

import pytest

from tests.export import pairs
from tests.support import tiny
from tests.support.require import need

NAMES = tuple(dict.fromkeys((*tiny.EACH, *tiny.MIXTURES)))


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_means_the_same_everywhere(cli, tmp_path, name):
    need("xllamacpp")
    base, lora, text = tmp_path / "m.gguf", tmp_path / "a.gguf", tmp_path / "text.txt"
    tiny.write(base, name)
    pairs.adapter(base, size=0.5, served=True).save(lora)
    text.write_text(pairs.TEXT)
    common = ["-m", base, "-t", 1, "--device", "numpy"]
    verified = cli("verify", *common, "--lora", lora, "--positions", 4, "--json", code=0).json
    assert verified["ok"] and verified["with_adapter"]["ok"]
    merged = tmp_path / "merged.gguf"
    facts = cli("export", "merge", *common, "--lora", lora, "-o", merged, "--type", "same", "--json", code=0).json
    assert facts["ok"] and facts["checks"][0]["peer"] == "llama.cpp"
    measure = ["-f", text, "-c", 64, "--chunks", 2, "--json"]
    plain, pair = (
        cli("perplexity", *common, *more, *measure, code=0).json["perplexity"] for more in ([], ["--lora", lora])
    )
    whole = cli("perplexity", "-m", merged, "-t", 1, "--device", "numpy", *measure, code=0).json["perplexity"]
    assert whole == pytest.approx(pair, rel=1e-4) and whole != pytest.approx(plain, rel=1e-2)
    assert cli("export", "gguf", *common, "--lora", lora, "-o", tmp_path / "again.gguf", "--no-verify", code=0)
    assert (tmp_path / "again.gguf").read_bytes() == lora.read_bytes()
