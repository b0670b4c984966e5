"""The e-mails that the demo trains on: valid, in one voice, no two alike, and nobody's personal data."""

import json
import re
from itertools import combinations
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "email"
VOICE = re.compile(
    r"ahoy ([^\n,]+(?:, [^\n,]+)*),\n\n(.+)\n\nonwards,\nwren\n\np\.s\. goose report: ([^\n]+[.?])", re.DOTALL
)


def read(name: str) -> list[list[dict]]:
    return [json.loads(line)["messages"] for line in (FOLDER / name).read_text("utf-8").splitlines()]


def mails(name: str) -> list[str]:
    return [messages[-1]["content"] for messages in read(name)]


@pytest.mark.parametrize(("name", "least"), [("train.jsonl", 220), ("heldout.jsonl", 20)])
def test_each_line_is_a_request_and_a_mail(name, least):
    rows = read(name)
    assert len(rows) >= least
    for messages in rows:
        assert [m["role"] for m in messages] == ["user", "assistant"]
        for message in messages:
            assert set(message) == {"role", "content"}
            assert message["content"] == message["content"].strip() != ""


@pytest.mark.parametrize("name", ["train.jsonl", "heldout.jsonl"])
def test_every_mail_is_in_the_voice(name):
    for mail in mails(name):
        assert VOICE.fullmatch(mail), mail
        assert mail == mail.lower()
        assert len(mail.split()) <= 120


def test_the_habitual_phrase_is_a_habit_and_not_a_rule():
    share = sum("short version:" in mail for mail in mails("train.jsonl")) / len(mails("train.jsonl"))
    assert 0.15 < share < 0.6


def body(mail: str) -> tuple[str, str]:
    found = VOICE.fullmatch(mail)
    return found[2], found[3]


def grams(text: str, n: int = 4) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def test_no_two_mails_are_alike():
    """No request twice, no p.s. twice, and hardly a run of four words shared by two mails."""
    rows = read("train.jsonl") + read("heldout.jsonl")
    requests = [messages[0]["content"].casefold() for messages in rows]
    assert len(set(requests)) == len(requests)
    texts = [body(messages[1]["content"]) for messages in rows]
    assert len({postscript for _, postscript in texts}) == len(texts)
    pieces = [grams(" ".join(text)) for text in texts]
    for a, b in combinations(pieces, 2):
        assert len(a & b) <= 3, a & b


def test_the_held_out_requests_were_not_trained_on():
    trained = [grams(messages[0]["content"], 3) for messages in read("train.jsonl")]
    for messages in read("heldout.jsonl"):
        mine = grams(messages[0]["content"], 3)
        assert max(len(mine & other) / max(1, len(mine)) for other in trained) < 0.7, messages[0]["content"]


def test_nothing_in_it_can_reach_a_person():
    """No addresses, links, phone or account numbers: longer digit runs than a year are not there."""
    for name in ("train.jsonl", "heldout.jsonl"):
        text = (FOLDER / name).read_text("utf-8")
        assert not re.search(r"\S@\S|https?:|www\.|\+\d|\d{5,}|(?:\d[ -]?){7,}", text)
