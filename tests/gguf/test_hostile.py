"""Published attacks on GGUF parsers, and their neighbours: each is refused in one sentence, in little memory.

Every entry is the shape of a file that crashed, hung or exhausted some parser. The numbers are those under
which the flaw was published; where there is none, the entry says what the lie is.
"""

import os
import struct
import subprocess
import sys
import time
import tracemalloc

import numpy as np
import pytest

from anytune.errors import UserError
from anytune.gguf import GGUF, header
from tests.gguf import forge
from tests.gguf.forge import array, tensor, text, value

MAX = 2**64 - 1
U32 = struct.Struct("<I").pack
U64 = struct.Struct("<Q").pack
DATA = bytes(1 << 12)


def aligned(kind, payload):
    return forge.file([value("general.alignment", kind, payload)], [tensor()], DATA)


def one_tensor(*fields, **more):
    return forge.file([], [tensor(*fields, **more)], DATA)


def with_value(*record):
    return forge.file([value(*record)], data=DATA)


def with_array(*record):
    return forge.file([array(*record)])


# name -> (bytes, a word of the error)
ATTACKS = {
    # Counts of the header.
    "CVE-2024-25664 CVE-2024-23605 n_kv": (forge.file(n_values=MAX, data=DATA), "metadata values"),
    "n_kv times the record size overflows": (forge.file(n_values=2**64 // 48 + 1, data=DATA), "metadata"),
    "CVE-2024-25666 CVE-2024-21836 n_tensors": (forge.file(n_tensors=MAX, data=DATA), "tensors"),
    "n_tensors negative as int64": (forge.file(n_tensors=2**63, data=DATA), "tensors"),
    "n_tensors times the record overflows": (forge.file(n_tensors=2**64 // 88 + 1, data=DATA), "tensors"),
    "one tensor more than there are": (forge.file([], [tensor()], n_tensors=2), "tensor"),
    "CVE-2024-39720 the magic alone": (b"GGUF", "version"),
    "half a header": (forge.file()[:20], "number of metadata"),
    "empty": (b"", "letters GGUF"),
    "another format": (b"GGML" + bytes(64), "letters GGUF"),
    "big-endian": (forge.file(version=3 << 24), "big-endian"),
    "version 1": (forge.file(version=1), "version 1"),
    "version 0": (forge.file(version=0), "version 0"),
    "a version of the future": (forge.file(version=4), "version 4"),
    # Strings.
    "CVE-2024-25665 CVE-2024-23496 CVE-2025-66960 key of 2**64 - 1 bytes (+ 1 for NUL is 0)": (
        forge.file([text(b"k", MAX) + U32(4) + U32(1)], data=DATA),
        "key",
    ),
    "CVE-2024-21825 value of 2**64 - 1 bytes": (with_value("k", "string", text(b"x", MAX)), "'k'"),
    "value of 2**63 bytes": (with_value("k", "string", text(b"x", 2**63)), "'k'"),
    "value one byte longer than the file": (forge.file([value("k", "string", text(b"abc", 4))]), "'k'"),
    "a gigabyte that is not there": (with_value("k", "string", text(b"x", 1 << 30)), "'k'"),
    "empty key": (forge.file([value("", "uint32", U32(1))]), "0 bytes"),
    "key longer than the specification's limit": (with_value("k" * 65536, "uint32", U32(1)), "65536"),
    "key that is not UTF-8": (forge.file([value(b"\xff\xfe", "uint32", U32(1))]), "UTF-8"),
    "key with terminal escapes": (forge.file([value("\x1b]0;x\x07", "uint32", U32(1))]), "control"),
    "duplicate key": (forge.file([value("k", "uint32", U32(1))] * 2), "twice"),
    # Types and arrays.
    "CVE-2024-32878 a value of unknown type": (forge.file([value("k", 13, bytes(8))]), "unknown type 13"),
    "value type -1": (forge.file([value("k", 2**32 - 1, bytes(8))]), "unknown type"),
    "array of unknown type": (forge.file([array("k", 99, bytes(64), 2)]), "unknown type 99"),
    "CVE-2024-25667 array size overflows": (with_array("k", "uint64", bytes(64), 2**61 + 1), "array 'k'"),
    "CVE-2025-0315 array of a billion numbers": (with_array("k", "uint8", bytes(64), 1 << 30), "array 'k'"),
    "CVE-2024-25668 CVE-2024-21825 array of 2**60 strings": (
        forge.file([array("k", "string", text("x"), 2**60)]),
        "claims",
    ),
    "array of strings that ends early": (with_array("k", "string", text("x") * 5, 6), "array 'k'"),
    "CVE-2025-66959 array with a huge string": (with_array("k", "string", text("x", MAX) * 4, 4), "'k'"),
    "nested array": (forge.file([array("k", "array", U32(4) + U64(1) + U32(1), 1)]), "holds arrays"),
    "arrays nested 100,000 deep": (with_value("k", "array", (U32(9) + U64(1)) * 100_000), "arrays"),
    "a truth value of 2": (forge.file([value("k", "bool", b"\2")]), "truth"),
    "an array of such": (forge.file([array("k", "bool", b"\0\1\2", 3)]), "truth"),
    "an architecture in a list": (with_array("general.architecture", "string", text("llama"), 1), "string[]"),
    "a chat template that is a number": (with_value("tokenizer.chat_template", "uint32", U32(1)), "string"),
    "tokens that are numbers": (with_array("tokenizer.ggml.tokens", "uint32", U32(1), 1), "string[]"),
    # Alignment.
    "CVE-2025-0317 alignment 0 (a division by zero)": (aligned("uint32", U32(0)), "alignment"),
    "alignment 3": (aligned("uint32", U32(3)), "alignment"),
    "alignment 2**31": (aligned("uint32", U32(2**31)), "ends at"),
    "alignment -32": (aligned("int32", U32(2**32 - 32)), "alignment"),
    "alignment in words": (aligned("string", text("32")), "alignment"),
    "alignment of 64 bits": (aligned("uint64", U64(2**63)), "alignment"),
    "alignment as an array": (
        forge.file([array("general.alignment", "uint32", U32(32), 1)], [tensor()], DATA),
        "alignment",
    ),
    "alignment not a number": (aligned("float32", struct.pack("<f", float("nan"))), "alignment"),
    # Tensor records.
    "CVE-2024-21802 five dimensions": (one_tensor(dims=(1,) * 5), "5 dimensions"),
    "2**32 - 1 dimensions": (one_tensor(n_dims=2**32 - 1), "dimensions"),
    "no dimensions": (one_tensor(dims=()), "0 dimensions"),
    "a dimension of 0 (a division by zero)": (one_tensor(dims=(4, 0)), "shape"),
    "a negative dimension": (one_tensor(dims=(2**64 - 4,)), "shape"),
    "CVE-2025-53630 sizes whose sum overflows": (
        forge.file([], [tensor("a", (2**60,)), tensor("b", (2**60,), offset=2**62)], DATA),
        "shape",
    ),
    "CVE-2026-27940 a size that the padding overflows": (one_tensor(dims=(2**64 - 32,), kind=24), "shape"),
    "CVE-2026-33298 the product of dimensions is 0 in 64 bits": (one_tensor(dims=(2**32, 2**32)), "shape"),
    "the product is 4 in 64 bits": (one_tensor(dims=(2**63 + 2, 2)), "shape"),
    "the bytes of F64 overflow": (one_tensor(dims=(2**61, 1), kind=28), "shape"),
    "type number out of range": (one_tensor(kind=255), "type number 255"),
    "type number -1": (one_tensor(kind=2**32 - 1), "type number"),
    "a type that was removed": (one_tensor(kind=4), "type number 4"),
    "rows that are no whole blocks": (one_tensor(dims=(33,), kind=2), "multiple"),
    "half a superblock": (one_tensor(dims=(128, 2), kind=12), "multiple"),
    "CVE-2026-7482 CVE-2024-12055 data beyond the file's end": (one_tensor(dims=(2000,)), "ends at byte"),
    "an offset beyond the end": (one_tensor(offset=1 << 20), "ends at byte"),
    "an offset that overflows": (one_tensor(offset=2**64 - 32), "ends at byte"),
    "an offset between": (one_tensor(offset=8), "multiple of 32"),
    "the last byte is missing": (one_tensor(dims=(1024,))[:-1], "ends at byte"),
    "overlapping tensors": (forge.file([], [tensor("a", (64,)), tensor("b", (64,), offset=32)], DATA), "overlap"),
    "Q2_0 with blocks of 128 weights": (
        forge.file([], [tensor("a", (128, 16), 42), tensor("b", (128, 16), 42, offset=544)], bytes(1120)),
        "overlap; if its Q2_0 blocks hold 128 weights",
    ),
    "two tensors of one name": (forge.file([], [tensor(), tensor(offset=32)], DATA), "two tensors"),
    "a tensor without a name": (one_tensor(""), "0 bytes"),
    "a name of 65 bytes": (one_tensor("n" * 65), "65 bytes"),
    "a name of 2**64 - 1 bytes": (forge.file([], [text(b"w", MAX) + U32(1) + U64(4) + U32(0) + U64(0)], DATA), "name"),
    "a name with a line break": (one_tensor("a\nb"), "control"),
    "one part of a split model": (with_value("split.count", "uint16", struct.pack("<H", 3)), "3 parts"),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_is_refused(attack, tmp_path):
    content, says = ATTACKS[attack]
    with pytest.raises(UserError) as caught:
        GGUF.from_bytes(content)
    assert says in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 1200
    path = tmp_path / "f.gguf"
    path.write_bytes(content)
    if content:  # an empty file cannot be mapped, and is refused in other words
        with pytest.raises(UserError) as again:
            GGUF.open(path)
        assert str(again.value) == str(caught.value).replace("<memory>", str(path))
    else:
        with pytest.raises(UserError, match="f.gguf is empty"):
            GGUF.open(path)


def test_the_forge_makes_good_files_too():
    """Without a lie the same bytes are read: the refusals above are not for another reason."""
    good = forge.file(
        [value("k", "string", text("x")), array("n", "uint32", U32(7) * 3, 3), array("s", "string", text("y"), 1)],
        [tensor("a", (64,)), tensor("b", (32, 2), 2, 256)],
        DATA,
    )
    gguf = GGUF.from_bytes(good)
    assert gguf.metadata["k"] == "x" and gguf.metadata["s"] == ["y"]
    assert gguf.metadata["n"].tolist() == [7] * 3
    assert gguf.tensors["b"].shape == (2, 32) and gguf.float32("b").shape == (2, 32)


@pytest.mark.parametrize("what", ["values", "tensors"])
def test_counts_are_believed_up_to_what_the_smallest_records_take(what):
    record, later = {"values": (value("k", "bool", b"\1"), "twice"), "tensors": (tensor("w", (1,)), "ends at")}[what]
    for count, says in ((3, "it claims 3"), (2, later)):
        with pytest.raises(UserError, match=says):
            GGUF.from_bytes(forge.file(**{what: [record] * 2, f"n_{what}": count}))


@pytest.mark.parametrize("version", [2, 3])
def test_every_truncation_is_refused(version):
    """Cut anywhere, a file is refused (or cut within the padding after its last tensor)."""
    whole = forge.file(
        [
            value("k", "string", text("hello")),
            array("s", "string", text("a") + text("bc"), 2),
            value("b", "bool", b"\1"),
        ],
        [tensor("w", (32,), 2)],
        bytes(18),
        version=version,
    )
    GGUF.from_bytes(whole)
    for size in range(len(whole)):
        with pytest.raises(UserError):
            GGUF.from_bytes(whole[:size])


# ---- memory: each file makes a careless parser take many times its size ----


def many_keys():
    return forge.file([value(f"{i:x}", "uint8", b"\0") for i in range(30_000)])


def many_empty_strings():
    return forge.file([array("k", "string", bytes(8 * 200_000), 200_000)])


def many_short_strings():
    return forge.file([array("k", "string", text("ÿĀ") * 100_000, 100_000)])


def wide_characters():
    """One character beyond the BMP makes Python take four bytes for each of the others."""
    return forge.file([value(f"k{i}", "string", text("😀" + "a" * 400_000)) for i in range(4)])


def wide_characters_in_an_array():
    return forge.file([array("k", "string", text("😀" + "a" * 1000) * 2_000, 2_000)])


def many_empty_arrays():
    return forge.file([array(f"{i:x}", "uint8", b"", 0) for i in range(20_000)])


def many_tensors():
    records = [tensor(f"{i:x}", (1, 1, 1, 1), 24, 32 * i) for i in range(12_000)]
    return forge.file([], records, bytes(32 * 12_000))


@pytest.mark.parametrize(
    "make",
    [
        many_keys,
        many_empty_strings,
        many_short_strings,
        wide_characters,
        wide_characters_in_an_array,
        many_empty_arrays,
        many_tensors,
    ],
)
def test_memory_is_bounded_by_the_file_and_a_constant(make, tmp_path, monkeypatch):
    """A tenth of the real constant (48 MiB of 64, the rest is transient), so that small files exceed it."""
    monkeypatch.setattr(header, "SPARE_MEMORY", (48 << 20) // 10)
    path = tmp_path / "f.gguf"
    path.write_bytes(make())
    size = path.stat().st_size
    tracemalloc.start()
    try:
        gguf = GGUF.open(path)
    except UserError:
        gguf = None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    if gguf is not None:
        gguf.close()
    assert peak <= size + (64 << 20) // 10, f"{peak >> 10} KiB for a file of {size >> 10} KiB"


@pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_AS is of POSIX")
def test_no_claim_is_believed_under_a_memory_limit(tmp_path):
    """All attacks in a process that may not grow: a huge allocation, even if untouched, would fail."""
    folder = tmp_path / "attacks"
    folder.mkdir()
    for i, (content, _) in enumerate(ATTACKS.values()):
        (folder / f"{i}.gguf").write_bytes(content)
    program = (
        "import pathlib, resource, sys\n"
        "from anytune.errors import UserError\n"
        "from anytune.gguf import GGUF\n"
        "used = int(pathlib.Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try:\n        GGUF.open(path)\n"
        "    except UserError:\n        continue\n"
        "    sys.exit(f'{path} was accepted')\n"
    )
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("needs /proc")
    run = subprocess.run(
        [sys.executable, "-c", program, str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr


def test_a_vocabulary_of_262k_tokens_loads_fast(tmp_path):
    """Gemma's size, with scores and types. A generous bound: one token by one in slow code takes seconds."""
    n = 262_144
    tokens = array("tokenizer.ggml.tokens", "string", b"".join(text(f"▁token{i}") for i in range(n)), n)
    scores = array("tokenizer.ggml.scores", "float32", np.arange(n, dtype="<f4").tobytes(), n)
    types = array("tokenizer.ggml.token_type", "int32", np.ones(n, "<i4").tobytes(), n)
    path = tmp_path / "v.gguf"
    path.write_bytes(forge.file([tokens, scores, types]))
    start = time.process_time()
    with GGUF.open(path) as gguf:
        took = time.process_time() - start
        assert gguf.metadata["tokenizer.ggml.tokens"][n - 1] == f"▁token{n - 1}"
        assert gguf.metadata["tokenizer.ggml.scores"][5] == 5
    assert took < 5, "reading became far slower than linear code should be"


def test_a_named_pipe_or_folder_is_not_waited_for(tmp_path):
    with pytest.raises(UserError, match="not a file"):
        GGUF.open(tmp_path)
    with pytest.raises(UserError, match="cannot be opened"):
        GGUF.open(tmp_path / "absent.gguf")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UserError, match="not a file"):
            GGUF.open(tmp_path / "pipe")


def test_a_file_that_shrinks_is_noticed(tmp_path):
    path = tmp_path / "f.gguf"
    path.write_bytes(forge.file([], [tensor("w", (1024,))], DATA))
    with GGUF.open(path) as gguf:
        os.truncate(path, path.stat().st_size - 100)
        with pytest.raises(UserError, match="truncated"):
            gguf.read_into("w", 0, 1, np.empty(4096, np.uint8))
