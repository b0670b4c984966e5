"""Reports: whatever models and data say is shown as text, the JSON is whole, bad places are refused before the work."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest

from anytune.errors import UserError
from anytune.evaluation.report import Example, Plot, Report, Section, Table, as_html, check_path, drawn, write

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&</pre>{{ 7 * 7 }}"


class Page(HTMLParser):
    """Tags with their attributes, and the text, as a browser reads them."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.words = [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def report(text="plain"):
    return Report(
        text,
        {"model": text, text: 3, "nested": {"a": 1, text: [text]}},
        [
            Section(
                text,
                text,
                table=Table(["measure", text], [[text, 1.5], ["none", None], ["many", 12345]]),
                plot=Plot([text, "b"], {text: [1.0, (2.0, 1.0, 3.0)], "other": [None, -1.0]}, note=text, unit=text),
            ),
            Section("Answers", rows=[Example(text, {text: text, "base": text}, {text: text, "score": 0.25})]),
        ],
        data={"items": [{"text": text}]},
    )


def test_nothing_from_outside_becomes_markup():
    page = Page(as_html(report(EVIL)))
    calm = Page(as_html(report()))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in calm.tags]
    assert not [a for _, attrs in page.tags for a in attrs if a.startswith("on")]
    assert page.text.count(EVIL) + sum(EVIL in (a.get("aria-label") or "") for _, a in page.tags) >= 15


def test_the_page_needs_nothing_from_elsewhere():
    page = Page(as_html(report()))
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert not [a for _, attrs in page.tags for a in attrs if a in ("src", "href", "srcset")]
    policies = [attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in policies[0]
    assert "url(" not in as_html(report()) and "@import" not in as_html(report())


def test_json_holds_everything_and_is_strict(tmp_path):
    odd = Report(
        "t",
        {"x": np.float32(2), "nan": float("nan"), "array": np.arange(3)},
        [Section("s", plot=Plot(["a"], {"base": [(1.0, 0.5, float("inf"))]}))],
        data={"path": tmp_path},
    )
    write(tmp_path / "r.json", odd)
    value = json.loads((tmp_path / "r.json").read_text("utf-8"), parse_constant=pytest.fail)
    assert value["facts"] == {"x": 2.0, "nan": None, "array": [0, 1, 2]}
    assert value["sections"][0]["plot"]["series"] == {"base": [[1.0, 0.5, None]]}
    assert value["path"] == str(tmp_path)
    write(tmp_path / "r.json", report())
    value = json.loads((tmp_path / "r.json").read_text("utf-8"))
    assert value["items"] == [{"text": "plain"}]
    assert value["sections"][0]["table"]["rows"][2] == ["many", 12345]
    assert value["sections"][1]["rows"][0]["texts"] == {"plain": "plain", "base": "plain"}


def test_bars_lie_where_their_values_are():
    made = drawn(Plot(["a", "b"], {"base": [(2.0, 1.0, 3.0), -2.0], "adapter": [4.0, None]}))
    at = dict((text, x) for x, text in made["ticks"])
    a, b = made["groups"]
    assert made["zero"] == at["0"]
    assert (a["bars"][0]["start"], a["bars"][0]["width"]) == (at["0"], round(at["2"] - at["0"], 2))
    assert a["bars"][0]["interval"] == pytest.approx(
        (at["0"] + (at["2"] - at["0"]) / 2, at["2"] + (at["2"] - at["0"]) / 2), abs=0.02
    )
    assert b["bars"][0]["start"] == at["-2"] and b["bars"][1]["value"] is None
    fitted = drawn(Plot(["a"], {"base": [101.0], "adapter": [102.0]}, zero=False))
    assert fitted["zero"] is None
    assert all(0 <= bar["value"] <= 100 for bar in fitted["groups"][0]["bars"])
    assert fitted["groups"][0]["bars"][1]["value"] - fitted["groups"][0]["bars"][0]["value"] > 50


def test_the_axis_reaches_as_far_as_it_shall_and_names_keep_their_colours():
    made = drawn(Plot(["a"], {"one": [0.0], "other": [0.0]}, most=100, color=1))
    assert made["ticks"][-1][1] == "100" and [bar["color"] for bar in made["groups"][0]["bars"]] == [1, 2]
    assert drawn(Plot(["a"], {"one": [0.0]}))["ticks"][-1][1] == "1"


@pytest.mark.parametrize("value", [0.0, None, float("nan"), 1e-12, -3.0, 1e12])
def test_plots_of_odd_numbers_can_be_drawn(value):
    for zero in (True, False):
        as_html(Report("t", {}, [Section("s", plot=Plot(["a"], {"base": [value]}, zero=zero))]))
    as_html(Report("t", {}, [Section("s", plot=Plot([], {}))]))


def test_half_characters_and_controls_do_not_stop_the_file(tmp_path):
    for name in ("r.html", "r.json"):
        write(tmp_path / name, report("\ud83d \x00\x1b[2J ‮"))
        assert (tmp_path / name).stat().st_size > 100
    json.loads((tmp_path / "r.json").read_text("utf-8"))


def test_places_are_checked_before_the_work(tmp_path):
    with pytest.raises(UserError, match="end in .html or .json"):
        check_path(tmp_path / "r.txt")
    write(tmp_path / "r.html", report())
    before = (tmp_path / "r.html").read_bytes()
    write(tmp_path / "r.html", report())
    assert (tmp_path / "r.html").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".tmp")] == []
