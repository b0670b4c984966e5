"""llama.cpp's tokenizer in a child process, which loads only the vocabulary of a GGUF file.

    with Peer(path) as peer: peer.encode(["text"], special=True, add=False); peer.facts

The child calls the C functions of xllamacpp's library, so that a file needs no tensors; an abort there is a
failed test here. Protocol: one JSON line a request, one a reply.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path


class Peer:
    def __init__(self, path: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, __file__, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.facts = self._reply()

    def encode(self, texts: list[str], special: bool = False, add: bool = False) -> list[list[int]]:
        return self._ask(texts=texts, special=special, add=add)

    def pieces(self, count: int) -> list[bytes]:
        return [bytes.fromhex(piece) for piece in self._ask(pieces=count)]

    def _ask(self, **request):
        self._child.stdin.write(json.dumps(request).encode() + b"\n")
        self._child.stdin.flush()
        return self._reply()

    def _reply(self):
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"llama.cpp's child ended with {self._child.wait()}")
        return json.loads(line)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error) -> None:
        self._child.stdin.close()
        self._child.wait()
        self._child.stdout.close()


class Struct(ctypes.Structure):
    """A parameter struct passed by value, larger than any that llama.cpp has: only its own bytes are read."""

    _fields_ = [("bytes", ctypes.c_uint8 * 512)]


def vocab_only(lib: ctypes.CDLL) -> Struct:
    """Default model parameters with vocab_only set.

    The struct's truth values follow its pointers and begin vocab_only, check_tensors, use_extra_bufts, of which
    only the third is true by default.
    """
    params = lib.llama_model_default_params()
    third = next(i for i in range(32, 128) if params.bytes[i])
    params.bytes[third - 2] = 1
    return params


def main() -> None:
    import xllamacpp.xllamacpp as extension

    lib, pointer, integer = ctypes.CDLL(extension.__file__), ctypes.c_void_p, ctypes.c_int32
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever llama.cpp prints must not mix with the replies
    signatures = {
        "llama_model_default_params": (Struct, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, Struct]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (integer, [pointer]),
        "llama_tokenize": (
            integer,
            [pointer, ctypes.c_char_p, integer, ctypes.POINTER(integer), integer, ctypes.c_bool, ctypes.c_bool],
        ),
        "llama_token_to_piece": (integer, [pointer, integer, ctypes.c_char_p, integer, integer, ctypes.c_bool]),
        "llama_vocab_is_eog": (ctypes.c_bool, [pointer, integer]),
        "llama_vocab_bos": (integer, [pointer]),
        "llama_vocab_eos": (integer, [pointer]),
        "llama_vocab_get_add_bos": (ctypes.c_bool, [pointer]),
        "llama_vocab_get_add_eos": (ctypes.c_bool, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    model = lib.llama_model_load_from_file(sys.argv[1].encode(), vocab_only(lib))
    if not model:
        sys.exit("the file does not load")
    vocab = lib.llama_model_get_vocab(model)
    count = lib.llama_vocab_n_tokens(vocab)

    def send(reply) -> None:
        replies.write(json.dumps(reply).encode() + b"\n")
        replies.flush()

    def encode(text: str, special: bool, add: bool) -> list[int]:
        data = text.encode()
        room = (integer * (len(data) + 16))()
        found = lib.llama_tokenize(vocab, data, len(data), room, len(room), add, special)
        return list(room[:found])

    def piece(token: int) -> str:
        room = ctypes.create_string_buffer(4096)
        size = lib.llama_token_to_piece(vocab, token, room, 4096, 0, True)
        return room.raw[:size].hex()

    send(
        dict(
            size=count,
            bos=lib.llama_vocab_bos(vocab),
            eos=lib.llama_vocab_eos(vocab),
            add_bos=lib.llama_vocab_get_add_bos(vocab),
            add_eos=lib.llama_vocab_get_add_eos(vocab),
            eog=[i for i in range(count) if lib.llama_vocab_is_eog(vocab, i)],
        )
    )
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if "pieces" in request:
            send([piece(i) for i in range(request["pieces"])])
        else:
            send([encode(text, request["special"], request["add"]) for text in request["texts"]])


if __name__ == "__main__":
    main()
