"""Token ids are llama.cpp's, for real models and for every pre-tokenizer; decoding gives the text back."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.gguf import GGUF
from anytune.text.pretokenizers import PRE, Splitter
from anytune.text.tokenizer import StreamDecoder, Tokenizer
from tests.support.models import gemma3, smollm2
from tests.support.require import need
from tests.support.tiny import byte_symbols, spm_vocabulary
from tests.text.llamacpp_vocab import Peer
from tests.text.samples import FIXED, texts


@pytest.fixture(scope="module", params=[smollm2, gemma3], ids=["smollm2", "gemma3"])
def real(request):
    need("xllamacpp")
    path = request.param()
    with GGUF.open(path) as gguf, Peer(path) as peer:
        yield Tokenizer.from_gguf(gguf), peer


def differing(tokenizer, peer, samples, special, add=True):
    theirs = peer.encode(samples, special, add)
    ours = [tokenizer.encode(text, special=special, bos=None if add else False) for text in samples]
    return [(text, a, b) for text, a, b in zip(samples, ours, theirs, strict=True) if a != b]


@pytest.mark.parametrize("special", [False, True])
def test_real_models_give_llamacpp_ids(real, special):
    assert not differing(*real, texts(1500, seed=int(special)), special)
    assert not differing(*real, FIXED, special, add=False)


def test_real_models_give_llamacpp_pieces_and_special_ids(real):
    tokenizer, peer = real
    facts = peer.facts
    assert (tokenizer.size, tokenizer.bos, tokenizer.eos) == (facts["size"], facts["bos"], facts["eos"])
    assert (tokenizer.add_bos, tokenizer.add_eos) == (facts["add_bos"], facts["add_eos"])
    assert tokenizer.eog == frozenset(facts["eog"])
    assert [tokenizer.piece(i) for i in range(tokenizer.size)] == peer.pieces(tokenizer.size)


def test_long_text_is_linear_enough_and_equal(real):
    """Runs without a single cut (200,000 characters) end in a moment, with llama.cpp's ids."""
    tokenizer, peer = real
    rng = random.Random(3)
    long = [
        "a" * 200_000,
        "".join(rng.choice("abcdefgh") for _ in range(50_000)),
        "".join(rng.choice("漢字仮名交文") for _ in range(20_000)),
        " " * 30_000 + "x",
        "\n" * 30_000,
    ]
    assert not differing(tokenizer, peer, long[:1] if tokenizer.kind != "SentencePiece" else long[1:], False)


def write_vocabulary(path, pre, tokens, merges):
    from anytune.gguf import write_gguf

    write_gguf(
        path,
        {
            "general.architecture": "llama",
            "llama.context_length": 64,
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.token_type": np.array([3] + [1] * (len(tokens) - 1), np.int32),
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 0,
        },
        [],
    )
    return path


@pytest.mark.parametrize("pre", sorted({id(pre): name for name, pre in PRE.items()}.values()))
def test_pre_tokenizers_cut_as_llamacpp_does(tmp_path, pre):
    """Almost any two neighbours of one word merge in this vocabulary, so that every cut shows in the ids."""
    need("xllamacpp")
    rng, samples = random.Random(7), texts(150, seed=len(pre))
    if PRE[pre].escape:  # llama.cpp aborts at a run of newlines that is no token
        samples = [re.sub("\n+", "\n", text) for text in samples]
    spell = byte_symbols() if PRE[pre].bytes_ else None
    used = (
        sorted({b for text in samples for b in text.encode()})
        if spell
        else sorted({char for text in samples for char in text.replace(" ", "\u2581")} - {"\n", "\0"})[:150]
    )
    units = [spell[b] for b in used] if spell else used
    pairs = [(a, b) for a in units for b in rng.sample(units, min(len(units), 70))]
    rng.shuffle(pairs)
    tokens = list(dict.fromkeys(["<|x|>", *(spell or ["\n", "<0x41>", *units]), *(a + b for a, b in pairs)]))
    path = write_vocabulary(tmp_path / "v.gguf", pre, tokens, [f"{a} {b}" for a, b in pairs])
    with GGUF.open(path) as gguf, Peer(path) as peer:
        tokenizer = Tokenizer.from_gguf(gguf)
        assert tokenizer.add_bos == peer.facts["add_bos"]
        assert not differing(tokenizer, peer, samples, False)


@pytest.mark.parametrize("pre", sorted({id(pre): name for name, pre in PRE.items()}.values()))
@settings(max_examples=40, deadline=None)
@given(text=st.text())
def test_splitting_loses_nothing(pre, text):
    assert "".join(Splitter(PRE[pre])(text)) == text


def bytes_vocabulary(**more):
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["<|end|>", *byte_symbols(), "he", "<extra>"],
        "tokenizer.ggml.token_type": np.array([3] + [1] * 257 + [4]),
        "tokenizer.ggml.merges": ["h e"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 0,
        **more,
    }


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_decoding_gives_the_text_back(text):
    tokenizer = Tokenizer(bytes_vocabulary())
    for special in (False, True):
        ids, starts = tokenizer.encode_spans(text, special)
        assert tokenizer.decode(ids, skip_special=False) == text
        assert starts == sorted(starts) and all(0 <= s < len(text) for s in starts)
        for token, start, end in zip(ids, starts, [*starts, len(text)][1:], strict=True):
            assert (
                tokenizer.piece(token).decode("utf-8", "replace").startswith(text[start:end])
                or not text[start].isascii()
            )


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
def test_sentencepiece_decoding_gives_the_text_back(text):
    tokenizer = Tokenizer(spm_vocabulary(320))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    ids, starts = tokenizer.encode_spans(text)
    assert starts == sorted(starts) and all(0 <= s < len(text) for s in starts)


def test_sentencepiece_follows_llamacpp_with_space_prefix(tmp_path):
    need("xllamacpp")
    from anytune.gguf import write_gguf

    for k, more in enumerate([{}, {"tokenizer.ggml.add_space_prefix": False}, {"tokenizer.ggml.add_eos_token": True}]):
        path = tmp_path / f"{k}.gguf"
        write_gguf(path, {"general.architecture": "llama", "llama.context_length": 64} | spm_vocabulary(320) | more, [])
        with GGUF.open(path) as gguf, Peer(path) as peer:
            tokenizer = Tokenizer.from_gguf(gguf)
            for special in (False, True):
                assert not differing(tokenizer, peer, texts(200, seed=k), special)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_streaming_gives_the_same_text(text):
    tokenizer = Tokenizer(bytes_vocabulary())
    stream = StreamDecoder(tokenizer)
    assert "".join(stream.feed(i) for i in tokenizer.encode(text)) + stream.flush() == text
    broken = tokenizer.encode("é")[:1]
    assert "".join(stream.feed(i) for i in broken) + stream.flush() == "\ufffd"


def test_special_tokens_are_read_only_when_asked():
    tokenizer = Tokenizer(bytes_vocabulary())
    assert tokenizer.encode("<|end|>he<extra>") != tokenizer.encode("<|end|>he<extra>", special=True) == [0, 257, 258]
    assert tokenizer.encode("x<extra>")[-1] == 258  # user-defined ones always are
    assert tokenizer.eog == {0} and tokenizer.eot == 0
    assert tokenizer.decode([0, 257]) == "he" and tokenizer.decode([0, 257], skip_special=False) == "<|end|>he"
    assert tokenizer.encode("he", bos=True) == [0, 257]


def test_lone_surrogates_become_replacement_characters():
    tokenizer = Tokenizer(bytes_vocabulary())
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokenizer.ggml.model": "bert"}, "bert"),
        ({"tokenizer.ggml.model": None}, "no tokenizer"),
        ({"tokenizer.ggml.tokens": []}, "no list of tokens"),
        ({"tokenizer.ggml.token_type": np.zeros(3, int)}, "token_type"),
        ({"tokenizer.ggml.merges": None}, "merges"),
        ({"tokenizer.ggml.pre": "no-such"}, "no-such"),
        ({"tokenizer.ggml.model": "llama"}, "scores"),
    ],
)
def test_unusable_metadata_is_a_users_error(change, message):
    with pytest.raises(UserError, match=message):
        Tokenizer(bytes_vocabulary(**change))
