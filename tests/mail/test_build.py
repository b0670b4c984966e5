"""From a mailbox to rows: pairs, what is left out and why, the split, and what goes wrong."""

import json
import mailbox
import os

import pytest

from anytune.errors import UserError
from anytune.mail import build as module
from anytune.mail.build import build
from tests.mail.test_boxes import mail

ME = "me@example.org"


def box(path, *mails):
    made = mailbox.mbox(path)
    for one in mails:
        made.add(one)
    made.flush()
    made.close()
    return path


def talk(n, question, answer, **more):
    """A mail to me and my answer."""
    asked = mail(question, sender=f"Bo <bo{n}@x.org>", Message_ID=f"<q{n}@x>", Subject=f"Topic {n}")
    said = mail(
        answer,
        sender=f"Me Myself <{ME.upper()}>",
        to="Bo <bo@x.org>",
        Message_ID=f"<a{n}@x>",
        Subject=f"Re: Topic {n}",
        In_Reply_To=f"<q{n}@x>",
        **more,
    )
    return asked, said


def many(count=40):
    return [m for n in range(count) for m in talk(n, f"Question {n}, please?", f"Answer number {n}.")]


def rows(folder, split):
    return [json.loads(line)["messages"] for line in (folder / f"{split}.jsonl").read_text("utf-8").splitlines()]


def everything(folder):
    return [row for split in ("train", "validation", "test") for row in rows(folder, split)]


def test_pairs_and_why_others_are_left_out(tmp_path):
    quoted = "Yes, on Monday.\n\nOn 1 Jan 2024, Bo <bo@x.org> wrote:\n> Can we meet?\n>\n> Bo\n"
    sent = box(
        tmp_path / "sent.mbox",
        talk(1, "", "The plain answer.\n-- \nMe, Example Ltd")[1],
        mail(quoted, sender=ME, Message_ID="<b@x>", In_Reply_To="<gone@x>"),  # its original is quoted
        mail("Nobody knows to what.", sender=ME, Message_ID="<c@x>", In_Reply_To="<gone2@x>"),
        mail("A new mail of mine.", sender=ME, to="Cy <cy@x.org>", Message_ID="<d@x>", Subject="News"),
        mail("And one thing more.", sender=ME, Message_ID="<e@x>", In_Reply_To="<d@x>"),  # to myself
        mail("fyi\n---------- Forwarded message ---------\nx", sender=ME, Message_ID="<f@x>", Subject="Fwd: x"),
        mail("> only\n> quotes", sender=ME, Message_ID="<g@x>", In_Reply_To="<q1@x>"),
        mail("ok", sender=ME, Message_ID="<h@x>", In_Reply_To="<q1@x>"),
        mail(
            "I am on holiday until May.",
            sender=ME,
            Message_ID="<i@x>",
            In_Reply_To="<q1@x>",
            Auto_Submitted="auto-replied",
        ),
        talk(1, "", "The plain answer.")[1],  # the same id again
        mail("The plain answer.", sender=ME, Message_ID="<j@x>", In_Reply_To="<q1@x>"),  # the same words again
        mail("word " * 60, sender=ME, Message_ID="<k@x>", In_Reply_To="<q1@x>"),
    )
    received = box(tmp_path / "inbox.mbox", talk(1, "The question?\n> an older one", "")[0])
    facts = build([sent, received], [ME], tmp_path / "out", max_words=50, validation=0.2, test=0)
    pairs = {
        (row[0]["content"], row[1]["content"])
        for split in ("train", "validation")
        for row in rows(tmp_path / "out", split)
    }
    assert pairs == {("The question?", "The plain answer."), ("Can we meet?\n\nBo", "Yes, on Monday.")}
    assert facts["counts"] == {
        "messages": 13,
        "own": 11,
        "original_missing": 1,
        "new": 1,
        "follow_ups": 1,
        "forwards": 1,
        "without_own_words": 1,
        "too_short": 1,
        "automatic": 1,
        "duplicates": 2,
        "too_long": 1,
    }
    assert json.loads((tmp_path / "out" / "recipe.json").read_text()) == facts
    assert not (tmp_path / "out" / "test.jsonl").exists()


def test_system_subject_new_and_redaction(tmp_path):
    asked, said = talk(7, "Call me at +49 30 1234567 or bo@x.org.", "Will do, see https://x.org/7 please.")
    new = mail(
        "A new mail of mine.", sender=f"Me Myself <{ME}>", to="Cy <cy@x.org>", Message_ID="<d@x>", Subject="News"
    )
    facts = build(
        [box(tmp_path / "m.mbox", asked, said, new)],
        [ME],
        tmp_path / "out",
        redact=True,
        subject=True,
        include_new=True,
        system="Write a reply in {name}'s style. {0}",
        validation=0,
        test=0,
    )
    found = rows(tmp_path / "out", "train")
    assert [m["role"] for m in found[0]] == ["system", "user", "assistant"]
    assert found[0][0]["content"] == "Write a reply in Me Myself's style. {0}"
    assert found[0][1]["content"] == "Subject: Re: Topic 7\n\nCall me at [number] or [address]."
    assert found[0][2]["content"] == "Will do, see [link] please."
    assert found[1][1]["content"] == "Write an e-mail to Cy. Subject: News"
    assert facts["counts"]["redacted"] == 3


def test_conversations_are_not_divided_and_the_seed_decides(tmp_path):
    mails = many(30)
    for n in range(10):  # a long conversation: each mail refers to the first one or to the one before
        mails += [
            mail(f"More {n}?", sender="bo@x.org", Message_ID=f"<more{n}@x>", References="<start@x>"),
            mail(f"More answer {n}.", sender=ME, Message_ID=f"<back{n}@x>", In_Reply_To=f"<more{n}@x>"),
        ]
    path = box(tmp_path / "m.mbox", *mails)
    facts = build([path], [ME], tmp_path / "a", validation=0.1, test=0.25)
    assert facts["rows"] == {"train": 26, "validation": 4, "test": 10} and facts["threads"] == 31
    homes = {
        split
        for split in ("train", "validation", "test")
        for row in rows(tmp_path / "a", split)
        if row[0]["content"].startswith("More")
    }
    assert len(homes) == 1
    assert len(everything(tmp_path / "a")) == 40
    build([path], [ME], tmp_path / "b", validation=0.1, test=0.25)
    build([path], [ME], tmp_path / "c", validation=0.1, test=0.25, seed=1)
    same = [(tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in os.listdir(tmp_path / "a")]
    assert all(same) and len(same) == 4
    assert (tmp_path / "a" / "test.jsonl").read_bytes() != (tmp_path / "c" / "test.jsonl").read_bytes()


def test_the_rows_train(tmp_path, cli):
    from tests.support import tiny

    path = box(tmp_path / "m.mbox", *many(30))
    cli("data", "build", "email", path, "--from", ME, "-o", tmp_path / "out", code=0)
    model = tiny.write(tmp_path / "tiny.gguf", "llama")
    out = cli(
        "data",
        "preview",
        "-m",
        model,
        "-f",
        tmp_path / "out" / "train.jsonl",
        "--assistant-loss-only",
        "--json",
        code=0,
    )
    assert out.json["counts"]["examples"] == len(rows(tmp_path / "out", "train"))


def test_the_command_tells_what_it_did(tmp_path, cli):
    path = box(tmp_path / "m.mbox", *many(20), mail("Hello there all.", sender=ME, Message_ID="<n@x>"))
    out = cli("data", "build", "email", path, "--from", ME, "-o", tmp_path / "out", code=0)
    assert "41 messages, 21 of them sent by you; 20 pairs from 20 conversations" in out.out
    assert "skipped: 1 answering no e-mail" in out.out and "train 17, validation 1, test 2" in out.out
    again = ("data", "build", "email", path, "--from", ME, "-o", tmp_path / "out", "--json", "--val-split", "0.01")
    assert "already exists" in cli(*again, code=2).err
    out = cli(*again, "--force", code=0)
    assert out.json["rows"]["validation"] == 0 and "no conversation was small enough" in out.err


def test_bad_input(tmp_path, cli):
    path = box(tmp_path / "m.mbox", *many(3))
    (tmp_path / "file").write_text("x")
    start = ("data", "build", "email")
    for args, why in (
        ((path, "--from", "you@x.org", "-o", tmp_path / "o"), "None of the 6 messages was sent from you@x.org;"),
        ((path, "--from", "me", "-o", tmp_path / "o"), "takes the sender"),
        ((tmp_path / "no", "--from", ME, "-o", tmp_path / "o"), "no mailbox"),
        ((tmp_path / "file", "--from", ME, "-o", tmp_path / "o"), "file: there is no e-mail with a sender"),
        ((path, "--from", ME, "-o", tmp_path / "file"), "is a file"),
        ((path, "--from", ME, "-o", tmp_path / "o", "--min-words", 50), "too short 3"),
        ((path, "--from", ME, "-o", tmp_path / "o", "--val-split", 0.5, "--test-split", 0.5), "leave something"),
    ):
        outcome = cli(*start, *args, code=2)
        said = [line for line in outcome.err.splitlines() if not line.startswith("mail: ")]  # its progress
        assert len(said) == 1 and why in said[0]
        assert not (tmp_path / "o").exists()
    cli(*start, path, "--from", ME, "-o", tmp_path / "o", code=0)
    assert "of an earlier run" in cli(*start, path, "--from", ME, "-o", tmp_path / "o", "--test-split", 0, code=2).err


def test_a_full_disk_leaves_the_old_files(tmp_path, monkeypatch):
    path = box(tmp_path / "m.mbox", *many(20))
    build([path], [ME], tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in os.listdir(tmp_path / "out")}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anytune.files.os.fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        build([path], [ME], tmp_path / "out", seed=5, force=True)
    assert {name: (tmp_path / "out" / name).read_bytes() for name in os.listdir(tmp_path / "out")} == before


def test_ctrl_c_leaves_nothing_half_written(tmp_path, monkeypatch):
    path = box(tmp_path / "m.mbox", *many(20))
    real, calls = module.json.dumps, []

    def interrupted(*args, **more):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args, **more)

    monkeypatch.setattr(module.json, "dumps", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build([path], [ME], tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []
