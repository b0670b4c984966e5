"""Sampling against its definition, and decoding of prompts against a decoder whose answers are known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.engine.composed import largest
from anytune.errors import UserError
from anytune.generation.generate import CHUNK, Reply, decode
from anytune.generation.sampling import Sampling, sample

GREEDY = Sampling(temperature=0)


class Words:
    """A tokenizer of bytes: token i is byte i, 256 ends a turn, 257 is BOS."""

    eog = frozenset({256})
    bos, add_bos, size = 257, True, 258

    def is_control(self, token):
        assert token < self.size
        return token > 255

    def piece(self, token):
        assert token < self.size
        return bytes([token]) if token < 256 else b"<end>"


class Script:
    """A decoder whose slot s continues every text with script[s]; it keeps what was fed, as a cache would."""

    def __init__(self, script, context=10_000):
        self.script, self.context = [list(s) for s in script], context
        self.fed = [[] for _ in script]
        self.prompts, self.feeds = [None] * len(script), []

    @property
    def lengths(self):
        return [len(f) for f in self.fed]

    def truncate(self, slot, length):
        del self.fed[slot][length:]

    def feed_best(self, tokens, most):
        return largest(self.feed(tokens), most)

    def feed(self, tokens):
        self.feeds.append([len(t) for t in tokens])
        rows = np.full((len(tokens), 260), np.nan, np.float32)  # more than there are tokens
        for slot, new in enumerate(tokens):
            self.fed[slot] += new
            assert len(self.fed[slot]) <= self.context
            if new and self.prompts[slot] is not None and len(self.fed[slot]) >= self.prompts[slot]:
                rows[slot] = 0
                rows[slot, self.script[slot][len(self.fed[slot]) - self.prompts[slot]]] = 9
            elif new:
                rows[slot] = 0
        return rows


def run(script, prompts=None, context=10_000, how=GREEDY, **options):
    """(replies, pieces of each slot, decoder)"""
    decoder = Script(script, context)
    prompts = prompts or [[1, 2, 3]] * len(script)
    decoder.prompts = [len(p) for p in prompts]
    replies, pieces = [], [[] for _ in script]
    for slot, text in decode(decoder, Words(), prompts, how, replies=replies, **options):
        pieces[slot].append(text)
    return replies, pieces, decoder


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.integers(0, 60))
def test_streams_whole_characters_and_the_pieces_make_up_the_text(text, limit):
    script = [*text.encode("utf-8", "ignore"), 256]
    replies, pieces, _ = run([script], max_tokens=limit or -1)
    cut = bytes(script[: limit or None][:-1] if not limit or limit >= len(script) else script[:limit])
    assert "".join(pieces[0]) == replies[0].text == cut.decode("utf-8", "replace")
    assert all(piece for piece in pieces[0])
    assert replies[0].finish == ("length" if limit and limit < len(script) else replies[0].finish)
    assert replies[0].ids == script[: limit or None]


@settings(max_examples=60, deadline=None)
@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_stop_strings_end_the_text_before_them_and_are_never_shown_in_part(text, stops):
    replies, pieces, _ = run([[*text.encode(), 256]], stop=stops)
    ends = {at + len(s): at for s in stops for at in range(len(text)) if text.startswith(s, at)}
    # The text ends as soon as any stop string is complete; what begins first of those is where it is cut.
    first = min(ends, default=None)
    starts = [at for s in stops if first is not None and (at := text[:first].find(s)) >= 0]
    expected = text if first is None else text[: min(starts)]
    assert replies[0].text == "".join(pieces[0]) == expected
    assert replies[0].finish == "stop"


def test_rows_without_a_token_say_nothing():
    replies, _, _ = run([[97, 259, 98, 256]])
    assert replies[0].text == "ab" and replies[0].finish == "stop"


def test_a_batch_gives_what_each_prompt_gives_alone():
    rng = np.random.default_rng(0)
    scripts = [[*rng.integers(65, 91, n), 256] for n in (0, 3, 17, 9)]
    prompts = [list(rng.integers(0, 256, n)) for n in (1, CHUNK + 5, 2 * CHUNK, 7)]
    together, _, decoder = run(scripts, prompts, max_tokens=12)
    for script, prompt, reply in zip(scripts, prompts, together, strict=True):
        alone, _, _ = run([script], [prompt], max_tokens=12)
        assert (reply.text, reply.ids, reply.finish) == (alone[0].text, alone[0].ids, alone[0].finish)
        assert reply.prompt == prompt
    assert max(max(sizes) for sizes in decoder.feeds) <= CHUNK
    assert [f[: len(p)] for f, p in zip(decoder.fed, prompts, strict=True)] == prompts


def test_the_context_is_never_outgrown():
    replies, _, decoder = run([[65] * 50], [[1] * 8], context=12)
    assert replies[0].finish == "context" and len(replies[0].ids) == 5  # the last one needs no place in the cache
    with pytest.raises(UserError, match="13 tokens but the context holds 12"):
        run([[65]], [[1] * 13], context=12)
    with pytest.raises(UserError, match="The prompt is empty"):
        run([[65]], [[]])


def test_only_what_a_slot_does_not_hold_is_fed():
    decoder = Script([[65, 66, 256]])
    decoder.fed = [[1, 2, 3, 4]]
    for prompt, fed in (([1, 2, 3, 4, 5, 6], 2), ([1, 2, 3, 4, 5, 6], 1)):
        decoder.prompts, decoder.feeds = [len(prompt)], []
        assert "".join(t for _, t in decode(decoder, Words(), [prompt], GREEDY)) == "AB"
        assert decoder.feeds[0] == [fed]
        decoder.truncate(0, len(prompt))


logits = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=40).map(lambda x: np.asarray(x, np.float32))


def kept_by_definition(x, how):
    """Ids that may be drawn, straight from the definitions, one token at a time."""
    order = sorted(range(len(x)), key=lambda i: -x[i])
    if how.top_k:
        order = order[: how.top_k]
    p = np.exp(x[order].astype(np.float64) - x.max())
    p /= p.sum()
    kept, total = [], 0.0
    for i, q in zip(order, p, strict=True):
        if total < how.top_p and q >= how.min_p * p[0]:
            kept.append(i)
        total += q
    return set(kept or order[:1])


@settings(max_examples=150, deadline=None)
@given(logits, st.integers(0, 45), st.floats(0.05, 1), st.floats(0, 1), st.floats(0.1, 3), st.integers(0, 99))
def test_only_tokens_that_the_samplers_keep_are_drawn(x, k, p, m, temperature, seed):
    how = Sampling(temperature, k, p, m, seed=seed)
    token = sample(x, [], how, how.generator())
    allowed = kept_by_definition(x, how)
    ties = {i for i in range(len(x)) if any(abs(x[i] - x[j]) < 1e-4 for j in allowed)}  # equal ones may change places
    assert token in allowed | ties
    assert token == sample(x, [], how, how.generator())
    assert sample(x, [], Sampling(temperature=0), how.generator()) == int(np.argmax(x))


def test_frequencies_are_the_probabilities():
    x = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    how = Sampling(temperature=0.7, top_k=0, top_p=1, min_p=0, seed=3)
    random, n = how.generator(), 4000
    counts = np.bincount([sample(x, [], how, random) for _ in range(n)], minlength=4) / n
    p = np.exp(x.astype(np.float64) / 0.7)
    p /= p.sum()
    assert np.abs(counts - p).max() < 4 * np.sqrt(0.25 / n)


def test_repeat_penalty_acts_on_recent_tokens_only():
    x = np.array([4.0, 3.9, -1.0], np.float32)
    how = Sampling(temperature=0, repeat_penalty=2.0, repeat_last_n=2)
    assert sample(x, [0, 2, 2], how, how.generator()) == 0
    assert sample(x, [2, 0], how, how.generator()) == 1
    assert sample(np.array([-1.0, -1.5], np.float32), [0], how, how.generator()) == 1
    assert x[0] == 4.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(bad):
    x = np.zeros(5, np.float32)
    x[3] = bad
    with pytest.raises(UserError, match="not numbers"):
        sample(x, [], GREEDY, GREEDY.generator())


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": float("nan")},
        {"top_p": 0},
        {"min_p": 2},
        {"top_k": -1},
        {"repeat_penalty": 0},
        {"temprature": 1},
    ],
)
def test_values_that_mean_nothing_are_named(values):
    with pytest.raises(UserError, match=next(iter(values)).replace("_", "[-_]")):
        Sampling(**values)


def test_zero_tokens_need_no_model():
    decoder, replies = Script([[65]]), []
    assert list(decode(decoder, Words(), [[1]], GREEDY, max_tokens=0, replies=replies)) == []
    assert replies == [Reply([1], [], "", "length")] and decoder.feeds == []
