"""Every folder of benchmarks/community is sound, and docs/BENCHMARKS.md is made from them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "bench"))

import community  # noqa: E402


FOLDERS = sorted(p for p in community.COMMUNITY.iterdir() if p.is_dir())


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_each_folder_is_sound(folder):
    assert community.check(folder) == []


def test_the_page_is_made_from_them():
    assert FOLDERS, "a page of no machine"
    done = subprocess.run([sys.executable, "bench/community.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def row(kind, model, **more):
    return {
        **{
            "model": model,
            "test": "t",
            "kind": kind,
            "device": "webgpu",
            "tokens_per_s": 10.0,
            "min": 9.0,
            "max": 11.0,
        },
        **{
            "rounds": [9.0, 10.0, 11.0],
            "threads": None,
            "problem": None,
            "first_token_s": [0.5] * 3,
            "peak": [12.0] * 3,
        },
        **{
            "lowest": [8.0] * 3,
            "peak_bytes": 1,
            "estimate_bytes": None,
            "hardware": "Adreno 830",
            "asked_device": "auto",
        },
        **more,
    }


def document(*rows):
    models = [{"file": r["model"], "type": r["model"].split("-")[-1].removesuffix(".gguf").upper()} for r in rows]
    machine = {"cpu": "Snapdragon", "cores": 8, "memory_gib": 12, "system": "Linux 6"}
    return {
        "format": "anytune-bench",
        "version": 1,
        "date": "2026-12-01 10:00 UTC",
        "machine": machine,
        "versions": {"anytune": "0.1.0"},
        "settings": {},
        "models": models,
        "results": list(rows),
        "interrupted": False,
        "command": "anytune bench",
    }


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "adreno-830"
    place.mkdir()
    (place / "README.md").write_text("a phone")
    (place / "log.txt").write_text("what came")
    oom = row("generate", "m-f32.gguf", tokens_per_s=None, rounds=[], problem="the machine ran out of memory: give -d")
    found = document(
        row("generate", "m-q8_0.gguf"),
        row("generate", "m-q4_0.gguf", tokens_per_s=20.0),
        row("generate", "m-q4_0.gguf", tokens_per_s=99.0, test="another"),  # is not compared with Q8_0's test
        oom,
        row("prompt", "m-q8_0.gguf"),
    )
    (place / "bench.json").write_text(json.dumps(found))
    monkeypatch.setattr(community, "COMMUNITY", tmp_path)
    return place


def test_a_column_a_device_and_cells_that_ran_out_of_memory(folder):
    assert community.check(folder) == []
    page = community.page()
    assert "| model | type | test | adreno-830, webgpu |" in page
    assert "| m | F32 | t | OOM |" in page and "| m | Q8_0 | t | 10.00 (8.000 – 12.00) |" in page
    assert page.index("| m | F32") < page.index("| m | Q8_0") < page.index("| m | Q4_0")
    assert "500 ms" in page and "Adreno 830" in page
    assert "Q4_0 over Q8_0 in generation: 2.00 times" in page and "1 cell ran out of memory" in page


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "log.txt").unlink(), "log.txt is missing"),
        (lambda f: (f / "README.md").write_text(" "), "README.md is missing or empty"),
        (lambda f: (f / "bench.json").unlink(), "bench.json is missing"),
        (lambda f: (f / "bench.json").write_text("{}"), "not a result of anytune bench"),
        (
            lambda f: (f / "bench.json").write_text(json.dumps(document(row("prompt", "m-q8_0.gguf", rounds=[1.0])))),
            "rounds",
        ),
        (lambda f: (f / "bench.json").write_text(json.dumps(document())), "no results"),
        (lambda f: (f / "log.txt").write_text("loaded /home/anna/m.gguf"), "names somebody's folder"),
    ],
)
def test_what_is_not_sound_is_named(folder, harm, words):
    harm(folder)
    assert any(words in sentence for sentence in community.check(folder))


def test_a_folder_of_another_name_is_refused(folder):
    other = folder.with_name("Adreno 830")
    folder.rename(other)
    assert any("lower case" in sentence for sentence in community.check(other))
