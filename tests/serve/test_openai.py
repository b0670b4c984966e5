"""The official client against the server, on both backends."""

import json
import math

import pytest

from tests.support.require import need

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 5},
                "days": {"type": "integer", "maximum": 9, "minimum": 0},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
HELLO = [{"role": "user", "content": "Hello!"}]


def chat(server, **more):
    return server.client.chat.completions.create(**{"model": "base", "messages": HELLO, "max_tokens": 12} | more)


def test_models_are_the_base_and_its_adapters(server):
    listed = {model.id: model for model in server.client.models.list()}
    assert {"base", "base:a"} <= set(listed) and listed["base:a"].parent == "base"
    assert listed["base"].root == "tiny" and server.client.models.retrieve("base:a").id == "base:a"
    assert server.ask("x", "tiny") == server.ask("x") and server.ask("x", "tiny:a") == server.ask("x", "base:a")


def test_an_answer_streamed_is_the_whole_one(server):
    whole = chat(server, seed=3, temperature=1.5, n=2, model="base:a")
    assert (
        whole.model == "base:a"
        and whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    )
    texts, finish, used = ["", ""], [None, None], None
    for chunk in chat(
        server, seed=3, temperature=1.5, n=2, model="base:a", stream=True, stream_options={"include_usage": True}
    ):
        used = chunk.usage or used
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finish[choice.index] = choice.finish_reason or finish[choice.index]
    assert texts == [choice.message.content for choice in whole.choices] and texts[0] != texts[1]
    assert finish == [choice.finish_reason for choice in whole.choices]
    assert used.completion_tokens == whole.usage.completion_tokens


def test_the_same_seed_says_the_same_and_no_seed_does_not(server):
    def said(**more):
        return (
            chat(server, temperature=2.0, max_tokens=30, top_p=1, extra_body={"top_k": 0, "min_p": 0}, **more)
            .choices[0]
            .message.content
        )

    assert said(seed=7) == said(seed=7) and len({said() for _ in range(3)}) > 1


def test_log_probabilities_are_those_of_the_model(server, files):
    import anytune

    found = chat(server, temperature=0, logprobs=True, top_logprobs=5, max_tokens=6).choices[0].logprobs.content
    with anytune.load(files / "tiny.gguf", device="numpy") as model:
        from anytune.generation.prompts import prompt_ids

        ids = prompt_ids(model, HELLO)
        answer = (
            server.client.chat.completions.create(model="base", messages=HELLO, temperature=0, max_tokens=6)
            .choices[0]
            .message.content
        )
        assert "".join(bytes(token.bytes).decode("utf-8", "replace") for token in found) == answer or "\ufffd" in answer
        for token in found:
            logits = model.logits(ids)[-1].astype(float)
            logs = logits - logits.max()
            logs -= math.log(sum(math.exp(value) for value in logs))
            best = sorted(range(len(logs)), key=lambda i: -logs[i])[:5]
            assert [bytes(t.bytes) for t in token.top_logprobs] == [model.tokenizer.piece(i) for i in best]
            assert token.logprob == pytest.approx(logs[best[0]], abs=2e-2)  # llama.cpp keeps keys in 16 bits
            ids.append(best[0])


def test_stop_bias_penalties_and_lengths(server):
    plain = chat(server, temperature=0, max_tokens=20).choices[0]
    assert plain.finish_reason == "length"
    stop = plain.message.content[4:6]
    stopped = chat(server, temperature=0, max_tokens=20, stop=[stop]).choices[0]
    assert stopped.finish_reason == "stop" and stopped.message.content == plain.message.content.partition(stop)[0]
    forced = chat(server, temperature=0, logit_bias={"70": 100}).choices[0].message.content
    assert len(set(forced)) == 1
    apart = chat(server, temperature=0, logit_bias={"70": 30}, frequency_penalty=2, presence_penalty=2, max_tokens=40)
    assert len(set(apart.choices[0].message.content)) > 1
    again = chat(server, temperature=0, logit_bias={"70": 30}, max_tokens=40, extra_body={"repeat_penalty": 50})
    assert len(set(again.choices[0].message.content)) > 1
    assert chat(server, max_completion_tokens=3, max_tokens=9).usage.completion_tokens <= 3
    assert chat(server, max_tokens=0).choices[0].message.content == ""


def test_json_of_a_schema(server):
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 6},
            "age": {"type": "integer", "minimum": 0, "maximum": 99},
        },
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    for seed in range(3):
        made = chat(
            server,
            seed=seed,
            temperature=1.2,
            max_tokens=200,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "person", "schema": schema, "strict": True},
            },
        ).choices[0]
        assert made.finish_reason == "stop", made
        found = json.loads(made.message.content)
        assert set(found) == {"name", "age"} and 0 <= found["age"] <= 99 and len(found["name"]) <= 6
    free = chat(server, max_tokens=100, temperature=0, response_format={"type": "json_object"}, logit_bias={"94": 20})
    assert free.choices[0].message.content.startswith("{")


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_that_must_be_called_is(server, stream):
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        made = chat(server, tools=[TOOL], tool_choice=choice, max_tokens=200, seed=1, stream=stream)
        if stream:
            chunks = list(made)
            calls = [call for c in chunks for call in c.choices[0].delta.tool_calls or []]
            finish = [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason]
            assert finish == ["tool_calls"] and not any(c.choices[0].delta.content for c in chunks)
        else:
            calls = made.choices[0].message.tool_calls
            assert made.choices[0].finish_reason == "tool_calls" and made.choices[0].message.content is None
        (call,) = calls
        assert call.id and call.type == "function" and call.function.name == "get_weather"
        assert set(json.loads(call.function.arguments)) == {"city", "days"}


def test_a_call_and_its_answer_go_on(server):
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    made = chat(server, messages=messages, tools=[TOOL])
    assert made.choices[0].finish_reason in ("stop", "length")
    assert made.usage.prompt_tokens > chat(server, tools=[TOOL]).usage.prompt_tokens
    assert chat(server, messages=messages, tools=[TOOL], tool_choice="none").choices[0].message.tool_calls is None


def test_texts_are_continued(server):
    made = server.client.completions.create(
        model="base", prompt=["Once", [40, 41, 42]], max_tokens=5, n=2, temperature=0, logprobs=2
    )
    assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
    assert made.choices[0].text == made.choices[1].text
    logprobs = made.choices[2].logprobs
    assert (
        len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset) == len(logprobs.top_logprobs)
    )
    streamed = ["", ""]
    for chunk in server.client.completions.create(
        model="base", prompt=["Once", [40, 41, 42]], max_tokens=5, temperature=0, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].text
    assert streamed == [made.choices[0].text, made.choices[2].text]
    echoed = server.client.completions.create(model="base", prompt="Once", max_tokens=5, temperature=0, echo=True)
    assert echoed.choices[0].text == "Once" + made.choices[0].text


def test_embeddings_are_those_of_anytune_embed(server, files):
    import numpy as np

    import anytune
    from anytune.evaluation.embeddings import embed

    texts = ["a small ship", "a large house", "x" * 200]
    with anytune.load(files / "tiny.gguf", device="numpy") as model:
        expected = embed(model, texts)
    found = server.client.embeddings.create(model="base", input=texts)  # the client asks for base64
    assert np.allclose([row.embedding for row in found.data], expected, atol=2e-3)
    plain = server.client.embeddings.create(model="base", input=texts[0], encoding_format="float").data[0].embedding
    assert np.allclose(plain, expected[0], atol=2e-3)
    other = server.client.embeddings.create(model="base:a", input=texts[0], encoding_format="float").data[0].embedding
    assert not np.allclose(plain, other, atol=1e-2)


def test_errors_have_openais_form(server):
    openai = need("openai")
    with pytest.raises(openai.NotFoundError, match="There is no model 'nobody'") as missing:
        chat(server, model="nobody")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="temperature") as wrong:
        chat(server, temperature=-1)
    assert wrong.value.param == "temperature" and wrong.value.type == "invalid_request_error"
    for more, words in (
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "user", "content": "long " * 400}]}, "context holds 1024"),
        ({"extra_body": {"beams": 3}}, "beams"),
        ({"tool_choice": "required"}, "no tools"),
        ({"response_format": {"type": "xml"}}, "json_schema"),
        ({"response_format": {"type": "json_object", "schema": {"type": "nonsense"}}}, "cannot be used"),
        ({"logit_bias": {"99999": 1}}, "not a token"),
        ({"extra_body": {"lora": [{"id": 99, "scale": 1}]}}, "no adapter|No adapter"),
    ):
        with pytest.raises(openai.BadRequestError, match=words):
            chat(server, **more)
    with pytest.raises(openai.NotFoundError, match="no such operation"):
        server.client.get("/nothing", cast_to=object)
