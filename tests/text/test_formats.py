"""Every format becomes the same records; what cannot be read is named by its line; nothing vanishes."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.text import read_records, reading
from tests.support.require import need

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}]


def write(tmp_path, content, name="d.jsonl"):
    path = tmp_path / name
    if not isinstance(content, str | bytes):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def chats(path, *args, **kwargs):
    return [[(m["role"], m["content"]) for m in r.messages] for r in read_records(path, *args, **kwargs)]


@pytest.mark.parametrize(
    "row, options",
    [
        ({"messages": CHAT}, {}),
        ({"conversations": CHAT}, {}),
        ({"messages": json.dumps(CHAT)}, {}),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]}, {}),
        ({"instruction": "Hi", "input": "", "output": "Yo"}, {}),
        ({"instruction": "Hi", "output": "Yo"}, {"format": "alpaca"}),
        ({"talk": CHAT, "text": "x"}, {"columns": {"messages": "talk"}}),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, {}),
    ],
)
def test_chats_in_every_spelling(tmp_path, row, options):
    assert chats(write(tmp_path, [row]), **options) == [[("user", "Hi"), ("assistant", "Yo")]]


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_chat_without_messages_is_told_as_empty(tmp_path, column):
    with pytest.raises(UserError, match=f"line 2: '{column}' is empty"):
        list(read_records(write(tmp_path, [{column: CHAT}, {column: []}])))


@pytest.mark.parametrize("role", ["system", "tools", "context", "reasoning"])
def test_a_column_that_no_row_has_is_a_mistake(tmp_path, role):
    path = write(tmp_path, [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}])
    with pytest.raises(UserError, match=f"'nope' that --{role}-key names"):
        list(read_records(path, columns={role: "nope"}))


def test_alpaca_input_system_and_tools_are_kept(tmp_path):
    row = {"instruction": "Sort", "input": "b a", "output": "a b", "system": "Be exact.", "tools": '[{"name": "f"}]'}
    record = next(read_records(write(tmp_path, [row])))
    assert [m["content"] for m in record.messages] == ["Be exact.", "Sort\n\nb a", "a b"] and record.tools == [
        {"name": "f"}
    ]


@pytest.mark.parametrize(
    "row, options",
    [
        ({"prompt": "Q", "completion": "A"}, {}),
        ({"question": "Q", "answer": "A"}, {}),
        ({"input": "Q", "output": "A"}, {}),
        ({"x": "Q", "y": "A", "text": "t"}, {"columns": {"prompt": "x", "completion": "y"}}),
        ({"question": "Q", "answer": "A", "text": "t"}, {"format": "prompt-completion"}),
    ],
)
def test_pairs_in_every_spelling(tmp_path, row, options):
    record = next(read_records(write(tmp_path, [row]), **options))
    assert (record.kind, record.prompt, record.completion) == ("pair", "Q", "A")


def test_text_plain_gzip_bom_array_and_blank_lines(tmp_path):
    texts = lambda path, **k: [(r.line, r.kind, r.text) for r in read_records(path, **k)]  # noqa: E731
    assert texts(write(tmp_path, '\ufeff{"text": "a"}\n\n \n{"text": "b"}')) == [(1, "text", "a"), (4, "text", "b")]
    assert texts(write(tmp_path, [{"body": "a", "text": "b"}]), columns={"text": "body"}) == [(1, "text", "a")]
    assert texts(write(tmp_path, '[\n {"text": "a"},\n {"text":\n"b"}\n]', "d.json")) == [
        (2, "text", "a"),
        (3, "text", "b"),
    ]
    assert texts(write(tmp_path, "One\ntwo\n", "d.txt")) == [(1, "plain", "One\ntwo\n")]
    assert texts(write(tmp_path, '{"text": "a"}\n', "d.txt")) == [(1, "text", "a")]
    assert texts(write(tmp_path, '{"text": "a"}\n', "d.txt"), format="plain") == [(1, "plain", '{"text": "a"}\n')]
    assert texts(write(tmp_path, gzip.compress(b'{"text": "zip"}\n'), "d.jsonl.gz")) == [(1, "text", "zip")]


@settings(max_examples=30, deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda s: s.strip() and s[0] not in "\ufeff"),
    st.integers(1, 50),
)
def test_plain_text_is_handed_on_whole(tmp_path_factory, text, size):
    from anytune.text import formats

    path = write(tmp_path_factory.mktemp("p"), text, "d.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "PLAIN_PIECE", size)
        records = list(read_records(path, format="plain"))
    assert "".join(r.text for r in records) == text
    assert [r.line for r in records] == [
        1 + "".join(r.text for r in records[:k]).count("\n") for k in range(len(records))
    ]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"text": "a"}\n{"text": \n', r"line 2: not valid JSON at character"),
        ('{"text": "a"}\n[1]\n', "line 2: .*a list"),
        ('{"text": "a"}\n"x"\n', "line 2: .*text"),
        ('{"text": 5}\n', "line 1: .*number|line 1: .*columns"),
        ('{"text": ""}\n', "line 1: .*empty"),
        ('{"foo": 1}\n', "line 1: the columns foo match no known format"),
        ('{"messages": [{"role": "x", "content": ""}]}\n', "message 1 has the role 'x'"),
        ('{"messages": [{"role": "user"}]}\n', "message 1 has no content"),
        ('{"messages": ["a"]}\n', "message 1 must be an object"),
        ('{"text": "\\ud83d"}\n', "line 1: an escape"),
        ("[" * 100_000 + "\n", "line 1"),
        ('{"a":' * 50_000 + "\n", "line 1"),
        ('{"text": "a"}\n{"text": "b\xff"}\n'.encode("latin-1"), "line 2: byte 12 of the line is not UTF-8"),
        ("", "no records"),
        ('{"prompt": "a", "completion": ""}\n', "'completion' is empty"),
        ('{"messages": [], "prompt": 1, "completion": "b"}\n', "'prompt' must be text"),
    ],
)
def test_a_bad_line_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=message) as error:
        list(read_records(write(tmp_path, content)))
    assert "d.jsonl" in str(error.value)


@pytest.mark.parametrize(
    "name, content",
    [
        ("d.csv", "a,b\n"),
        ("none.jsonl", None),
        ("d.jsonl.gz", gzip.compress(b"x" * 9999, mtime=0)[:40]),
        ("d.parquet", b"PAR1"),
        ("d.txt", ""),
        ("d.txt", "  \n\n\t\n"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content):
    path = tmp_path / name if content is None else write(tmp_path, content, name)
    with pytest.raises(UserError, match=name):
        list(read_records(path))


def test_a_folder_of_other_files_is_named(tmp_path):
    write(tmp_path, [{"text": "a"}])
    with pytest.raises(UserError, match="is a folder, and not one that the datasets library saved: name the data file"):
        list(read_records(tmp_path))


def test_wrong_options_are_named(tmp_path):
    path = write(tmp_path, [{"text": "a"}])
    for options, message in [
        ({"format": "xml"}, "xml"),
        ({"columns": {"prompt": "text"}}, "both"),
        ({"columns": {"text": "t"}}, "'t'"),
        ({"format": "alpaca"}, "instruction"),
        ({"format": "messages"}, "messages"),
    ]:
        with pytest.raises(UserError, match=message):
            list(read_records(path, **options))


def test_a_line_without_end_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LINE_LIMIT", 1 << 16)
    bomb = write(tmp_path, gzip.compress(b'{"text": "ok"}\n{"text": "' + b"a" * (1 << 24)), "bomb.jsonl.gz")
    records = read_records(bomb)
    assert next(records).text == "ok"
    with pytest.raises(UserError, match="line 2: the line is longer"):
        next(records)


def test_a_datasets_folder_is_read(tmp_path):
    datasets = need("datasets")
    data = datasets.Dataset.from_list([{"messages": CHAT}, {"messages": CHAT}])
    data.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "many"))
    for name in ("one", "many"):
        for format in ("auto", "dataset"):
            assert chats(tmp_path / name, format) == [[("user", "Hi"), ("assistant", "Yo")]] * 2
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "other"))
    for name in ("other", "."):
        with pytest.raises(UserError):
            list(read_records(tmp_path / name))


def test_nulls_that_arrow_fills_in_are_nothing(tmp_path):
    datasets = need("datasets")
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": "1"}}}
    other = {"type": "function", "function": {"name": "g", "arguments": {"b": "2"}}}
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "name": "f", "content": "2"},
        {"role": "assistant", "tool_calls": [other]},
    ]
    tools = [
        {"function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}},
        {"function": {"name": "g", "parameters": {"properties": {"b": {"type": "string"}}}}},
    ]
    rows = [{"messages": chat, "tools": tools}, {"messages": CHAT, "conversations": [{"from": "human", "value": "x"}]}]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "data"))
    one, two = read_records(tmp_path / "data")
    assert [{k: v for k, v in m.items() if v is not None} for m in one.messages] == chat and one.tools == tools
    assert [dict(m) for m in two.messages] == CHAT and two.tools is None


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "messages",
                        "conversations",
                        "text",
                        "prompt",
                        "completion",
                        "role",
                        "content",
                        "from",
                        "value",
                        "instruction",
                        "output",
                        "tools",
                        "tool_calls",
                        "function",
                        "name",
                        "system",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_any_json_is_read_or_refused_by_line(tmp_path_factory, value):
    path = write(tmp_path_factory.mktemp("any"), json.dumps(value))
    try:
        assert [r.line for r in read_records(path)]
    except UserError as error:
        assert "d.jsonl" in str(error)
