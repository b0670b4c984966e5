"""The line of long commands: rate and time left are of what this run does, not of what an earlier one did."""

import pytest

from anytune.cli import progress
from anytune.cli.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_what_was_there_before_says_nothing_about_the_rate(clock, capsys):
    with Progress("answers", "tokens") as line:
        line.to(500, 1000)  # kept by an earlier run
        clock[0] += 10
        line.to(600, 1000)
        clock[0] += 40
        line.to(1000, 1000)
    first, second, last = capsys.readouterr().err.splitlines()
    assert first == "answers: 50 %  500 of 1.0 k tokens"
    assert second == "answers: 60 %  600 of 1.0 k tokens  10/s  ETA 40s"
    assert last == "answers: 100 %  1.0 k of 1.0 k tokens  10/s  ETA 0s"


def test_a_run_from_the_start(clock, capsys):
    with Progress("quantize", "weights") as line:
        line.to(0, 100)
        clock[0] += 2
        line.to(50, 100, "blk.0")
    assert capsys.readouterr().err == "quantize: 50 %  50 of 100 weights  25/s  ETA 2s  blk.0\n"
    with Progress("quantize", "weights", quiet=True) as line:
        line.to(50, 100)
    assert not capsys.readouterr().err
