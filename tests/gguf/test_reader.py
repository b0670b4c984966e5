"""Reading and writing whole files, against the `gguf` package and on the real models."""

import errno
import hashlib
import threading

import numpy as np
import pytest

from anytune.errors import UserError
from anytune.gguf import BLOCKS, GGUF, dequantize, quantize, write_gguf
from anytune.gguf import writer as writer_module
from tests.support import models
from tests.support.require import need

WEIGHTS = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "f.gguf"


def test_a_file_of_the_gguf_package_is_read(path):
    gguf = need("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(128)
    writer.add_uint8("u8", 200)
    writer.add_int64("i64", -(2**40))
    writer.add_float64("f64", 1e300)
    writer.add_bool("yes", True)
    writer.add_array("words", ["a", "", "ü🙂"])
    writer.add_array("numbers", [1, -2, 3])
    writer.add_tensor("w", WEIGHTS)
    writer.add_tensor(
        "q", gguf.quants.quantize(WEIGHTS, gguf.GGMLQuantizationType.Q4_0), raw_dtype=gguf.GGMLQuantizationType.Q4_0
    )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUF.open(path) as file:
        assert file.metadata["general.architecture"] == "llama"
        assert file.alignment == 128 and file.version == 3
        assert {key: file.metadata[key] for key in ("u8", "i64", "f64", "yes", "words")} == {
            "u8": 200,
            "i64": -(2**40),
            "f64": 1e300,
            "yes": True,
            "words": ["a", "", "ü🙂"],
        }
        assert file.metadata["numbers"].tolist() == [1, -2, 3] and file.kinds["numbers"] == "int32[]"
        assert np.array_equal(file.float32("w"), WEIGHTS)
        assert file.tensors["q"].shape == (6, 64) and file.tensors["q"].type is BLOCKS["Q4_0"]
        assert np.array_equal(file.blocks("q"), quantize(WEIGHTS, "Q4_0"))


def test_the_gguf_package_reads_ours(path):
    gguf = need("gguf")
    words = ["a", "", "ü🙂"]
    write_gguf(
        path,
        {
            "general.architecture": "llama",
            "n": 3,
            "neg": -3,
            "big": 2**40,
            "x": 0.5,
            "yes": False,
            "words": words,
            "ids": np.arange(4, dtype=np.int32),
            "list": [1, 2],
        },
        [
            ("w", (6, 64), "F32", WEIGHTS),
            ("q", (6, 64), "Q8_0", lambda: WEIGHTS),
            ("cube", (2, 3, 64), "F16", WEIGHTS.reshape(2, 3, 64)),
            ("n" * 63, (2, 1, 3, 64), "F32", WEIGHTS.reshape(2, 1, 3, 64)),  # the longest name, the most dimensions
        ],
    )
    reader = gguf.GGUFReader(path)
    contents = {key: field.contents() for key, field in reader.fields.items()}
    kinds = {key: [kind.name for kind in field.types] for key, field in reader.fields.items()}
    assert contents["words"] == words and contents["ids"] == [0, 1, 2, 3] and contents["x"] == 0.5
    assert [kinds[key][0] for key in ("n", "neg", "big", "x")] == ["UINT32", "INT32", "UINT64", "FLOAT32"]
    assert kinds["list"] == ["ARRAY", "UINT32"] and kinds["ids"] == ["ARRAY", "INT32"]
    found = {t.name: t for t in reader.tensors}
    assert found["cube"].shape.tolist() == [64, 3, 2] and found["n" * 63].shape.tolist() == [64, 3, 1, 2]
    assert np.array_equal(found["w"].data, WEIGHTS)
    assert np.array_equal(found["q"].data, quantize(WEIGHTS, "Q8_0"))


@pytest.mark.parametrize("get", [models.smollm2, models.gemma3])
def test_real_models_equal_the_gguf_package(get):
    gguf = need("gguf")
    path = get()
    reader = gguf.GGUFReader(path)
    with GGUF.open(path) as file:
        theirs = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert list(file.metadata) == list(theirs)
        for key, value in file.metadata.items():
            if not isinstance(value, list | np.ndarray):
                assert value == theirs[key].contents()
                continue
            parts, places = theirs[key].parts, theirs[key].data
            assert len(value) == len(places)
            for i in {0, len(value) - 1, *range(0, len(value), 997)}:
                part = parts[places[i]]
                assert value[i] == (bytes(part).decode() if isinstance(value, list) else part[0])
        assert list(file.tensors) == [t.name for t in reader.tensors]
        for t in reader.tensors:
            info = file.tensors[t.name]
            assert info.shape == tuple(t.shape.tolist()[::-1]) and info.offset == t.data_offset
            assert info.nbytes == t.n_bytes and info.type.id == t.tensor_type
        seen = set()
        for t in reader.tensors:  # the first small one of each type, whole, and the first rows of all
            want = gguf.quants.dequantize(t.data[:3], t.tensor_type)
            rows = file.blocks(t.name) if t.data.ndim > 1 else file.blocks(t.name)[:, : t.data[:3].nbytes]
            assert np.array_equal(dequantize(rows[:3], t.tensor_type.name).ravel(), want.ravel())
            if t.tensor_type not in seen and t.n_elements < 1 << 23:
                seen.add(t.tensor_type)
                assert np.array_equal(file.float32(t.name), gguf.quants.dequantize(t.data, t.tensor_type))
        assert len(seen) >= 2


def test_a_real_model_is_rewritten_byte_for_byte(path):
    source = models.smollm2()
    with GGUF.open(source) as file:
        write_gguf(
            path,
            file.metadata,
            [(t.name, t.shape, t.type.name, lambda n=t.name: file.blocks(n)) for t in file.tensors.values()],
            file.kinds,
        )
        assert file.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_rows_are_read_into_a_buffer_of_ones_own(path):
    write_gguf(path, {}, [("q", (6, 64), "Q4_1", WEIGHTS)])
    with GGUF.open(path) as file:
        t = file.tensors["q"]
        assert (t.rows, t.row_bytes, t.n_elements, t.nbytes) == (6, 40, 384, 240)
        buffer = np.zeros(3 * t.row_bytes, np.uint8)
        file.read_into("q", 2, 5, buffer)
        assert np.array_equal(buffer.reshape(3, -1), file.blocks("q")[2:5])
        file.read_into("q", 6, 6, buffer[:0])
        for lo, hi, size in ((0, 3, 119), (-1, 2, 120), (4, 7, 120), (3, 2, 40)):
            with pytest.raises(ValueError, match="rows"):
                file.read_into("q", lo, hi, buffer[:size])
        with pytest.raises(ValueError, match="read-only"):
            file.blocks("q")[0, 0] = 1
        with pytest.raises(UserError, match="no tensor"):
            file.blocks("absent")


def test_reading_without_preadv(path, monkeypatch):
    """Windows has none: seek and read, one thread at a time."""
    monkeypatch.delattr("os.preadv", raising=False)
    rows = np.random.default_rng(1).standard_normal((2000, 64)).astype(np.float32)
    write_gguf(path, {}, [("w", rows.shape, "F32", rows)])
    with GGUF.open(path) as file:
        wrong = []

        def read(lo):
            out = np.empty(500 * 256, np.uint8)
            for _ in range(20):
                file.read_into("w", lo, lo + 500, out)
                if not np.array_equal(out.view(np.float32).reshape(500, 64), rows[lo : lo + 500]):
                    wrong.append(lo)

        threads = [threading.Thread(target=read, args=(lo,)) for lo in (0, 500, 1000, 1500)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_closing_twice_and_views_that_outlive_the_file(path):
    write_gguf(path, {}, [("w", (6, 64), "F32", WEIGHTS)])
    file = GGUF.open(path)
    view = file.blocks("w")
    file.close()
    file.close()
    assert np.array_equal(view.view(np.float32), WEIGHTS)
    for use in (lambda: file.blocks("w"), lambda: file.float32("w")):
        with pytest.raises(ValueError, match="closed"):
            use()


@pytest.mark.parametrize(
    ("metadata", "tensors", "says"),
    [
        ({"k": 2**64}, [], "no type"),
        ({"k": None}, [], "no type"),
        ({"k": []}, [], "no type"),
        ({"k": [1, "a"]}, [], "no type"),
        ({"k": np.zeros(2, np.complex64)}, [], "no type"),
        ({"k": np.zeros((2, 2), np.int32)}, [], "one-dimensional"),
        ({"general.alignment": 24}, [], "power of two"),
        ({}, [("w", (6, 63), "Q4_0", WEIGHTS)], "shape"),
        ({}, [("w", (), "F32", WEIGHTS)], "shape"),
        ({}, [("w", (1,) * 5, "F32", WEIGHTS)], "shape"),
        ({}, [("w", (0, 64), "F32", WEIGHTS)], "shape"),
        ({}, [("w", (5, 64), "F32", WEIGHTS)], "neither"),
        ({}, [("w", (6, 64), "F32", WEIGHTS.astype(float))], "neither"),
        ({}, [("w", (6, 64), "Q4_0", np.zeros(5, np.uint8))], "neither"),
        ({}, [("w", (6, 64), "Q4_0", lambda: [np.zeros(108, np.uint8), np.zeros(107, np.uint8)])], "215 bytes .* 216"),
        ({}, [("w" * 64, (6, 64), "F32", WEIGHTS)], "name"),
        ({}, [("", (6, 64), "F32", WEIGHTS)], "name"),
        ({}, [("w", (6, 64), "F32", WEIGHTS)] * 2, "same name"),
        ({}, [("w", (6, 256), "Q4_K", np.zeros((6, 256), np.float32))], "no quantizer"),
    ],
)
def test_what_gguf_cannot_hold_is_refused_and_nothing_is_left(path, metadata, tensors, says):
    with pytest.raises(ValueError, match=says):
        write_gguf(path, metadata, tensors)
    assert list(path.parent.iterdir()) == []


def test_exact_kinds_are_kept_and_checked(path):
    write_gguf(
        path,
        {"a": 3, "b": [1.0, 2.0], "c": [], "d": [1, 0], "e": []},
        [],
        {"a": "uint8", "b": "float64[]", "c": "string[]", "d": "bool[]", "e": "int16[]"},
    )
    with GGUF.open(path) as file:
        assert file.kinds == {"a": "uint8", "b": "float64[]", "c": "string[]", "d": "bool[]", "e": "int16[]"}
        assert file.metadata["d"].dtype == bool and file.metadata["c"] == []
        assert file.metadata["e"].dtype == np.int16 and file.metadata["e"].shape == (0,)
    for value, kind in ((256, "uint8"), (-1, "uint32"), (2**31, "int32"), ([300], "uint8[]"), ([2], "bool[]")):
        with pytest.raises(ValueError, match="k:"):
            write_gguf(path, {"k": value}, [], {"k": kind})


def test_a_full_disk_leaves_the_old_file(path, monkeypatch):
    write_gguf(path, {"k": "old"}, [])
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer_module, "_write_tensor", full)
    with pytest.raises(UserError, match="No space left"):
        write_gguf(path, {"k": "new"}, [("w", (6, 64), "F32", WEIGHTS)])
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1
    with pytest.raises(UserError, match="cannot be written"):
        write_gguf(path.parent / "absent" / "f.gguf", {}, [])
