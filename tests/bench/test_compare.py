"""anytune bench --compare: ratios, noise, what differs, and files from strangers."""

import copy
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.benchmark import document
from anytune.benchmark.compare import compare, report
from anytune.benchmark.cases import Cell, Settings, Test
from anytune.benchmark.run import result
from anytune.benchmark.table import csv_text, markdown
from anytune.errors import UserError
from tests.cli.conftest import cli  # noqa: F401 (a fixture)

EMPTY = document.begin(["anytune", "bench"], Settings(), [])
FACTS = {"engine": "numpy", "threads": 2, "hardware": "a chip", "peak_bytes": 1 << 20, "host_peak_bytes": 1 << 20}


def made(*rows: tuple[str, str, list[float]]) -> dict:
    """A document of (device, test kind, tokens/s of each round)."""
    whole = copy.deepcopy(EMPTY)
    whole["models"] = [
        {
            "file": "a.gguf",
            "sha256": "0" * 64,
            "bytes": 10 << 20,
            "architecture": "llama",
            "parameters": 1000,
            "type": "Q8_0",
        }
    ]
    for device, kind, rates in rows:
        cell = Cell(Path("a.gguf"), device, 2, Test(kind, 10))
        facts, problem = {**FACTS, "engine": device}, None if rates else "it broke."
        whole["results"].append(result(cell, facts, [10 / r for r in rates], problem))
    return whole


def verdicts(a: dict, b: dict) -> list[str]:
    return [p["verdict"] for p in compare(a, b)["pairs"]]


def test_what_is_noise_and_what_is_not():
    a = made(("numpy", "prompt", [100, 102, 104, 98, 99]))
    assert verdicts(a, made(("numpy", "prompt", [103, 105, 106, 107, 110]))) == ["within noise"]
    assert verdicts(a, made(("numpy", "prompt", [105, 106, 107, 108, 110]))) == ["B is faster"]
    assert verdicts(a, made(("numpy", "prompt", [50, 51, 52, 40, 97]))) == ["B is slower"]
    assert verdicts(a, made(("numpy", "prompt", [300, 301]))) == ["too few rounds to tell"]
    assert verdicts(a, made(("numpy", "prompt", []))) == ["failed in B"]
    assert verdicts(made(("numpy", "prompt", [])), made(("numpy", "prompt", []))) == ["failed in A and B"]
    (pair,) = compare(a, made(("numpy", "prompt", [200] * 5)))["pairs"]
    assert pair["ratio"] == 2.0 and pair["memory_ratio"] == 1.0


rates = st.lists(st.floats(1, 1e5), min_size=3, max_size=9)


@settings(deadline=None, max_examples=60)
@given(rates, rates)
def test_the_two_directions_agree(x, y):
    a, b = made(("numpy", "prompt", x)), made(("numpy", "prompt", y))
    (there,), (back,) = compare(a, b)["pairs"], compare(b, a)["pairs"]
    turned = {"B is faster": "B is slower", "B is slower": "B is faster", "within noise": "within noise"}
    assert turned[there["verdict"]] == back["verdict"]
    assert verdicts(a, a) == ["within noise"]
    if there["verdict"] != "within noise":
        assert (there["ratio"] > 1) == (there["verdict"] == "B is faster")


def test_partners_are_found_by_what_they_share():
    a = made(("numpy", "prompt", [1] * 3), ("numpy", "generate", [1] * 3), ("cuda", "prompt", [9] * 3))
    b = made(("cuda", "prompt", [9] * 3), ("webgpu", "generate", [2] * 3))
    found = compare(a, b)
    assert [(p["a"], p["b"]) for p in found["pairs"]] == [
        ("a.gguf, cuda, 2 threads, pp10",) * 2,
        ("a.gguf, numpy, 2 threads, tg10", "a.gguf, webgpu, 2 threads, tg10"),
    ]
    assert found["only_a"] == ["a.gguf, numpy, 2 threads, pp10"] and found["only_b"] == []
    text = report(found)
    assert "numpy, 2 threads, tg10 / a.gguf, webgpu" in text and "only in A: a.gguf, numpy" in text
    assert "no test in common" in report(compare(made(), b))


def test_differences_of_machines_models_and_settings_are_told():
    a = made(("numpy", "prompt", [1, 2, 3]))
    assert compare(a, copy.deepcopy(a))["differs"] == []
    b = copy.deepcopy(a)
    b["machine"]["cpu"], b["settings"]["rank"], b["models"][0]["sha256"] = "an abacus", 64, "1" * 64
    b["versions"]["numpy"], b["interrupted"], b["machine"]["load_before"] = "9", True, 17.0
    told = "\n".join(compare(a, b)["differs"])
    for words in (
        "machine differ in cpu",
        "an abacus in B",
        "settings differ in rank: 16 in A, 64 in B",
        "9 in B",
        "another file of the same name",
        "B was interrupted",
    ):
        assert words in told
    assert "load" not in told and told in report(compare(a, b))


def test_from_the_command_line(cli, tmp_path):
    paths = [tmp_path / name for name in ("a.json", "b.json")]
    for path, rate in zip(paths, (100, 200)):
        document.save(made(("numpy", "prompt", [rate, rate + 1, rate + 2])), path)
    assert "B is faster" in cli("bench", "--compare", *paths, code=0).out
    found = cli("bench", "--compare", *paths, "--json", code=0).json
    assert found["pairs"][0]["ratio"] == pytest.approx(201 / 101, 1e-3)
    assert "omit --print csv" in cli("bench", "--compare", *paths, "-o", "csv", code=2).err
    assert "There is no result file" in cli("bench", "--compare", paths[0], tmp_path / "c.json", code=2).err


def edits():
    """Ways in which a file may be wrong: (where, what is there)."""
    yield from (
        (("results", 0, name), value)
        for name, value in (
            ("tokens_per_s", "fast"),
            ("tokens_per_s", -1.0),
            ("tokens_per_s", True),
            ("tokens_per_s", 1e300),
            ("min", None),
            ("rounds", [1, "x"]),
            ("rounds", None),
            ("model", 3),
            ("threads", "all"),
            ("problem", 1),
            ("peak_bytes", []),
        )
    )
    yield from (
        ((name,), value)
        for name, value in (
            ("format", "other"),
            ("version", 2),
            ("results", {}),
            ("results", [1]),
            ("machine", None),
            ("models", [{}]),
        )
    )


@pytest.mark.parametrize(("where", "value"), edits(), ids=str)
def test_damaged_files_are_refused(tmp_path, where, value):
    whole = made(("numpy", "prompt", [1, 2, 3]))
    at = whole
    for name in where[:-1]:
        at = at[name]
    at[where[-1]] = value
    path = tmp_path / "a.json"
    path.write_text(json.dumps(whole))
    with pytest.raises(UserError, match="a.json is "):
        document.load(path)


@pytest.mark.parametrize("raw", [b"", b"[]", b"[" * 100_000, b"\xff\xfe", b'{"format": NaN}', b"1" * 5000])
def test_other_files_are_refused(tmp_path, raw):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(UserError, match="is not a result"):
        document.load(tmp_path / "a.json")


def test_what_strangers_wrote_does_not_reach_the_terminal(tmp_path):
    whole = made(("numpy", "prompt", [1, 2, 3]), ("numpy", "generate", []))
    whole["results"][1]["problem"], whole["results"][0]["model"] = "\x1b[2J gone", "a|b\x07.gguf"
    whole["machine"]["cpu"] = "\x1b]0;title\x07"
    path = tmp_path / "a.json"
    document.save(whole, path)
    loaded = document.load(path)
    for text in (markdown(loaded), report(compare(loaded, made(("numpy", "prompt", [4, 5, 6]))))):
        assert all(c == "\n" or c.isprintable() for c in text)
    table = [line for line in markdown(loaded).splitlines() if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1 and len(table) == 4
    assert csv_text(loaded).count("\n") >= 2


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("There is no file /home/anna/models/a.gguf: check it", "There is no file a.gguf: check it"),
        ("C:\\Users\\anna\\a.gguf is gone", "a.gguf is gone"),
        ("see ~/x/y.log", "see y.log"),
        ("12 tokens/s and 3/4 of it", "12 tokens/s and 3/4 of it"),
        ("'/tmp/b c/d.gguf' ends", "'d.gguf' ends"),
    ],
)
def test_folders_are_left_out(text, want):
    assert document.without_folders(text, Path("/tmp/b c/d.gguf")) == want
