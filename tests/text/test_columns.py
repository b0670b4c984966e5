"""Columns of well-known data sets mean what they mean there; what no record uses is named, with the flag that would."""

import json

import pytest
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.text import ChatTemplate, read_records
from anytune.text.messages import normalise_tools
from tests.text.test_build import FALLBACK, build, learned, whole
from tests.text.test_formats import CHAT, write
from tests.text.test_mask import PLAIN

SHOWS_ALL = ChatTemplate(
    "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    PLAIN,
    origin="gguf",
)


def record(tmp_path, row, **options):
    return next(read_records(write(tmp_path, [row]), **options))


def said(found):
    return [(m["role"], m["content"]) for m in found.messages]


@pytest.mark.parametrize(
    "row, prompt, completion",
    [
        ({"instruction": "Who?", "context": "It was Ada.", "response": "Ada"}, "Who?\n\nIt was Ada.", "Ada"),
        ({"question": "Who?", "context": "It was Ada.", "answer": "Ada"}, "It was Ada.\n\nWho?", "Ada"),
        (
            {"question": "Who?", "context": "Ada.", "answers": {"text": ["Ada", "A."], "answer_start": [0, 0]}},
            "Ada.\n\nWho?",
            "Ada",
        ),
        ({"question": "Who?", "contexts": ["It", "was Ada."], "answer": "Ada"}, "It\n\nwas Ada.\n\nWho?", "Ada"),
        ({"prompt": "It was Ada. Who?", "context": "It was Ada.", "completion": "Ada"}, "It was Ada. Who?", "Ada"),
        ({"instruction": "Sort", "input": "b a", "response": "a b"}, "Sort\n\nb a", "a b"),
        ({"question": "Sum?", "choices": ["one", "two"], "answer": 1}, "Sum?\n\nA. one\nB. two", "B"),
        (
            {"question": "Sum?", "choices": {"text": ["one", "two"], "label": ["1", "2"]}, "answerKey": "2"},
            "Sum?\n\n1. one\n2. two",
            "2",
        ),
        ({"question": "Sum?", "choices": ["one", "two"], "answer": "1"}, "Sum?\n\nA. one\nB. two", "B"),
        ({"question": "Sum?", "choices": ["one", "two"], "answer": 1.0}, "Sum?\n\nA. one\nB. two", "B"),
        ({"question": "1 + 1?", "choices": ["1", "2"], "answer": "1"}, "1 + 1?\n\nA. 1\nB. 2", "1"),
        ({"question": "How?", "choices": ["(a) 1 m", "(b) 2 m"], "answer": "1"}, "How?\n\nA. (a) 1 m\nB. (b) 2 m", "1"),
        ({"question": "How?", "choices": ["one", "two"], "answer": "42"}, "How?\n\nA. one\nB. two", "42"),
        ({"question": "Sum?", "options": {"A": "one", "B": "two"}, "answer": "two"}, "Sum?\n\nA. one\nB. two", "two"),
        (
            {"article": "Text.", "question": "Sum?", "options": ["one", "two"], "answer": "B"},
            "Text.\n\nSum?\n\nA. one\nB. two",
            "B",
        ),
        ({"prompt": "a ", "completion": " b"}, "a ", " b"),
        ({"prompt": "", "completion": "b"}, "", "b"),
    ],
)
def test_pairs_have_what_their_question_is_about(tmp_path, row, prompt, completion):
    found = record(tmp_path, row)
    assert (found.kind, found.prompt, found.completion, found.unused) == ("pair", prompt, completion, {})


def test_history_system_functions_and_thoughts_are_turns(tmp_path):
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    history = [["a", "b"]]
    assert said(record(tmp_path, {"instruction": "c", "input": "", "output": "d", "history": history})) == turns
    pair = record(tmp_path, {"prompt": "c", "response": "d", "history": history, "system_prompt": "S"})
    assert said(pair) == [("system", "S"), *turns[:2]] and (pair.prompt, pair.completion) == ("c", "d")
    found = record(tmp_path, {"messages": CHAT, "functions": [{"name": "f"}]})
    assert found.tools == [{"type": "function", "function": {"name": "f"}}]
    found = record(tmp_path, {"instruction": "c", "output": "d", "reasoning": "hm"})
    assert found.messages[-1] == {"role": "assistant", "content": "d", "reasoning_content": "hm"}
    assert record(tmp_path, {"instruction": "", "input": "c", "output": "d"}).messages[0]["content"] == "c"


@pytest.mark.parametrize(
    "form", [lambda f: f, lambda f: [f], json.dumps, lambda f: json.dumps([f]), lambda f: [json.dumps(f)]]
)
def test_tools_and_functions_come_in_every_form(tmp_path, form):
    function = {"name": "f", "parameters": {}}
    tool = {"type": "function", "function": function}
    for row in ({"tools": form(tool)}, {"functions": form(function)}, {"functions": form(tool)}):
        assert normalise_tools(record(tmp_path, {"messages": CHAT} | row).tools) == [tool], row


@pytest.mark.parametrize("key", ["tools", "functions"])
@pytest.mark.parametrize("value", [{"f": {"description": "d"}}, '{"f": {}}', 5, True, '"f"'])
def test_what_is_no_tool_is_refused(tmp_path, key, value):
    with pytest.raises(UserError, match=f"the {key} must be a list"):
        record(tmp_path, {"messages": CHAT, key: value})


@pytest.mark.parametrize("answer", [2, -1, 2.0])
def test_a_number_beyond_the_choices_is_refused(tmp_path, answer):
    with pytest.raises(UserError, match="there are 2 choices"):
        record(tmp_path, {"question": "Sum?", "choices": ["one", "two"], "answer": answer})


def test_a_column_and_a_message_of_the_system_are_both_kept(tmp_path):
    row = {"system": "One.", "messages": [{"role": "system", "content": "Two."}, *CHAT]}
    assert said(record(tmp_path, row))[0] == ("system", "One.\n\nTwo.")
    assert said(record(tmp_path, row | {"system": "Two."}))[0] == ("system", "Two.")


def test_rejected_answers_are_left_out_and_told(tmp_path):
    rows = [
        {"prompt": "a", "completion": "bad", "label": False},
        {"prompt": "a", "completion": "good", "label": "true"},
        {"messages": CHAT, "label": False},
        {"messages": CHAT, "kto_tag": True},
    ]
    data = build(tmp_path, rows)
    assert [learned(data, i) for i in range(len(data))] == [["good<|im_end|>"], ["Yo<|im_end|>"]]
    assert any("2 of 4 answers are labelled as rejected" in note for note in data.report["notes"])
    with pytest.raises(UserError, match="labelled as rejected"):
        build(tmp_path, rows[:1])
    spam = build(tmp_path, [{"text": "words", "label": False}])
    assert len(spam) == 1 and "label" in spam.report["notes"][-1]


def test_thoughts_stand_before_a_completion(tmp_path):
    row = {"prompt": "Q ", "completion": "A", "reasoning": "hm"}
    assert learned(build(tmp_path, [row], template=SHOWS_ALL)) == ["<think>hm</think>A<|im_end|>"]
    assert learned(build(tmp_path, [row], template=FALLBACK))[0].strip() == "<think>\nhm\n</think>\n\nA</s>"
    assert (
        "hm"
        in learned(
            build(
                tmp_path,
                [{"prompt": "Q", "completion": "A", "why": "hm"}],
                template=SHOWS_ALL,
                columns={"prompt": "prompt", "completion": "completion", "reasoning": "why"},
            )
        )[0]
    )


@pytest.mark.parametrize(
    "row, options, words",
    [
        (
            {"prompt": "a", "completion": "b", "topic": "t", "id": 5},
            {},
            r"topic \(--context-key topic would use it\), id",
        ),
        ({"messages": CHAT, "persona": "p"}, {}, r"persona \(--system-key persona"),
        ({"question": "a", "answer": "b", "rationale": "r"}, {}, r"--reasoning-key rationale"),
        ({"text": "t", "title": "n", "body": "x"}, {}, r"--text-key title"),
        ({"text": "t", "question": "q", "answer": "a"}, {}, "--prompt-key question --completion-key answer"),
        ({"instruction": "a", "output": "b", "system": ["s"]}, {}, "system"),
        ({"x": "a", "y": "b", "context": "c"}, {"prompt": "x", "completion": "y"}, "--context-key context"),
    ],
)
def test_columns_that_are_not_used_are_named_with_the_flag_that_would(tmp_path, row, options, words):
    notes = build(tmp_path, [row], columns=options or None).report["notes"]
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(" ".join(notes))


def test_what_stands_in_the_rendering_anyway_is_not_named(tmp_path):
    row = {"prompt": "Hi", "prompt_id": "", "score": None, "messages": CHAT, "tags": []}
    assert build(tmp_path, [row]).report["notes"] == []
    notes = build(tmp_path, [row | {"score": 1}, row]).report["notes"]
    assert notes == ["Columns that are not used: score (in 1 of 2 rows)."]


@pytest.mark.parametrize(
    "row, words",
    [
        ({"instruction": "Sort", "input": ["b", "a"], "output": "x"}, "'input' must be text, not a list"),
        ({"instruction": "i", "input": "", "output": ""}, "'output' is empty"),
        ({"instruction": "", "input": " ", "output": "o"}, "'instruction' is empty"),
        ({"instruction": "i", "output": "o", "history": "before"}, "'history' must be a list of"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "'answer' is 2, but there are 2 choices"),
        ({"question": "q", "context": "c", "answers": {"text": []}}, "'answers' is empty"),
        ({"role": "user", "content": "hi"}, "a single message of a chat"),
        ({"from": "human", "value": "hi", "text": "x"}, "a single message of a chat"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "--completion-key chosen"),
        ({"messages": [{"role": "assistant", "content": "a", "weight": 0.5}]}, "message 1: 'weight' must be 0 or 1"),
        (
            {"messages": [{"role": "assistant", "content": "a", "train": "no"}]},
            "message 1: 'train' must be true or false",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        record(tmp_path, row)


def test_options_that_nothing_can_use_are_refused(tmp_path):
    for role in ("context", "reasoning"):
        with pytest.raises(UserError, match=f"--{role}-key needs"):
            record(tmp_path, {"messages": CHAT, "why": "x"}, columns={role: "why"})


@pytest.mark.parametrize("value, on", [("0", False), (0, False), ("1", True), (1.0, True)])
def test_a_weight_may_be_a_text(tmp_path, value, on):
    message = {"role": "assistant", "content": "a", "weight": value, "train": str(on)}
    found = record(tmp_path, {"messages": [*CHAT, message]})
    assert found.messages[-1]["weight"] == on and found.messages[-1]["train"] is on


@pytest.mark.parametrize("value", [False, "false", "False", "0", 0])
def test_a_loss_that_is_a_switch_is_one(tmp_path, value):
    def messages(value):
        return record(tmp_path, {"messages": [*CHAT, {"role": "assistant", "content": "a", "loss": value}]}).messages

    assert messages(value)[-1]["train"] is False and messages("true")[-1]["train"] is True
    assert "train" not in messages(0.0)[-1] and messages(2.5)[-1]["loss"] == 2.5  # as a model scored it


def test_nulls_are_as_good_as_nothing(tmp_path):
    row = {
        "messages": None,
        "text": None,
        "conversations": [
            {"role": None, "content": None, "from": "human", "value": "w", "weight": None},
            {"role": None, "content": None, "from": "gpt", "value": "5"},
        ],
    }
    assert said(record(tmp_path, row)) == [("user", "w"), ("assistant", "5")]
    assert record(tmp_path, {"text": None, "prompt": "a", "completion": "b"}).kind == "pair"


def test_what_a_template_has_rendered_already_is_not_put_through_it_again(tmp_path):
    rendered = {"prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "completion": "a<|im_end|>"}
    data = build(tmp_path, [rendered])
    assert whole(data) == rendered["prompt"] + rendered["completion"] and learned(data) == ["a<|im_end|>"]
    assert "already rendered" in data.report["notes"][0]
    for row in (
        {"prompt": "q", "completion": "a<|im_end|>"},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a<|im_end|>\n"}]},
    ):
        data = build(tmp_path, [row])
        assert learned(data) == ["a<|im_end|>"] and any("second one" in note for note in data.report["notes"])
    asked = build(tmp_path, [{"prompt": "What is <|im_end|>?", "completion": "a"}])
    assert whole(asked).startswith("<|im_start|>user\nWhat is") and "<|im_end|>" in asked.report["notes"][-1]


NAMES = (
    "messages text prompt completion response question answer answers instruction input output context passage "
    "contexts history system system_prompt tools functions choices options label reasoning thinking topic id "
    "rationale title content"
).split()


def leaves(value):
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [leaf for part in parts for leaf in leaves(part)]


@st.composite
def rows(draw):
    row, count = {}, iter(range(1000))

    def word():
        return f"w{next(count)}q"

    for name in draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=9)):
        row[name] = draw(
            st.sampled_from(
                [
                    word,
                    word,
                    word,
                    lambda: [word(), word()],
                    lambda: [[word(), word()]],
                    lambda: {"text": [word()]},
                    lambda: 1,
                    lambda: True,
                    lambda: False,
                    lambda: None,
                    lambda: "",
                    lambda: {"name": word()},
                    lambda: [{"name": word()}],
                ]
            )
        )()
    kind = draw(st.sampled_from(["chat", "pair", "alpaca", "qa", "text", "any"]))
    row |= {
        "chat": {"messages": [{"role": "user", "content": word()}, {"role": "assistant", "content": word()}]},
        "pair": {"prompt": word(), "completion": word()},
        "alpaca": {"instruction": word(), "output": word()},
        "qa": {"question": word(), "answer": word()},
        "text": {"text": word()},
        "any": {},
    }[kind]
    return row


@settings(max_examples=250, deadline=None)
@given(rows(), st.booleans())
def test_each_column_is_in_the_rendering_or_named(tmp_path_factory, row, own):
    try:
        data = build(tmp_path_factory.mktemp("row"), [row], template=SHOWS_ALL if own else FALLBACK)
    except UserError:
        reject()  # if most were refused, Hypothesis would fail
    text, notes = whole(data), " ".join(data.report["notes"])
    for name, value in row.items():
        if name == "label" and value is True or value is None or value in ("", [], {}):
            continue
        shown = leaves(value) and all(leaf in text for leaf in leaves(value))
        if name == "answers" and isinstance(value, dict) and "text" in value:
            shown = value["text"][0] in text
        if value == 1 and "\nB. " in text:  # the number of a choice
            continue
        told = (
            f" {name}" in notes
            or (name in ("reasoning", "thinking") and "the reasoning of 1" in notes)
            or (name in ("tools", "functions") and "the tools of 1" in notes)
        )
        assert shown or told or name == "label" and row[name] in (0, 1), (name, text, notes, json.dumps(row))


@pytest.mark.parametrize("label", [0, 0.0, "0", "False", " false "])
def test_a_label_may_be_a_number_as_tables_write_it(tmp_path, label):
    rows = [{"prompt": "a", "completion": "yes", "label": 1}, {"prompt": "a", "completion": "no", "label": label}]
    found = list(read_records(write(tmp_path, rows)))
    assert [one.rejected for one in found] == [False, True] and not any(one.unused for one in found)


def test_a_label_that_counts_choices_or_classes_is_no_verdict(tmp_path):
    row = {"question": "Sum?", "choices": ["one", "two"], "answer": "one", "label": 0}
    assert not record(tmp_path, row).rejected
    rows = [{"prompt": "a", "completion": "b", "label": k} for k in range(3)]
    with pytest.raises(UserError, match="'label' is false or 0 in some rows"):
        build(tmp_path, rows)


def test_keys_of_messages_that_nothing_reads_are_named(tmp_path):
    turns = [
        {"role": "user", "content": "a", "tools": [{"name": "f"}], "name": "Ann", "audio": None},
        {"role": "assistant", "content": "b", "prefix": True, "id": "7"},
    ]
    notes = build(tmp_path, [{"messages": turns}] * 2).report["notes"]
    note = next(note for note in notes if "Keys of messages" in note)
    assert note == "Keys of messages that are not used (records with them): tools (2), prefix (2)."
    reads = ChatTemplate(
        "{{ tools }}{% for m in messages %}{{ m.role ~ m['prefix'] ~ m.tools ~ m.content }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}assistant{% endif %}",
        PLAIN,
        origin="gguf",
    )
    assert reads.reads("prefix") and reads.reads("tools") and not reads.reads("audio") and not reads.reads("ool")


def test_a_message_without_loss_is_not_learned(tmp_path):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "loss": False},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d", "loss": True},
    ]
    assert [m.get("train") for m in record(tmp_path, {"messages": turns}).messages] == [None, False, None, True]


@pytest.mark.parametrize(
    "row, words",
    [
        ({"messages": '[{"role": "user", "content": "a", "content": "b"}]'}, "or has a duplicate key"),
        ({"prompt": "a", "completion": "b", "tools": '[{"name": "f", "name": "g"}]'}, "have a duplicate key"),
    ],
)
def test_keys_that_stand_twice_in_a_text_of_json_are_refused(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        record(tmp_path, row)
