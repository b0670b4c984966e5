"""What is taken away from a mail, and what is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytune.mail.html import to_text
from anytune.mail.redact import redact
from anytune.mail.strip import is_forward, own_text, quoted_text

GMAIL = (
    "Yes, that works.\n\nAnn\n\nOn Tue, 2 Jan 2024 at 10:00, Bo Li <bo@x.org> wrote:\n\n"
    "> Can we meet?\n>\n> Bo\n> > older\n"
)
WRAPPED = "Yes.\n\nOn Tuesday, 2 January 2024 at 10:00:12 CET, Bo Li with a name\n<bo@x.org> wrote:\n> Can we meet?"
OUTLOOK = (
    "Yes.\n\n________________________________\nFrom: Bo <bo@x>\nSent: Monday, 10:00\nTo: Ann\n"
    "Subject: Meeting\n\nCan we meet?"
)
GERMAN = "Ja, gern.\n\nVon: Bo\nGesendet: Montag\nAn: Ann\nBetreff: Treffen\n\nKönnen wir?"


@pytest.mark.parametrize(
    ("text", "own"),
    [
        (GMAIL, "Yes, that works.\n\nAnn"),
        (WRAPPED, "Yes."),
        (OUTLOOK, "Yes."),
        (GERMAN, "Ja, gern."),
        ("Am 02.01.2024 um 10:00 schrieb Bo:\n> Treffen?\nJa.\n> Wo?\nHier.", "Ja.\nHier."),
        ("Ja.\n\nLe mar. 2 janv. 2024 à 10:00, Bo <b@x> a écrit :\n\n> On se voit ?", "Ja."),
        ("Yes.\n\n-----Original Message-----\nFrom: Bo\n\nWhat?", "Yes."),
        ("See below.\n\n---------- Forwarded message ---------\nFrom: x\n\ntext", "See below."),
        ("Begin forwarded message:\n\nFrom: x", ""),
        ("Fine.\n\nAnn\n-- \nAnn, Example Ltd\n+1 555", "Fine.\n\nAnn"),
        ("Fine.\n\nSent from my iPhone", "Fine."),
        ("Bo writes:\n> a\nNo.", "No."),
        # what must stay
        (
            "As Kafka wrote:\n\nsomebody must have slandered him.",
            "As Kafka wrote:\n\nsomebody must have slandered him.",
        ),
        ("On that day I wrote:\nnothing.", "On that day I wrote:\nnothing."),
        ("From: the heart.\nyours", "From: the heart.\nyours"),
        ("a -- b\n--- \nc", "a -- b\n---\nc"),
        ("To: do list\nSubject: none\nDate: never", "To: do list\nSubject: none\nDate: never"),
        ("x\n\n\n\n\ny", "x\n\ny"),
        ("", ""),
    ],
)
def test_own_words(text, own):
    assert own_text(text) == own


def test_signatures_that_one_names():
    assert own_text("Fine.\nAnn\n\nAnn Lee\nExample Ltd\nTel 1", ["Ann Lee\nExample Ltd"]) == "Fine.\nAnn"


def test_what_is_quoted_is_the_first_level():
    assert quoted_text(GMAIL) == "Can we meet?\n\nBo"
    assert quoted_text("no quote") == ""


def test_forwards_are_known_by_subject_and_body():
    assert is_forward("fyi\n\n---------- Forwarded message ---------\nx", "Fwd: news")
    assert not is_forward("I forgot", "Re: news") and not is_forward("plain", "Fwd: news")


@given(st.text(max_size=300))
def test_nothing_is_added(text):
    found = own_text(text)
    assert {line.strip() for line in found.splitlines()} <= {line.strip() for line in text.splitlines()} | {""}
    assert own_text(found) == found


@pytest.mark.parametrize(
    ("html", "text"),
    [
        ("<p>One</p><p>two &amp; three<br>four</p>", "One\n\ntwo & three\nfour"),
        ("<head><style>x</style><title>t</title></head><script>y</script><div>a</div><div>b</div>", "a\nb"),
        ("<ul><li>one<li>two</ul>", "- one\n- two"),
        ("<pre>a  b\n c</pre>", "a b\nc"),
        (
            "<div>Yes.</div><div class='gmail_quote'>"
            "On 1 Jan, Bo &lt;b@x&gt; wrote:<blockquote>Can we?<br>Bo</blockquote>",
            "Yes.\nOn 1 Jan, Bo <b@x> wrote:\n\n> Can we?\n> Bo",
        ),
        ("a<!-- <p>b -->c<![if !mso]>d<![endif]><!DOCTYPE x>e < f <b>g</b>", "acde < f g"),
        ("a<!-- b", "a"),
        ("<blockquote>When?</blockquote><p>Today.</p>", "> When?\n\nToday."),
        ("<p>Yes.</p><div id='divRplyFwdMsg'>From: Bo</div><p>old</p>", "Yes."),
        ("<p>Yes.</p><div class='gmail_signature'>Ann Ltd</div>", "Yes."),
        ("</p></div>x", "x"),
        ("<div>a</div><div><br></div><div>b</div>", "a\n\nb"),
        ("<blockquote><pre>a\nb</pre></blockquote>", "> a\n> b"),
    ],
)
def test_html(html, text):
    assert to_text(html) == text


def test_html_replies_lose_their_quotes():
    html = (
        "<div>Yes.</div><div class='gmail_quote'>On 1 Jan, Bo &lt;b@x&gt; wrote:<blockquote>Can we?</blockquote>"
        "</div><p>PS me</p>"
    )
    assert own_text(to_text(html)) == "Yes.\n\nPS me" and quoted_text(to_text(html)) == "Can we?"


def test_redaction():
    text = (
        "Write to ann.lee+x@mail.example.org or see https://x.org/a?b=c, www.y.org. Call +49 (30) 123-45 67 or "
        "555-123-4567. On 2024-01-31, 31.01.2024, 2023-2024 at 10:30 "
        "I paid 1234.50 to DE89 3704 0044 0532 0130 00 for room 101."
    )
    found, count = redact(text)
    assert count == 6
    assert found == (
        "Write to [address] or see [link] [link] Call [number] or [number]. On 2024-01-31, 31.01.2024, "
        "2023-2024 at 10:30 I paid 1234.50 to [number] for room 101."
    )


@given(st.text(max_size=200))
def test_redaction_is_done_once_and_for_all(text):
    assert redact(redact(text)[0])[1] == 0
