"""The reader on mutated and on arbitrary input: it refuses in one sentence or gives a sound file."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.gguf import BLOCKS, GGUF, write_gguf
from anytune.gguf.header import SCALARS
from tests.gguf import forge, fuzz_reader

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=12)
ARRAYS = {kind: np.dtype("<" + code) for kind, code in SCALARS.items()} | {"bool": np.dtype(bool)}


def test_mutated_files():
    results = fuzz_reader.run(cases=4000, seed=20260)
    assert results["accepted"] > 200 and results["refused"] > 2000, "the mutations are too mild or too wild"


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_arbitrary_bytes_after_the_magic(data):
    fuzz_reader.check(b"GGUF\3\0\0\0" + data)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_arbitrary_counts(n_tensors, n_values, version):
    data = forge.file(
        [forge.value("k", "uint8", b"\1")],
        [forge.tensor()],
        bytes(64),
        n_tensors=n_tensors,
        n_values=n_values,
        version=version,
    )
    if (n_tensors, n_values) != (1, 1):
        with pytest.raises(UserError):
            GGUF.from_bytes(data)


@given(
    dims=st.lists(st.one_of(st.integers(0, 64), st.integers(0, 2**64 - 1)), min_size=1, max_size=4),
    kind=st.integers(0, 45),
    offset=st.one_of(st.sampled_from([0, 32, 64]), st.integers(0, 2**64 - 1)),
)
@settings(max_examples=500, deadline=None)
def test_arbitrary_tensor_records(dims, kind, offset):
    """Whatever is accepted fits its file (fuzz_reader.check looks)."""
    fuzz_reader.check(forge.file([], [forge.tensor("w", tuple(dims), kind, offset)], bytes(4096)))


@st.composite
def values(draw):
    """(metadata, kinds) of every type, extremes included."""
    metadata, kinds = {}, {}
    for key in draw(st.lists(NAMES, unique=True, max_size=6)):
        kind = draw(st.sampled_from([*ARRAYS, "string"]))
        if draw(st.booleans()):
            kinds[key] = kind + "[]"
            if kind == "string":
                metadata[key] = draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=8), max_size=5))
            else:
                raw = draw(st.binary(max_size=40))
                dtype = ARRAYS[kind]
                raw = raw[: len(raw) // dtype.itemsize * dtype.itemsize]
                array = np.frombuffer(raw, "u1") % 2 == 1 if kind == "bool" else np.frombuffer(raw, dtype)
                metadata[key] = array
        else:
            kinds[key] = kind
            if kind == "string":
                metadata[key] = draw(st.text(st.characters(codec="utf-8")))
            elif kind == "bool":
                metadata[key] = draw(st.booleans())
            elif kind.startswith("float"):
                metadata[key] = draw(st.floats(width=int(kind[5:])))
            else:
                info = np.iinfo(ARRAYS[kind])
                metadata[key] = draw(st.integers(int(info.min), int(info.max)))
    return metadata, kinds


@given(values(), st.data())
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read(tmp_path_factory, content, data):
    """Any metadata and any tensors come back equal, with the same types, and the bytes come back too."""
    metadata, kinds = content
    tensors = []
    for name in data.draw(st.lists(NAMES, unique=True, max_size=4)):
        block = data.draw(st.sampled_from(list(BLOCKS.values())))
        width = block.block_size * data.draw(st.integers(1, 3))
        shape = (*data.draw(st.lists(st.integers(1, 3), max_size=3)), width)
        size = int(np.prod(shape)) // block.block_size * block.type_size
        raw = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
        tensors.append((name, shape, block.name, raw))
    path = tmp_path_factory.mktemp("gguf") / "f.gguf"
    write_gguf(path, metadata, [(*rest, lambda raw=raw: raw) for *rest, raw in tensors], kinds)
    with GGUF.open(path) as gguf:
        assert gguf.kinds == kinds and list(gguf.metadata) == list(metadata)
        for key, value in metadata.items():
            np.testing.assert_array_equal(gguf.metadata[key], value)
            assert type(gguf.metadata[key]) is type(value)
        assert list(gguf.tensors) == [name for name, *_ in tensors]
        for name, shape, kind, raw in tensors:
            t = gguf.tensors[name]
            assert (t.shape, t.type.name) == (shape, kind) and t.offset % gguf.alignment == 0
            assert np.array_equal(gguf.blocks(name).ravel(), raw)
        again = path.with_name("again.gguf")
        write_gguf(
            again,
            gguf.metadata,
            [(t.name, t.shape, t.type.name, gguf.blocks(t.name)) for t in gguf.tensors.values()],
            gguf.kinds,
        )
    assert again.read_bytes() == path.read_bytes()
