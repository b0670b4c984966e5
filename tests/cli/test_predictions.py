"""generate with files of prompts and answers, its figures, and short flags that are not read as others with a value."""

import json

import pytest

from anytune.benchmark.generation import WINDOW, generation_stats, summary


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("the rain in\n\na sea of waves\non\n")
    return path


def test_each_line_is_answered_as_it_would_be_alone(cli, model, prompts, tmp_path):
    common = ("--temp", "0", "-n", "7", "-t", "1")
    alone = [
        cli("generate", "-m", model, "-p", line, *common, code=0).out[:-1]
        for line in prompts.read_text().splitlines()
        if line
    ]
    cli("generate", "-m", model, "--prompts", prompts, "-o", tmp_path / "out.jsonl", *common, code=0)
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == alone
    assert [row["prompt"] for row in rows] == ["the rain in", "a sea of waves", "on"]
    outcome = cli("generate", "-m", model, "--prompts", prompts, "-o", tmp_path / "out.txt", *common, code=0)
    assert (tmp_path / "out.txt").read_text() == "".join(" ".join(text.split()) + "\n" for text in alone)
    folded = sum(" ".join(text.split()) != text.strip() for text in alone)
    assert (f"{folded} of 3 answers" in outcome.err) == bool(folded)
    shown = cli("generate", "-m", model, "--prompts", prompts, *common, "--json", code=0).json
    assert [row["text"] for row in shown["results"]] == alone


def test_a_system_message_goes_before_every_prompt(cli, model, prompts):
    common = ("--temp", "0", "-n", "3", "-t", "1", "--json")
    one = cli("generate", "-m", model, "--prompts", prompts, "-sys", "be brief", *common, code=0).json["results"]
    alone = cli("generate", "-m", model, "-p", "on", "-sys", "be brief", *common, code=0).json["results"]
    assert one[2]["prompt_tokens"] == alone[0]["prompt_tokens"] and one[2]["ids"] == alone[0]["ids"]


def test_a_file_of_many_lines_is_one_prompt_and_says_so(cli, model, prompts):
    outcome = cli("generate", "-m", model, "-f", prompts, "--temp", "0", "-n", "2", "-t", "1", code=0)
    assert "one prompt of 3 lines" in outcome.err


@pytest.mark.parametrize(
    "args, said",
    [
        (("--prompts", "PROMPTS", "-p", "x"), "one or the other"),
        (("-p", "x", "-o", "a.csv"), "neither .jsonl"),
        (("--bench", "2", "--prompts", "PROMPTS"), "only measures"),
        (("--prompts", "PROMPTS", "-o", "PROMPTS"), "overwritten"),
        (("--prompts", "missing.txt"), "no prompt file"),
        (("-sx", "-p", "x"), "No such option '-sx'"),
        (("-pst",), "No such option '-pst'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_runs(cli, model, prompts, monkeypatch, args, said):
    monkeypatch.setattr("anytune.load", None)
    outcome = cli("generate", "-m", model, *(prompts if a == "PROMPTS" else a for a in args), code=2)
    assert said in outcome.err and "Traceback" not in outcome.err


def test_a_number_may_follow_its_letter(cli, model):
    split = cli("generate", "-m", model, "-p", "on", "-n", "4", "-s", "3", "-t", "1", "-st", code=0).out
    assert cli("generate", "-m", model, "-p", "on", "-n4", "-s3", "-t1", "--single-turn", code=0).out == split


def test_bench_and_stats_report_each_run(cli, model):
    command = ("generate", "-m", model, "-p", "the rain in", "--raw", "-n", "9", "--temp", "0", "-t", "1")
    shown = cli(*command, "--bench", "3", "--json", code=0).json
    assert len(shown["runs"]) == shown["summary"]["runs"] == 3
    for run in shown["runs"]:
        assert 0 < run["lowest"] <= run["mean"] <= run["peak"] and 0 < run["first_token_s"] <= run["seconds"]
    assert shown["summary"]["peak"] == max(run["peak"] for run in shown["runs"])
    table = cli(*command, "--bench", "2", code=0).out
    assert table.count("\n| ") == 5 and "TTFT" in table
    assert "tokens/s" in cli(*command, "--stats", code=0).err


def test_figures_of_known_times():
    times = [1.0, *(1.0 + 0.1 * n for n in range(1, WINDOW + 1)), 3.8]
    found = generation_stats(5, 0.5, times)
    assert (found.prompt_tokens, found.tokens, found.first_token_s) == (5, WINDOW + 2, 0.5)
    assert found.peak == pytest.approx(10) and found.lowest == pytest.approx(WINDOW / 2.7)
    assert found.mean == pytest.approx((WINDOW + 1) / 2.8) and found.seconds == pytest.approx(3.3)
    one = generation_stats(1, 0.0, [0.25])
    assert (one.first_token_s, one.mean, one.peak, one.lowest) == (0.25, None, None, None)
    whole = summary([found, one, generation_stats(1, 0.0, [])])
    assert whole["runs"] == 3 and whole["first_token_s"] == pytest.approx(0.375) and whole["peak"] == pytest.approx(10)
    assert summary([one])["peak"] is None
