"""Reading mailboxes: against the stdlib's own readers, and what is broken or hostile."""

import email.policy
import gzip
import mailbox
import random
from email.message import EmailMessage

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.mail import boxes
from anytune.mail.parse import parse

LINES = st.lists(
    st.sampled_from(
        ["From me to you", ">From here", ">>From there", "", "a", "From: x", "From a@b Mon 10:00", "x" * 200000, "é"]
    ),
    max_size=8,
)


def mail(body="Hello.", html=None, sender="Ann <ann@example.org>", **headers):
    made = EmailMessage()
    made["From"], made["To"] = sender, headers.pop("to", "me@example.org")
    for name, value in headers.items():
        made[name.replace("_", "-")] = value
    if body is not None:
        made.set_content(body)
    if html is not None:
        made.add_alternative(html, subtype="html") if body is not None else made.set_content(html, subtype="html")
    return made


@settings(max_examples=40, deadline=None)
@given(st.lists(LINES, min_size=1, max_size=5))
def test_mbox_is_read_as_it_was_written(tmp_path_factory, bodies):
    path = tmp_path_factory.mktemp("box") / "all.mbox"
    box = mailbox.mbox(path)
    texts = ["\n".join(lines) + "\n" for lines in bodies]
    for text in texts:
        box.add(f"From: a@b\nSubject: s\n\n{text}".encode())  # the stdlib quotes "From " lines at its writing
    box.flush()
    box.close()
    found = [raw.partition(b"\n\n")[2].decode() for raw in boxes.messages([path])]
    # it quotes "From " alone, so that a line that was quoted already cannot be told from one that was not
    wanted = [f"\n{text}".replace("\n>From ", "\nFrom ").replace("\n>>From ", "\n>From ") for text in texts]
    assert [text.rstrip("\n") for text in found] == [text[1:].rstrip("\n") for text in wanted]


def test_every_kind_of_box(tmp_path):
    raw = mail(Subject="s").as_bytes()
    maildir = mailbox.Maildir(tmp_path / "dir")
    maildir.add(raw)
    (tmp_path / "one.eml").write_bytes(raw)
    both = b"From x Mon Jan 1 10:00:00 2024\n" + raw + b"\nFrom x 10:00\n" + raw
    (tmp_path / "more.mbox.gz").write_bytes(gzip.compress(both))
    (tmp_path / "notes.txt").write_text("no mail")
    files = boxes.find([tmp_path])
    assert len(files) == 3 and all(parse(m).subject == "s" for m in boxes.messages(files))
    assert len(list(boxes.messages(files))) == 4
    seen = []
    list(boxes.messages(files, lambda *x: seen.append(x)))
    assert seen[-1][0] == seen[-1][1] == sum(f.stat().st_size for f in files)


def test_a_huge_message_is_cut_and_the_next_one_found(tmp_path, monkeypatch):
    monkeypatch.setattr(boxes, "KEEP", 1000)
    start, text = b"From x Mon Jan 1 10:00:00 2024\n", b"From: a@b\nMessage-ID: <%d@x>\n\n"
    (tmp_path / "m.mbox").write_bytes(
        start
        + text % 1
        + b"y" * 5_000_000
        + b"\n\n"
        + start
        + text % 2
        + b"z\n" * 100000
        + b"\n"
        + start
        + text % 3
        + b"end\n"
    )
    found = list(boxes.messages([tmp_path / "m.mbox"]))
    assert [parse(raw).id for raw in found] == ["<1@x>", "<2@x>", "<3@x>"]
    assert max(map(len, found)) < 1000 + 2 * boxes.LINE


def test_bad_places(tmp_path):
    (tmp_path / "t.zip").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.mbox.gz").write_bytes(gzip.compress(b"From x 10:00\n" * 10000)[:60])
    for path, why in (("no", "There is no mailbox"), ("t.zip", "unpack it"), ("empty", "contains no e-mails")):
        with pytest.raises(UserError, match=why):
            boxes.find([tmp_path / path])
    with pytest.raises(UserError, match=r"torn\.mbox\.gz cannot be read"):
        list(boxes.messages([tmp_path / "torn.mbox.gz"]))


def test_headers_are_decoded():
    made = parse(
        b"From: =?utf-8?q?J=C3=BCrgen?= <J@Example.ORG>\nTo: Bo <bo@x>\n"
        b"Subject: =?iso-8859-1?q?Gr=FC=DFe?=\n =?utf-8?q?_heute?=\nMessage-ID: <1@x>\n"
        b"References: <a@x>\n <b@x> <c@x>\nIn-Reply-To: <b@x> (mail of Bo)\nX-GM-THRID: 17\n\nhi"
    )
    assert (made.name, made.sender, made.to, made.subject) == ("Jürgen", "j@example.org", "Bo", "Grüße heute")
    assert (made.id, made.parents, made.thread, made.text) == ("<1@x>", ("<a@x>", "<c@x>", "<b@x>"), "17", "hi")
    assert parse(b"From: a@b\nAuto-Submitted: auto-replied\n\n").automatic
    assert not parse(b"From: a@b\nAuto-Submitted: no\n\n").automatic


def test_bodies():
    assert parse(mail("plain words", "<p>html words</p>").as_bytes()).text.strip() == "plain words"
    assert parse(mail(None, "<p>html <b>words</b></p>").as_bytes()).text == "html words"
    attached = mail("my words")
    attached.add_attachment("not mine", filename="a.txt")
    attached.add_attachment(mail("another mail"))
    assert parse(attached.as_bytes()).text.strip() == "my words"
    latin = b"From: a@b\nContent-Type: text/plain; charset=%s\nContent-Transfer-Encoding: 8bit\n\nGr\xfc\xdfe"
    for charset in (b"iso-8859-1", b"no-such-charset", b"utf-8", b"us-ascii"):
        assert parse(latin % charset).text == "Grüße"
    flowed = (
        b"From: a@b\nContent-Type: text/plain; format=flowed\n\n"
        b"One long \nline.\nShort.\n> quoted \n> more\n\n-- \nsign"
    )
    assert parse(flowed).text == "One long line.\nShort.\n> quoted\n> more\n\n-- \nsign"


def test_hostile_messages_yield_text_or_nothing():
    deep = b"From: a@b\n" + b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (n, n) for n in range(3000)
    )
    wide = b"From: a@b\nContent-Type: multipart/mixed; boundary=b\n\n" + b"--b\nContent-Type: text/plain\n\nx\n" * 20000
    cases = [
        deep,
        wide,
        b"",
        b"\n",
        b"From: a@b",
        b"\xff" * 1000,
        b"From: " + b"<" * 20000 + b"a@b\n\nx",
        b"From: =?x?b?" + b"=" * 5000 + b"?= <a@b>\n\nx",
        b"From: a@b\nSubject: =?utf-8?b?!!!?=\n\nx",
        b"From: a@b\nReferences: " + b"<x@y> " * 20000 + b"\n\nx",
        b"From: a@b\nContent-Type: text/html\n\n" + b"<div>" * 50000 + b"x",
        b"From: a@b\nContent-Type: text/html\n\n" + b"<!--" * 20000,
        b"From: a@b\nContent-Type: text/html\n\n<![x[ <!DOCTYPE [",
        b"From: a@b\nContent-Type: text/html\n\n" + b"</p>" * 50000 + b"<p" * 50000,
        b"From: a@b\nContent-Transfer-Encoding: base64\n\n" + b"A" * 100001,
        b"From: a@b\nContent-Type: text/plain; charset*=x''%ff\n\nx",
        b"From: a@b\nContent-Type: multipart/mixed\n\nno boundary",
    ]
    for raw in cases:
        made = parse(raw)
        assert made is None or isinstance(made.text, str)
    rng, whole = (
        random.Random(0),
        mail("words", "<p>w</p>", Subject="=?utf-8?q?x?=", Message_ID="<1@x>").as_bytes(policy=email.policy.SMTP),
    )
    for _ in range(800):
        raw = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            raw[rng.randrange(len(raw))] = rng.choice(b"\x00\xff\n\r<>=?;:\"' -" + bytes([rng.randrange(256)]))
        made = parse(bytes(raw[: rng.randint(1, len(raw))]))
        assert made is None or made.text is not None
