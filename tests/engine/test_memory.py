"""Buffers are used again and never shared; workers split and fail cleanly; the count agrees with the pool."""

import gc
import time

import numpy as np
import pytest

from anytune.engine import devices
from anytune.engine.devices import engine_for
from anytune.engine.numpy.engine import NumpyEngine
from anytune.engine.numpy.pool import Pool
from anytune.engine.numpy.workers import PIECES, Workers, balance, piece, pieces
from anytune.errors import UserError


def test_a_buffer_returns_when_its_last_view_is_gone():
    pool = Pool()
    first = pool.take(64)[:32].reshape(4, 8)
    part = first[1:, 2:]
    address = first.base.ctypes.data
    del first
    assert pool.take(64)[:].base.ctypes.data != address, "a view still looks at the buffer"
    del part
    assert pool.take(64)[:].base.ctypes.data == address
    assert pool.bytes == 2 * 64 * 4


def test_live_arrays_never_share_memory():
    engine, random = NumpyEngine(1, compiled=False), np.random.default_rng(0)
    engine.row_padding, live = 3, []
    for number in range(300):
        if live and random.random() < 0.5:
            array, value = live.pop(int(random.integers(len(live))))
            assert (array == value).all()
        array = engine.array(int(random.integers(1, 5)), int(random.choice([4, 8])))
        array[...] = number
        live.append((array, number))
    assert engine.pool.bytes < 300 * 5 * 11 * 4 / 2


@pytest.mark.parametrize("count", [1, 2, 5])
def test_workers_cover_every_row_once(count):
    workers, seen = Workers(count), np.zeros(101, int)

    def rows(low, high):
        seen[low:high] += 1

    workers.rows(101, rows)
    assert (seen == 1).all()
    workers.close()


def test_a_worker_s_error_reaches_the_caller_and_the_rest_go_on():
    workers = Workers(3)

    def broken(number):
        raise ValueError("broken")

    done = []
    jobs = [done.append] * 5
    for run in (lambda: workers.run([*jobs, broken, *jobs]), lambda: workers.chains([jobs, [broken, *jobs], jobs])):
        for _ in range(3):
            with pytest.raises(ValueError, match="broken"):
                run()
    done.clear()
    workers.run(jobs)
    workers.chains([jobs, [], jobs])
    assert len(done) == 15
    workers.close()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_jobs_of_a_chain_follow_each_other(count):
    workers, random = Workers(count), np.random.default_rng(0)
    lengths = random.integers(0, 9, 12).tolist()
    seen, busy = [[] for _ in lengths], [False] * len(lengths)

    def job(chain, place, seconds):
        def run(number):
            assert not busy[chain] and 0 <= number < count
            busy[chain] = True
            time.sleep(seconds)
            seen[chain].append(place)
            busy[chain] = False

        return run

    workers.chains([[job(c, i, 1e-3 * random.random()) for i in range(n)] for c, n in enumerate(lengths)])
    assert seen == [list(range(n)) for n in lengths]
    workers.close()


@pytest.mark.parametrize("count, most, step", [(10, 3, 1), (576, 96, 32), (33, 4, 32), (0, 2, 1), (260, 33, 16)])
def test_pieces_join_up(count, most, step):
    spans = list(pieces(0, count, most, step))
    assert [low for low, _ in spans] + [count] == [0] * (not count) + [0] * bool(count) + [high for _, high in spans]
    assert all(low % step == 0 and 0 < high - low <= max(most, step) for low, high in spans)
    assert len(list(pieces(0, 10_000, piece(10_000, 1)))) == PIECES and piece(100, 64, 16) == 112
    assert len(list(pieces(0, 960, piece(960, 96, 16), 16))) == 8  # a power of two, not 10


def test_balance_uses_every_task_once_and_evenly():
    costs = [float(c) for c in np.random.default_rng(0).integers(1, 50, 40)]
    lists = balance(costs, 3)
    assert sorted(i for part in lists for i in part) == list(range(40))
    loads = [sum(costs[i] for i in part) for part in lists]
    assert max(loads) - min(loads) <= max(costs)


def test_modules_of_an_engine_load_without_cycle_collection(monkeypatch):
    during = []
    monkeypatch.setattr(devices, "choose", lambda: during.append(gc.isenabled()) or "numpy")
    engine_for("auto", 1)
    assert during == [False] and gc.isenabled()
    with pytest.raises(UserError):
        engine_for("abacus")
    assert gc.isenabled()
    gc.disable()
    try:
        engine_for("auto", 1)
        assert not gc.isenabled()
    finally:
        gc.enable()
