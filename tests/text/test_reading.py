"""The same rows come out of every container, name and pipe, in pieces of any size; what is cut off is refused."""

import contextlib
import gzip
import io
import json
import os
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.text import reading
from anytune.text.rows import DataFile
from tests.cli.conftest import chats, cli, model  # noqa: F401
from tests.text.test_formats import write

WORDS = st.text(st.sampled_from('ab \u2028\u2029\x85\ufeff"\\/[]{},:é猫🐈\n\r\t'), max_size=12)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9999) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
ROWS = st.lists(
    st.dictionaries(WORDS.filter(lambda key: not key.startswith("\ufeff")), VALUES, max_size=4), min_size=1, max_size=6
)
BLANK = st.text(st.sampled_from(" \n\t\ufeff"), max_size=4)
CONTAINERS = ("lines", "crlf", "blank lines", "array", "pretty array", "two arrays", "values", "one line")


def contained(rows, how, ascii_only):
    texts = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    pretty = [json.dumps(row, ensure_ascii=ascii_only, indent=1) for row in rows]
    half = len(rows) // 2
    return {
        "lines": "\n".join(texts),
        "crlf": "\r\n".join(texts) + "\r\n",
        "blank lines": "\n \n\n".join(texts) + "\n\n",
        "array": f"[{','.join(texts)}]",
        "pretty array": "[\n" + ",\n".join(pretty) + "\n]\n",
        "two arrays": f"[{', '.join(texts[:half])}]\n[{','.join(texts[half:])}]",
        "values": "\n".join(pretty),
        "one line": "".join(texts),
    }[how]


@contextlib.contextmanager
def piped(data, size):
    """A path under which `data` can be read once, written `size` bytes at a time."""
    source, target = os.pipe()

    def send():
        with contextlib.suppress(BrokenPipeError), open(target, "wb", buffering=0) as file:
            for at in range(0, len(data), size):
                file.write(data[at : at + size])

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield f"/dev/fd/{source}"
    finally:
        os.close(source)
        thread.join()


@settings(max_examples=150, deadline=None)
@given(
    ROWS,
    st.sampled_from(CONTAINERS),
    st.booleans(),
    BLANK,
    st.sampled_from(["d.jsonl", "d.json", "d.txt", "d"]),
    st.integers(0, 3),
    st.integers(1, 40),
    st.sampled_from(["file", "pipe", "stdin"]),
)
def test_any_container_and_any_pieces_give_the_same_rows(
    tmp_path_factory, rows, how, ascii_only, front, name, packed, size, way
):
    data = (front + contained(rows, how, ascii_only)).encode()
    for _ in range(packed == 1):
        data = gzip.compress(data)
    if packed == 2:  # files that were joined
        data = gzip.compress(data[:size]) + gzip.compress(data[size:])
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as held:
        patch.setattr(reading, "PIECE", size)
        patch.setattr(reading, "LOOK", 200)
        path = write(tmp_path_factory.mktemp("rows"), data, name)
        if way == "pipe":
            path = held.enter_context(piped(data, size))
        elif way == "stdin":
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
            path = "-"
        file = DataFile(path)
        assert not file.plain
        try:
            assert file.first() == rows[0]
            assert [row for _, row in file.rows()] == rows
        except UserError:  # lines first, and then values over several lines
            assert how == "values" and rows[0] == {}


@settings(max_examples=100, deadline=None)
@given(ROWS, st.sampled_from(CONTAINERS), st.booleans(), st.integers(0, 10_000), st.integers(1, 40))
def test_what_is_cut_off_is_refused(tmp_path_factory, rows, how, ascii_only, at, size):
    text = contained(rows, how, ascii_only)
    at %= len(text)
    path = write(tmp_path_factory.mktemp("cut"), text[:at], "d.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "PIECE", size)
        try:
            found = [row for _, row in DataFile(path).rows()]
        except UserError as error:
            assert "d.json" in str(error)
            return
    # what is left was whole: the same rows as far as they go, and of an array nothing but blank was cut
    assert found == rows[: len(found)]
    if "array" in how and found:
        assert text[:at].rstrip().endswith("]")
        assert len(found) == (len(rows) if how != "two arrays" or "[" not in text[at:] else len(rows) // 2)


@settings(max_examples=100, deadline=None)
@given(st.text(st.sampled_from("ab \u2028\x85\x0b\r\n猫\ufeff"), max_size=60), st.integers(1, 9), st.booleans())
def test_text_is_handed_on_as_it_is_but_for_the_mark_in_front(tmp_path_factory, text, size, pipe):
    data = b"\xef\xbb\xbf" + text.encode()
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as held:
        patch.setattr(reading, "PIECE", size)
        path = write(tmp_path_factory.mktemp("text"), data, "d.txt")
        assert reading.read_text(path) == text
        path = held.enter_context(piped(data, 3)) if pipe else path
        numbered = list(reading.lines(reading.pieces(path), path))
    assert "".join(line for _, line in numbered) == text
    assert [n for n, _ in numbered] == list(range(1, len(numbered) + 1))
    assert all(line.count("\n") == line.endswith("\n") for _, line in numbered)


@pytest.mark.parametrize(
    "content, rows",
    [
        (
            '[[{"role": "user", "content": "a"}], [{"from": "gpt", "value": "b"}]]',
            [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"from": "gpt", "value": "b"}]}],
        ),
        (
            '[{"role": "user", "content": "a"},\n{"role": "assistant", "content": "b"}]\n',
            [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}],
        ),
        (
            '{"text": "a"}\n[{"role": "user", "content": "a"}]\n',
            [{"text": "a"}, {"messages": [{"role": "user", "content": "a"}]}],
        ),
        ('[]\n[{"a": 1}]', [{"a": 1}]),
        ('{"a": 1}{"a": 2}\n{"a": 3}', [{"a": 1}, {"a": 2}, {"a": 3}]),
        ('[{"\ufeffinstruction": "a"}]', [{"instruction": "a"}]),
    ],
)
def test_lists_of_messages_are_chats(tmp_path, content, rows):
    assert [row for _, row in DataFile(write(tmp_path, content)).rows()] == rows


@pytest.mark.parametrize(
    "content, words",
    [
        ('[{"a": 1},', "line 1: the array that begins on line 1 is not closed"),
        ('\n[{"a": 1}\n', "line 3: the array that begins on line 2 is not closed"),
        ('[{"a": 1}, {"b": ', "the array that begins on line 1 is not closed"),
        ("[", "is not closed"),
        ('{"a": 1,\n "b": [', "this value is not closed"),
        ('[{"a": 1},]', "not valid JSON"),
        ('[{"a": 1} {"b": 2}]', "expected ',' or ']'"),
        ('[{"a": 1}]]', "not valid JSON|must hold one JSON object"),
        ('[{"a": 1}] and more', "not valid JSON|must hold one JSON object"),
        ('[{"a": 1}, 5]', "not a number"),
        ('[{"a": 1}, [1]]', "not a list"),
        ('{"a": {"b": 1, "b": 2}}', "line 1: the key 'b' is duplicated"),
        ('[\n{"a": 1, "a": 1}]', "line 2: the key 'a' is duplicated"),
        ('[{"a": "\\ud83d"}]', "an escape like"),
        ('[{"role": "user", "content": "\\ud83d"}]', "an escape like"),
        ('{"a": 1},\n{"a": 2}\n', "not valid JSON|must hold"),
        ("﻿[" * 3000, "line 1"),
    ],
)
def test_what_is_no_stream_of_rows_is_refused(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        list(DataFile(write(tmp_path, content)).rows())


@pytest.mark.parametrize(
    "data, words",
    [
        ("é".encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x28\xb5\x2f\xfd rest", "zstd"),
        (b"PAR1....", "Parquet"),
        (b"%PDF-1.4 a", "a PDF"),
        (b"SQLite format 3\0a", "a database"),
        (b"a\nb\xffc", "line 2: byte 2 of the line is not UTF-8"),
        (b"\xe2\x80", "line 1: byte 1 of the line is not UTF-8"),
        (gzip.compress(b"text", mtime=0)[:-4], "cannot be read"),
    ],
)
def test_bytes_that_are_no_text_are_named(tmp_path, monkeypatch, data, words):
    path = write(tmp_path, data, "d.txt")
    for size in (1, 2, 3, 1 << 16):
        monkeypatch.setattr(reading, "PIECE", size)
        with pytest.raises(UserError, match=words):
            reading.read_text(path)


def test_text_that_only_looks_like_a_list_is_text(tmp_path):
    for text in ("[Verse 1]\nla", "[1] Smith, 1999", "{% if x %}", "{a, b}", "[]", "{'a': 1}", '"a": 1', ""):
        assert DataFile(write(tmp_path, text, "d.txt")).plain
    assert not DataFile(write(tmp_path, '\n \n[ [ {"a"\n: 1', "d.txt")).plain


def test_a_long_array_on_one_line_is_read_as_it_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LINE_LIMIT", 1 << 12)
    monkeypatch.setattr(reading, "PIECE", 1 << 8)
    rows = [{"text": "a" * 100, "n": n} for n in range(500)]
    assert [row for _, row in DataFile(write(tmp_path, json.dumps(rows))).rows()] == rows
    with pytest.raises(UserError, match="longer than"):
        list(DataFile(write(tmp_path, json.dumps([{"text": "a" * (1 << 14)}]))).rows())


def test_a_pipe_is_read_once(tmp_path, cli, model, chats, monkeypatch):
    def feed():
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(chats.read_bytes())))

    feed()
    assert cli("data", "preview", "-m", model, "-f", "-", "--json", code=0).json["counts"]["examples"] == 6
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for args in (
        ["train", "-m", model, "-f", fifo, "-f", fifo],
        ["data", "preview", "-m", model, "-f", "-", "-f", "-"],
        ["train", "-m", model, "-f", fifo, "--val-file", fifo],
    ):
        feed()
        said = cli(*args, code=2).err
        assert "only once" in said or "for training and for validation" in said


def test_what_is_read_twice_is_no_pipe(tmp_path, cli, model, chats, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(chats.read_bytes())))
    assert reading.read_text("-") == chats.read_text()
    with pytest.raises(UserError, match="only once"):
        reading.read_text("-")
    os.mkfifo(tmp_path / "fifo")
    for args in (
        ["data", "build", "email", tmp_path / "fifo", "--from", "a@b.c", "-o", tmp_path / "out"],
        ["data", "build", "pubmedqa", tmp_path / "fifo", "--test", chats, "-o", tmp_path / "out"],
        ["data", "preview", "-m", model, "-f", tmp_path / "fifo", "--chat-template", tmp_path / "fifo"],
        ["train", "-m", model, "-f", tmp_path / "fifo", "--chat-template", tmp_path / "fifo"],
    ):
        said = cli(*args, code=2).err
        assert "read twice" in said or "only once" in said
