"""The command: one line when it is ready, an orderly end, one sentence for what cannot be."""

import signal

import pytest

from tests.serve.server import Server
from tests.support.require import need


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_in_order_while_it_answers(files, tmp_path, number):
    need("openai")
    server = Server(tmp_path, "-m", str(files / "tiny.gguf"), "--lora", f"mine={files / 'a.gguf'}")
    stream = server.client.chat.completions.create(
        model="base:mine",
        messages=[{"role": "user", "content": "x"}],
        max_tokens=900,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    code, said = server.stop(number)
    assert code == 0 and "Traceback" not in said, said


@pytest.mark.parametrize(
    "options, words",
    [
        (["--lora", "nothing.gguf"], "no adapter nothing.gguf"),
        (["--lora", "MODEL"], "not a LoRA adapter"),
        (["--lora", "a=ADAPTER", "--lora", "a=ADAPTER"], "would be called 'a'"),
        (["--run", "nowhere"], "no such folder"),
        (["--lora-dir", "nowhere"], "no such folder"),
        (["-c", "5000"], "made for 1024 tokens"),
        (["--backend", "llama.cpp", "--device", "webgpu"], "omit --backend"),
        (["--chat-template", "nothing"], "no template file"),
        (["--host", "203.0.113.9"], "cannot be used"),
    ],
)
def test_what_cannot_be_is_told(files, cli, options, words):
    options = [
        part.replace("MODEL", str(files / "tiny.gguf")).replace("ADAPTER", str(files / "a.gguf")) for part in options
    ]
    done = cli("serve", "-m", str(files / "tiny.gguf"), "--port", "0", "-t", "1", *options)
    assert done.code == 2 and words in done.err, done.err
