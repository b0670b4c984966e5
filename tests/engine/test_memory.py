"""Buffers are used again and never shared; workers split and fail cleanly; the count agrees with the pool."""

import os
import threading
import time

import numpy as np
import pytest

from anytune.engine.numpy.engine import NumpyEngine
from anytune.engine.numpy.pool import Pool
from anytune.engine.numpy.workers import PIECES, Workers, balance, piece, pieces


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


def test_a_worker_that_has_not_begun_is_not_waited_for():
    workers, done, let_go = Workers(2), [], threading.Event()
    held = threading.Thread(target=workers.run, args=([lambda _: let_go.wait(60)] * 2,))
    held.start()  # its caller and the one helper both wait
    try:
        other = threading.Thread(target=workers.run, args=([done.append] * 7,))
        other.start()
        other.join(30)
        assert done == [0] * 7 and not other.is_alive()
        other = threading.Thread(target=workers.chains, args=([[done.append] * 2] * 3,))
        other.start()
        other.join(30)
        assert done == [0] * 13 and not other.is_alive()
    finally:
        let_go.set()
        held.join()
        workers.close()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be given a core here")
def test_workers_for_all_cores_have_one_each_and_the_caller_gets_all_back():
    cores = os.sched_getaffinity(0)
    for count, alone in ((len(cores), len(cores) > 1), (len(cores) + 1, False)):
        seen, together = {}, threading.Barrier(count)

        def look(number, seen=seen, together=together):
            together.wait(60)  # so that every worker takes one
            seen[number] = os.sched_getaffinity(0)

        workers = Workers(count)
        workers.run([look] * count)
        assert len(seen) == count and os.sched_getaffinity(0) == cores
        if alone:
            assert sorted(seen.values(), key=min) == [{core} for core in sorted(cores)]
        else:
            assert all(found == cores for found in seen.values())
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
