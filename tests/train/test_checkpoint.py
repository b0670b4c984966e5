"""Checkpoints: whole or absent, verified, bounded; a full disk never harms the one before."""

import errno
import hashlib
import json
import os
import random
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.train import checkpoint as ckpt
from anytune.train.tensors import Broken, read_tensors, write_tensors
from tests.support.require import need
from tests.train.fake import FakeTrainee
from tests.train.jobs import full_disk, job, operations
from tests.train.kill_harness import same_end

INFO = {
    "position": {"epoch": 0, "epoch_step": 3},
    "best": None,
    "waited": 0,
    "pending": None,
    "run_id": "x",
    "run": "toy",
    "identity": {"settings": {"lr": 0.1}},
    "engine": {"threads": 2},
}


def state(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "p.a": rng.normal(size=(3, 5)).astype(np.float32),
        "m.a": rng.normal(size=7).astype(np.float32),
        "empty": np.zeros((0, 4), np.float32),
    }


def test_safetensors_reads_ours_and_we_read_theirs(tmp_path):
    numpy_io = need("safetensors.numpy")
    arrays = dict(
        state(),
        i=np.arange(6, dtype=np.int64).reshape(2, 3),
        t=np.array([True, False]),
        transposed=np.arange(12, dtype=np.float32).reshape(3, 4).T,
    )
    write_tensors(tmp_path / "ours", arrays)
    for name, array in numpy_io.load_file(tmp_path / "ours").items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype and array.shape == arrays[name].shape
    numpy_io.save_file({k: np.ascontiguousarray(v) for k, v in arrays.items()}, tmp_path / "theirs")
    ours = read_tensors(tmp_path / "theirs")
    assert set(ours) == set(arrays)
    for name, array in ours.items():
        np.testing.assert_array_equal(array, arrays[name])
        assert not array.flags.writeable or array.size == 0


def test_a_save_streams(tmp_path):
    """No copy of the state in memory while it is written."""
    source = np.memmap(tmp_path / "source", np.float32, "w+", shape=(64 << 20) // 4)
    tracemalloc.start()
    write_tensors(tmp_path / "t", {"a": source})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


def saved(folder: Path) -> Path:
    (folder / "b").write_bytes(b"the best adapter" * 9)
    return ckpt.save(folder, 3, state(), dict(INFO, best={"step": 2, "val_loss": 0.5}), folder / "b")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("good"))


def test_the_best_adapter_is_copied_where_files_have_no_links(good, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    made = ckpt.load(saved(tmp_path))
    assert made.best.stat().st_nlink == 1 and made.best.read_bytes() == ckpt.load(good).best.read_bytes()


def test_a_file_of_another_size_is_told_so(good, tmp_path):
    """Before it is hashed: one that is cut short may be gigabytes."""
    folder = shutil.copytree(good, tmp_path / good.name)
    with (folder / ckpt.STATE).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(Broken, match="does not have the size"):
        ckpt.load(folder)


def test_round_trip(good):
    found = ckpt.load(good)
    assert found.step == 3 and found.best.read_bytes() == b"the best adapter" * 9
    assert found.info["identity"] == INFO["identity"]
    for name, array in found.tensors().items():
        np.testing.assert_array_equal(array, state()[name])


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_found(good, tmp_path_factory, data):
    """Flip, cut or extend any file of a checkpoint: load refuses, or gives the very same content."""
    folder = tmp_path_factory.mktemp("hurt") / good.name
    shutil.copytree(good, folder)
    victim = folder / data.draw(st.sampled_from(sorted(p.name for p in good.iterdir())))
    raw = bytearray(victim.read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "extend", "remove"]))
    at = data.draw(st.integers(0, len(raw) - 1))
    if kind == "flip":
        raw[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del raw[at:]
    elif kind == "extend":
        raw += b"\0" * data.draw(st.integers(1, 9))
    if kind == "remove":
        victim.unlink()
    else:
        victim.write_bytes(raw)
    try:
        found = ckpt.load(folder)
    except Broken:
        return
    assert victim.name == ckpt.MANIFEST  # only its white space can change without meaning
    assert found.info == ckpt.load(good).info
    shutil.rmtree(folder.parent)


def rewrite(folder, header=None, info=None, manifest=None):
    """A checkpoint whose manifest agrees with hostile content."""
    if header is not None:
        (folder / ckpt.STATE).write_bytes(header)
    if info is not None:
        (folder / ckpt.INFO).write_text(info if isinstance(info, str) else json.dumps(info))
    names = [ckpt.STATE, ckpt.INFO] + ([ckpt.BEST] if (folder / ckpt.BEST).exists() else [])
    rows = {
        n: {"size": (folder / n).stat().st_size, "sha256": hashlib.sha256((folder / n).read_bytes()).hexdigest()}
        for n in names
    }
    (folder / ckpt.MANIFEST).write_text(json.dumps(manifest or {"format": 1, "files": rows}))


def header(table, data=b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


HOSTILE_STATES = [
    b"",
    b"\1",
    (2**63).to_bytes(8, "little"),
    (2**40).to_bytes(8, "little") + b"{}",
    header(b"[" * 100_000),
    header(b"[]"),
    header({"a": 3}),
    header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}),
    header({"a": {"dtype": "F32", "shape": [2**31, 2**31, 4], "data_offsets": [0, 0]}}),
    header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}),
    header({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"\0" * 4),
    header({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, b"\0" * 8),
    header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, b"\0" * 8),
    header(
        {
            "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        },
        b"\0" * 4,
    ),
    header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 8),
    header({"a": {"dtype": "F32", "shape": [1] * 100, "data_offsets": [0, 4]}}, b"\0" * 4),
    header({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    header({"a": {"dtype": "F32", "shape": "1", "data_offsets": "04"}}, b"\0" * 4),
    header({"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}, b"\0" * 4),
]


@pytest.mark.parametrize("raw", HOSTILE_STATES, ids=range(len(HOSTILE_STATES)))
def test_hostile_states_are_refused_before_anything_is_allocated(tmp_path, raw):
    path = ckpt.save(tmp_path, 3, state(), INFO, None)
    rewrite(path, header=raw)
    tracemalloc.start()
    with pytest.raises(Broken):
        ckpt.load(path).tensors()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_bytes_crash_the_reader(tmp_path_factory, raw, length):
    path = tmp_path_factory.mktemp("raw") / "t"
    path.write_bytes(length.to_bytes(8, "little") + raw)
    try:
        read_tensors(path)
    except Broken:
        pass


@pytest.mark.parametrize(
    "info",
    [
        "[]",
        "{",
        "[" * 100_000,
        dict(INFO),
        dict(INFO, step=-1),
        dict(INFO, step=1e9),
        dict(INFO, step=True),
        dict(INFO, step=3, best={"step": 1}),
        dict(INFO, step=3, best={"step": 1, "val_loss": 0.5}),
        dict(INFO, step=3, position=[1]),
        dict(INFO, step=3, run=7),
        dict(INFO, step=3, identity=None),
        dict(INFO, step=3, pending="x"),
        dict(INFO, step=3, waited=2**60),
    ],
    ids=range(14),
)
def test_hostile_tables_are_refused(tmp_path, info):
    path = ckpt.save(tmp_path, 3, state(), INFO, None)
    rewrite(path, info=info)
    with pytest.raises(Broken):
        ckpt.load(path)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"../../../etc/passwd": {"size": 1, "sha256": ""}},
        {ckpt.STATE: {}, ckpt.INFO: {}},
        {ckpt.STATE: None, ckpt.INFO: None},
        {ckpt.STATE: 1, ckpt.INFO: 2, "extra": 3},
        [1],
    ],
    ids=range(6),
)
def test_hostile_manifests_are_refused(tmp_path, files):
    path = ckpt.save(tmp_path, 3, state(), INFO, None)
    rewrite(path, manifest={"format": 1, "files": files})
    with pytest.raises(Broken):
        ckpt.load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs mkfifo")
def test_links_and_pipes_are_not_followed(tmp_path):
    path = ckpt.save(tmp_path, 3, state(), INFO, None)
    (path / ckpt.STATE).rename(tmp_path / "moved")
    (path / ckpt.STATE).symlink_to(tmp_path / "moved")
    with pytest.raises(Broken):
        ckpt.load(path)
    (path / ckpt.STATE).unlink()
    os.mkfifo(path / ckpt.STATE)
    with pytest.raises(Broken):
        ckpt.load(path)


def test_the_last_good_ones_are_kept(tmp_path):
    for step in (2, 4, 6, 8):
        ckpt.prune(tmp_path, 2, ckpt.save(tmp_path, step, state(step), INFO, None))
    assert [ckpt.load(p).step for p in ckpt.listing(tmp_path)] == [8, 6]
    (ckpt.listing(tmp_path)[0] / ckpt.STATE).write_bytes(b"torn")
    ckpt.prune(tmp_path, 2, ckpt.save(tmp_path, 10, state(10), INFO, None))
    assert [ckpt.load(p).step for p in ckpt.listing(tmp_path)] == [10, 6]  # the torn one does not count
    ckpt.prune(tmp_path, 2, ckpt.save(tmp_path, 7, state(7), INFO, None))
    assert [ckpt.load(p).step for p in ckpt.listing(tmp_path)] == [7, 6]  # 10 is a future given up


@pytest.mark.parametrize("name", ["write", "fsync", "rename", "mkdir", "open"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_save_that_fails_anywhere_harms_nothing(tmp_path, name, code):
    first = ckpt.save(tmp_path, 2, state(2), INFO, None)
    ckpt.save(tmp_path, 4, state(0), INFO, None)
    for after in range(1, 30):
        fault = full_disk(after, (name,), code=code)
        try:
            with operations(fault):
                ckpt.save(tmp_path, 4, state(4), INFO, None)
        except OSError as error:
            assert error.errno == code
        else:
            break
        assert ckpt.load(first).step == 2
        found = ckpt.newest(tmp_path, lambda text: None)
        assert found.step in (2, 4)
    else:
        raise AssertionError("the fault never ended")
    assert after > 1
    found = ckpt.load(tmp_path / "checkpoint_step_00000004").tensors()
    np.testing.assert_array_equal(found["p.a"], state(4)["p.a"])


@pytest.mark.parametrize("seed", range(6))
def test_a_run_outlives_a_full_disk(tmp_path, seed):
    """The disk fills up in the middle and has room again later: same end; the warning names the step kept."""
    job(tmp_path / "calm")
    said, rng = [], random.Random(seed)
    trainee, count, fault = FakeTrainee(), 0, full_disk(rng.randint(5, 60), ("write", "fsync", "rename"))

    def micro():
        nonlocal count
        count += 1
        if count == 25:
            fault.heal()

    trainee.on_micro = micro
    with operations(fault):
        result, trainer = job(tmp_path / "run", trainee=trainee, say=said.append)
    assert result.stopped == "finished"
    problem = same_end(tmp_path / "calm", Path(result.run_dir), "out.gguf")
    assert problem is None
    assert ckpt.load(result.checkpoint).step == result.total_steps


def test_a_disk_that_stays_full_keeps_the_last_checkpoint_and_says_so(tmp_path):
    said = []
    trainee, count, fault = FakeTrainee(), 0, full_disk(1, ("write",))

    def micro():
        nonlocal count
        count += 1

    trainee.on_micro = micro
    with operations(lambda name: fault(name) if count > 10 else None):
        result, _ = job(tmp_path / "run", trainee=trainee, say=said.append)
    assert any("cannot be written" in text and "is kept" in text for text in said), said
    assert ckpt.load(result.checkpoint).step < result.step


def test_differences_name_flags():
    then = {"base": "a" * 64, "data": "b", "settings": {"lr": 1e-4, "seed": 1}, "trainee": {"rank": 8}}
    now = {"base": "c" * 64, "data": "b", "settings": {"lr": 2e-4, "seed": 1}, "trainee": {"rank": 16}}
    text = "; ".join(ckpt.differences(then, now))
    assert "base model" in text and "--learning-rate" in text and "--lora-rank (8 then, 16 now)" in text
    assert "--seed" not in text and ckpt.differences(then, then) == []
    assert ckpt.differences({}, now) and ckpt.differences({"settings": 3, "trainee": []}, now)


def test_long_lists_are_shown_from_where_they_differ():
    names = [f"blk.{i}.attn_q.weight" for i in range(9)]
    for other in (names[:-1], [*names, "output.weight"], [*names[:4], "output.weight"]):
        (text,) = ckpt.differences({"trainee": {"modules": ",".join(names)}}, {"trainee": {"modules": ",".join(other)}})
        then, now = text.removeprefix("--lora-modules (").removesuffix(" now)").split(" then, ")
        assert then != now and len(text) < 160


def test_two_processes_cannot_share_a_run(tmp_path):
    need("fcntl")
    from anytune.train.run_folder import lock

    with lock(tmp_path):
        with pytest.raises(UserError, match="in use"):
            with lock(tmp_path):
                pass
    with lock(tmp_path):
        pass
