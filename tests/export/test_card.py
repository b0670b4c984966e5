"""export card: an adapter's README says what the files say, and marks what they do not."""

import hashlib
import json

import pytest

from anytune.gguf import GGUF
from tests.cli.conftest import cli  # noqa: F401
from tests.support import tiny

CHATS = [
    {"messages": [{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": f"{n}"}]} for n in "abc"
]


@pytest.fixture
def trained(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write(tmp_path / "m.gguf", "llama")
    (tmp_path / "private").mkdir()
    data = tmp_path / "private" / "chats.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in CHATS))
    cli(
        "train",
        "-m",
        "m.gguf",
        "-f",
        data,
        "--max-steps",
        2,
        "-t",
        1,
        "-o",
        "a.gguf",
        "--run-dir",
        "run",
        "--learning-rate",
        3e-4,
    )
    return tmp_path


def test_it_quotes_base_data_settings_scores_and_licence(cli, trained):
    report = {"runs": {"base": {"likelihood": {"accuracy": 0.5, "interval": [0.4, 0.6], "questions": 33}}}}
    (trained / "biomed.json").write_text(json.dumps(report))
    similar = {"to_reference": {"chrF": {"base": [20.0, 10.0, 30.0], "mine": [None, None, None]}}}
    (trained / "compare.json").write_text(json.dumps(similar))
    out = cli(
        "export",
        "card",
        "-m",
        "m.gguf",
        "--lora",
        "a.gguf",
        "--run",
        "run",
        "--scores",
        "biomed.json",
        "--scores",
        "compare.json",
        "--license",
        "cc-by-4.0",
        "-o",
        "README.md",
    ).out
    text = (trained / "README.md").read_text("utf-8")
    with GGUF.open(trained / "m.gguf") as base:
        assert base.sha256() in text
    assert hashlib.sha256((trained / "a.gguf").read_bytes()).hexdigest() in text
    for part in (
        "license: cc-by-4.0",
        "rank 16",
        "| learning rate | 0.0003 |",
        "`chats.jsonl`",
        "| examples | 3 |",
        "0.500 [0.400, 0.600], 33 questions",
        "20.000 [10.000, 30.000]",
        "loss, first and last step",
    ):
        assert part in text, part
    assert "private" not in text and str(trained) not in text
    assert "TODO" in out and text.count("TODO") == int(out.split(": ")[1].split()[0])


def test_without_a_run_what_is_unknown_is_marked(cli, trained):
    cli("export", "card", "-m", "m.gguf", "--lora", "a.gguf", "-o", "README.md")
    text = (trained / "README.md").read_text("utf-8")
    assert "license: TODO" in text and "what was it trained on" in text and "--run" in text


@pytest.mark.parametrize("report", ["[", "[]", "{}", '{"runs": {"a": {"b": 3}}}', '{"runs": 3, "to_reference": [1]}'])
def test_a_file_that_is_no_report_is_refused(cli, trained, report):
    (trained / "r.json").write_text(report)
    said = cli(
        "export", "card", "-m", "m.gguf", "--lora", "a.gguf", "--scores", "r.json", "-o", "README.md", code=2
    ).err
    assert "r.json" in said and not (trained / "README.md").exists()


def test_a_folder_that_is_no_run_is_refused(cli, trained):
    assert (
        "settings.json"
        in cli("export", "card", "-m", "m.gguf", "--lora", "a.gguf", "--run", "private", "-o", "README.md", code=2).err
    )
