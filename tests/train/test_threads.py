"""A whole training ends in the same bytes on any number of threads: of an adapter, and of the model itself."""

import shutil
from pathlib import Path

import pytest

from anytune.cli.main import run
from tests.support.require import need_bf16_products

BEFORE = Path(__file__).parent / "before"
COMMON = "-m model.gguf -f chats.jsonl -c 128 -ub 384 -b 384 --num-epochs 2 --max-steps 3 --learning-rate 1e-3 -q "
WAYS = {
    "adapter": "train --lora-rank 4 --lora-dropout 0.1 --output-adapter out.gguf",
    "model": "train --full --optimizer adafactor -o out.gguf",
}


@pytest.mark.parametrize(("device", "way"), [("numpy", "adapter"), ("numpy", "model"), ("cpu-bf16", "adapter")])
def test_any_number_of_threads_gives_the_same_bytes(tmp_path, monkeypatch, device, way):
    if device == "cpu-bf16":
        need_bf16_products()
    found = set()
    for threads in (1, 2, 3, 5):
        folder = tmp_path / str(threads)
        folder.mkdir()
        for name in ("model.gguf", "chats.jsonl"):
            shutil.copy(BEFORE / name, folder)
        monkeypatch.chdir(folder)
        words = f"{WAYS[way]} {COMMON} --device {device} -t {threads} --run-dir run"
        assert run(words.split()) == 0
        found.add((folder / "out.gguf").read_bytes())
    assert len(found) == 1
