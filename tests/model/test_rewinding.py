"""Sequences that are cut back and continued, of models whose states cannot forget: as if they had never been longer."""

import queue

import numpy as np
import pytest

from anytune.generation.conversation import Conversation
from anytune.generation.sampling import Sampling
from anytune.serve.answer import Request
from anytune.serve.choosing import Choice
from anytune.serve.engines import EngineBackend
from anytune.serve.scheduler import Scheduler
from anytune.text import ChatTemplate
from tests.support import tiny
from tests.support.require import need

RECURRENT = [name for name in tiny.EACH if any(k.startswith(("ssm.", "shortconv.")) for k in tiny.SHAPES[name].meta)]
GREEDY = Sampling(temperature=0)
CLOSE = dict(rtol=1e-3, atol=1e-3)


@pytest.fixture(params=["numpy", "cpu-torch"])
def device(request):
    if request.param != "numpy":
        need("torch")
    return request.param


@pytest.mark.parametrize("name", RECURRENT)
def test_any_order_of_feeding_and_cutting_back(tiny_model, device, name):
    model, random = tiny_model(name, device=device), np.random.default_rng(3)
    decoder, held = model.decoder(batch=2, context=64), [[], []]
    for step in range(12):
        new = [random.integers(5, 300, random.choice([0, 1, 1, 6])).tolist() for _ in held]
        for slot, ids in enumerate(held):
            cut = random.integers(0, len(ids) + 1) if step % 3 == 2 else len(ids)
            decoder.truncate(slot, cut)
            held[slot] = [*ids[:cut], *new[slot]]
        for slot, got in enumerate(decoder.feed(new)):
            if new[slot]:
                np.testing.assert_allclose(got, model.logits(held[slot])[-1], **CLOSE)
        assert decoder.lengths == [len(ids) for ids in held]


@pytest.mark.parametrize("name", RECURRENT)
def test_ctrl_c_between_two_layers(tiny_model, name):
    model, ids = tiny_model(name), np.random.default_rng(4).integers(5, 300, 40).tolist()
    decoder = model.decoder(batch=1, context=64)
    decoder.feed([ids[:20]])
    forward, calls = type(decoder.stack.layers[0].mixer).forward, []

    def interrupted(part, e, *args, **kwargs):
        calls.append(part)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(part, e, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(decoder.stack.layers[0].mixer), "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            decoder.feed([ids[20:30]])
    at = decoder.lengths[0]
    np.testing.assert_allclose(decoder.feed([ids[at:40]])[0], model.logits(ids)[-1], **CLOSE)


@pytest.mark.parametrize("name", RECURRENT)
def test_turns_are_what_a_fresh_start_gives(tiny_model, name):
    """Also where a template leaves something out of earlier answers, as those of thinking models do."""
    model = tiny_model(name)
    template = (
        "{% for m in messages %}<|im_start|>"
        "{{ m.content[2:] if m.role == 'assistant' and not loop.last else m.content }}"
        "<|im_end|>{% endfor %}<|im_start|>"
    )
    for source in (None, template):
        if source is not None:
            source = ChatTemplate(source, model.tokenizer)
        talk = Conversation(model, template=source, how=GREEDY, max_tokens=6, context=200)
        for text in ("one", "two, and the", "three"):
            answer = talk.ask(text)
            fresh = model.generate(talk.messages[:-1], max_tokens=6, temperature=0, template=source)
            assert answer == fresh


@pytest.mark.parametrize("name", RECURRENT)
def test_slots_of_the_server_begin_again(tiny_model, name):
    model = tiny_model(name)
    scheduler, random = Scheduler(EngineBackend(model, 2, 128), model.tokenizer), np.random.default_rng(5)
    shared = random.integers(5, 300, 20).tolist()

    def ask(prompts: list[list[int]]) -> list[list[int]]:
        found, done = [[] for _ in prompts], [queue.Queue() for _ in prompts]
        for prompt, events in zip(prompts, done):
            scheduler.submit(Request(prompt, how=Choice(GREEDY), max_tokens=5, special=True, top=1), events.put)
        for ids, events in zip(found, done):
            while True:
                event = events.get(timeout=60)
                assert event.error is None, event.error
                ids += [chosen.token for chosen in event.tokens]
                if event.last:
                    break
        return found

    try:
        for _ in range(3):
            prompts = [shared[: random.integers(8, 20)] + random.integers(5, 300, 3).tolist() for _ in range(3)]
            for prompt, got in zip(prompts, ask(prompts)):
                want = list(prompt)
                while len(want) < len(prompt) + len(got):
                    want.append(int(np.argmax(model.logits(want)[-1])))
                assert got and got == want[len(prompt) :]
    finally:
        scheduler.close()
