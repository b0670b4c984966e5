"""Buffers are used again and never shared; workers split and fail cleanly; the count agrees with the pool."""

import numpy as np
import pytest

from anytune.engine.numpy.engine import NumpyEngine
from anytune.engine.numpy.pool import Pool
from anytune.engine.numpy.workers import Workers, balance, share


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

    def work(number):
        if number == 2:
            raise ValueError("broken")

    for _ in range(3):
        with pytest.raises(ValueError, match="broken"):
            workers.run(work)
    workers.run(lambda number: None)
    workers.close()


@pytest.mark.parametrize("count, of, step", [(10, 3, 1), (576, 2, 32), (33, 4, 32), (0, 2, 1), (5, 8, 1)])
def test_shares_join_up(count, of, step):
    spans = [share(count, i, of, step) for i in range(of)]
    assert spans[0][0] == 0 and spans[-1][1] == count
    for (_, high), (low, end) in zip(spans, spans[1:]):
        assert high == low <= end and (low % step == 0 or low == count)


def test_balance_uses_every_task_once_and_evenly():
    costs = [float(c) for c in np.random.default_rng(0).integers(1, 50, 40)]
    lists = balance(costs, 3)
    assert sorted(i for part in lists for i in part) == list(range(40))
    loads = [sum(costs[i] for i in part) for part in lists]
    assert max(loads) - min(loads) <= max(costs)
