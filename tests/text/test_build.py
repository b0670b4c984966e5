"""Files become examples of at most -c tokens, with the right mask, and a report of all that was cut."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.text import ChatTemplate, Tokenizer, build_dataset
from anytune.text.preview import counts, example_tokens, render
from tests.support.tiny import spm_vocabulary
from tests.text.templates import CHATML
from tests.text.test_mask import PLAIN, WITH_BOS, a_tokenizer, runs, says, user

OWN = ChatTemplate(CHATML, PLAIN, origin="gguf")
FALLBACK = ChatTemplate(CHATML, PLAIN, origin="chatml")


def build(tmp_path, content, *, tokenizer=PLAIN, template=OWN, context=512, name="d.jsonl", **options):
    path = tmp_path / name
    path.write_text(
        content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content), "utf-8"
    )
    return build_dataset(path, tokenizer, template, context=context, **options)


def learned(data, index=0, tokenizer=PLAIN):
    return runs(tokenizer, *data.example(index))


def whole(data, index=0, tokenizer=PLAIN):
    return tokenizer.decode(data.example(index)[0], skip_special=False)


def test_chats_with_and_without_the_assistants_words_only(tmp_path):
    rows = [{"messages": [user("Hi"), says("Yo")]}]
    text = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYo<|im_end|>\n"
    only = build(tmp_path, rows)
    assert whole(only) == text and learned(only) == ["Yo<|im_end|>"]
    assert only.report["learned"] == (
        f"the assistant's words and end-of-turn tokens: {only.loss_tokens:,} of {only.tokens:,} tokens "
        "(--loss all: every token)"
    )
    assert build(tmp_path, rows, assistant_loss_only=True).fingerprint == only.fingerprint
    every = build(tmp_path, rows, loss="all")
    assert every.report["learned"].startswith("every token, users' included")
    assert whole(every) == text and learned(every) == [text.removeprefix("<|im_start|>")]
    assert only.fingerprint != every.fingerprint and only.lines.tolist() == [1]


def test_pairs_learn_the_completion_and_its_end(tmp_path):
    rows = [{"prompt": "Q: ", "completion": "A"}]
    raw = build(tmp_path, rows, template=FALLBACK)
    assert whole(raw) == "Q: A</s>" and learned(raw)[0].strip() == "A</s>"
    chat = build(tmp_path, rows)
    assert learned(chat) == ["A<|im_end|>"] and "template" in chat.report["notes"][0]
    assert whole(build(tmp_path, rows, template=FALLBACK, tokenizer=WITH_BOS), tokenizer=WITH_BOS) == "<s>Q: A</s>"


def test_loss_all_learns_prompts_too(tmp_path):
    rows = [{"prompt": "Q: ", "completion": "A"}]
    raw = build(tmp_path, rows, template=FALLBACK, loss="all")
    assert raw.loss_tokens == raw.tokens - 1 and whole(raw) == "Q: A</s>"
    chat = build(tmp_path, rows, loss="all")
    assert chat.loss_tokens == chat.tokens - 1


def test_a_chat_without_an_assistant_names_the_flag_that_learns_it(tmp_path):
    rows = [{"messages": [user("Hi")]}]
    with pytest.raises(UserError, match="line 1: .*no assistant message.*--loss all"):
        build(tmp_path, rows)
    assert build(tmp_path, rows, loss="all").loss_tokens > 0


def test_losses_that_contradict_each_other_are_refused(tmp_path):
    for options in ({"loss": "all", "assistant_loss_only": True}, {"loss": "some"}):
        with pytest.raises(UserError, match="--loss"):
            build(tmp_path, [{"text": "x"}], **options)


def test_text_ends_with_eos_and_bos_is_not_doubled(tmp_path):
    data = build(tmp_path, [{"text": "ab"}, {"text": "<s>ab<|im_end|>"}], tokenizer=WITH_BOS)
    assert [whole(data, i, WITH_BOS) for i in range(2)] == ["<s>ab</s>", "<s>ab<|im_end|>"]
    assert learned(data, 0, WITH_BOS) == ["ab</s>"]


def test_questions_and_answers_in_a_text_are_pairs_where_the_answer_alone_is_asked_for(tmp_path):
    rows = [
        {"text": "Q: Is it so?\nA: Yes. Rationale: it is.", "label": "Yes"},
        {"text": "question: And\nnow?\n  answer:  No\n"},
    ]
    pairs = [
        {"prompt": "Is it so?", "completion": "Yes. Rationale: it is."},
        {"prompt": "And\nnow?", "completion": "No"},
    ]
    text, right = (build(tmp_path, found, assistant_loss_only=True) for found in (rows, pairs))
    assert text.ids.tolist() == right.ids.tolist() and text.loss.tolist() == right.loss.tolist()
    assert any("Q: … A: …" in note for note in text.report["notes"])
    unasked = build(tmp_path, rows)  # it stays the text that it is
    assert unasked.loss.sum() > text.loss.sum() and not any("Q: …" in note for note in unasked.report["notes"])


def test_text_without_an_assistant_says_what_to_do(tmp_path):
    row = {"text": "Asked x, they say Yes.", "label": "Yes", "question": "x", "rationale_src": "r"}
    with pytest.raises(UserError, match="omit --assistant-loss-only.*--prompt-key question --completion-key label"):
        build(tmp_path, [row], assistant_loss_only=True)
    with pytest.raises(UserError, match="omit --assistant-loss-only, or name the columns"):
        build(tmp_path, [{"text": "x"}], assistant_loss_only=True)
    with pytest.raises(UserError, match="omit --assistant-loss-only"):
        build(tmp_path, "Some prose.\n", name="d.txt", assistant_loss_only=True)
    pairs = build(tmp_path, [row], assistant_loss_only=True, columns={"prompt": "question", "completion": "label"})
    assert learned(pairs) == ["Yes<|im_end|>"]


@settings(max_examples=40, deadline=None)
@given(
    st.text(st.characters(codec="utf-8", exclude_characters="<\ufeff"), min_size=1, max_size=300).filter(str.strip),
    st.integers(2, 40),
    st.booleans(),
)
def test_plain_text_is_cut_into_pieces_that_give_it_back(tmp_path_factory, text, context, bos):
    tokenizer = WITH_BOS if bos else PLAIN
    data = build(
        tmp_path_factory.mktemp("t"),
        text.replace("\r", ""),
        tokenizer=tokenizer,
        name="d.txt",
        format="plain",
        context=context,
    )
    assert data.lengths.max() <= context
    pieces = [data.example(i)[0].tolist()[bos:] for i in range(len(data))]
    again = tokenizer.encode(text.replace("\r", ""), bos=False) + [tokenizer.eos]
    joined = [token for piece in pieces for token in piece]
    assert joined == again or joined == again[:-1] and context == 2 and not bos  # one token predicts nothing
    assert bool(data.example(0)[1][1:].all())


def test_lines_of_plain_text_are_those_where_pieces_begin(tmp_path):
    data = build(tmp_path, "a\nb\nc\nd\n", name="d.txt", context=4)
    assert data.lines.tolist() == [1, 3, 4]
    assert data.where(1).endswith("d.txt, line 3")


LONG = [{"messages": [user("x" * 50), says("y" * 50), user("z"), says("w")]}, {"messages": [user("a"), says("b")]}]


@pytest.mark.parametrize(
    "overflow, examples, cut, dropped", [(None, 2, 90, 0), ("truncate", 2, 90, 0), ("drop", 1, 0, 1)]
)
def test_long_chats_are_kept_cut_or_left_out_and_counted(tmp_path, overflow, examples, cut, dropped):
    data = build(tmp_path, LONG, context=90, assistant_loss_only=True, overflow=overflow)
    full = build(tmp_path, LONG, assistant_loss_only=True)
    over = int(full.lengths[0]) - 90
    report = data.report
    assert len(data) == examples and report["too_long"] == 1 and report["records"] == 2 and report["dropped"] == dropped
    assert report["cut_tokens"] == (over if cut else 0) and "d.jsonl line 1" in report["notes"][-1]


def test_split_keeps_every_learned_token_but_the_first_of_a_piece(tmp_path):
    for context in (16, 33, 90):
        full, data = (
            build(tmp_path, LONG, context=c, assistant_loss_only=True, overflow="split") for c in (4096, context)
        )
        assert data.lengths.max() <= context and set(data.lines.tolist()) == {1, 2}
        assert full.loss_tokens - data.report["pieces"] <= data.loss_tokens <= full.loss_tokens
        assert data.tokens + data.report["cut_tokens"] == full.tokens


def test_truncation_keeps_what_is_learned_if_it_comes_late(tmp_path):
    data = build(tmp_path, [{"messages": [user("x" * 500), says("y")]}], context=32, assistant_loss_only=True)
    assert len(data) == 1 and learned(data) == ["y<|im_end|>"] and data.lengths.tolist() == [32]


def test_overflow_error_names_the_line_and_the_way_out(tmp_path):
    with pytest.raises(UserError, match="d.jsonl, line 1: .*raise -c.*--overflow"):
        build(tmp_path, LONG, context=60, overflow="error")
    with pytest.raises(UserError, match="no example is left"):
        build(tmp_path, LONG[:1], context=60, overflow="drop")
    with pytest.raises(UserError, match="--overflow cut"):
        build(tmp_path, LONG, overflow="cut")


def test_errors_name_file_and_line(tmp_path):
    with pytest.raises(UserError, match="d.jsonl, line 2: .*no assistant"):
        build(tmp_path, [{"messages": [user("a"), says("b")]}, {"messages": [user("a")]}], assistant_loss_only=True)
    bad = ChatTemplate("{{ raise_exception('not so') }}", PLAIN)
    with pytest.raises(UserError, match="d.jsonl, line 1: .*not so"):
        build(tmp_path, LONG, template=bad)
    hidden = ChatTemplate("{% for m in messages %}x{% endfor %}", PLAIN)
    with pytest.raises(UserError, match="d.jsonl, line 1: "):
        build(tmp_path, LONG, template=hidden, assistant_loss_only=True)


def test_where_a_template_has_no_end_token_the_models_own_is_learned(tmp_path):
    plain = ChatTemplate(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
        PLAIN,
    )
    data = build(tmp_path, LONG, template=plain, assistant_loss_only=True)
    assert learned(data) == ["y" * 50 + "<|eot_id|>", "w<|eot_id|>"] and data.report["no_end_token"] == 0
    unmarked = a_tokenizer()  # a vocabulary without any end
    unmarked.eot = unmarked.eos = None
    unmarked.eog = frozenset()
    data = build(tmp_path, LONG, template=plain, tokenizer=unmarked, assistant_loss_only=True)
    assert data.report["no_end_token"] == 2 and "does not learn to stop" in data.report["notes"][-1]


def test_the_fallback_is_announced_and_stops_with_eos(tmp_path):
    class File:
        metadata = {}

    vocabulary = spm_vocabulary(320)
    names = vocabulary["tokenizer.ggml.tokens"]
    names[3:5] = ["<a>", "<b>"]
    vocabulary["tokenizer.ggml.eos_token_id"] = 2
    other = Tokenizer(vocabulary)  # knows no <|im_end|>
    data = build(
        tmp_path, LONG, tokenizer=other, template=ChatTemplate.for_model(File, other), assistant_loss_only=True
    )
    assert data.example(1)[0][data.example(1)[1]][-1] == other.eos and "EOS" in data.report["notes"][0]
    assert data.report["no_end_token"] == 0
    data = build(tmp_path, LONG, template=ChatTemplate.for_model(File, PLAIN), assistant_loss_only=True)
    assert "ChatML" in data.report["notes"][0] and learned(data, 1) == ["b<|im_end|>"]


def test_several_files_are_one_data_set(tmp_path):
    paths = []
    for k in range(2):
        paths.append(tmp_path / f"{k}.jsonl")
        paths[-1].write_text(json.dumps({"text": f"t{k}"}) + "\n")
    data = build_dataset(paths, PLAIN, OWN, context=64)
    assert len(data) == 2 and data.files.tolist() == [0, 1] and data.where(1).endswith("1.jsonl, line 1")
    train, val = data.split(0.5, 0)
    assert len(train) == len(val) == 1


def test_preview_shows_each_token_once(tmp_path):
    data = build(tmp_path, LONG, assistant_loss_only=True)
    shown = example_tokens(data, PLAIN, 1)
    assert [t[1] for t in shown["tokens"]] == data.example(1)[0].tolist()
    assert sum(t[2] for t in shown["tokens"]) == int(data.example(1)[1].sum())
    assert render(shown["tokens"], colour=False).replace("|", "").count("[b") == 1
    assert "\x1b[" in render(shown["tokens"]) and "\x1b" not in render([("\x1b", 1, True)], colour=False)
    assert json.dumps(counts(data)) and counts(data)["examples"] == 2


def test_arrays_have_the_promised_types(tmp_path):
    data = build(tmp_path, LONG)
    assert (data.ids.dtype, data.loss.dtype, data.offsets.dtype) == (np.int32, bool, np.int64)
    assert data.offsets[0] == 0 and data.offsets[-1] == len(data.ids) == len(data.loss)
    assert not data.loss[data.offsets[:-1]].any()


ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.sampled_from(["user", "assistant", "tool", "", "x", "{}", "<|im_end|>"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["function", "name", "arguments", "type", "text", "id"]), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = ["role", "content", "tool_calls", "weight", "train", "reasoning_content", "name"]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.dictionaries(st.sampled_from(KEYS), ODD), max_size=3),
    ODD,
    st.sampled_from(["chatml", "qwen3", "llama3"]),
    st.booleans(),
)
def test_any_messages_become_examples_or_a_users_error(tmp_path_factory, odd, tools, name, only):
    from tests.text.templates import ALL

    messages = [user("Hi"), *({"role": "assistant", "content": "x"} | m for m in odd), says("Yo")]
    try:
        data = build(
            tmp_path_factory.mktemp("odd"),
            [{"messages": messages, "tools": tools}],
            assistant_loss_only=only,
            template=ChatTemplate(ALL[name], PLAIN),
        )
        assert len(data) == 1 and data.loss_tokens
    except UserError as error:
        assert "d.jsonl, line 1" in str(error)


def test_values_that_nest_deeply_are_refused(tmp_path):
    for depth in (100, 400, 900, 990):
        text = (
            '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "x": '
            + "[" * depth
            + "]" * depth
            + "}]}"
        )
        try:
            assert len(build(tmp_path, text, assistant_loss_only=True)) == 1
        except UserError as error:
            assert "line 1" in str(error)
