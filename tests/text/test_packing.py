"""Packing keeps every example whole, exactly once, and no target ever crosses a boundary."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.errors import UserError
from anytune.text.dataset import Builder
from anytune.text.packing import MicroBatch, make_batch, pack


def random_dataset(lengths, seed=0, line_of=lambda i: i + 1):
    rng, builder = np.random.default_rng(seed), Builder()
    for i, n in enumerate(lengths):
        builder.add(rng.integers(0, 1000, n).tolist(), (rng.random(n) < 0.5).tolist(), line_of(i))
    return builder.finish(["data.jsonl"])


lengths_lists = st.lists(st.integers(1, 64), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(lengths_lists, st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_holds_every_example_once_and_fits(lengths, seed, epoch):
    data = random_dataset(lengths, seed)
    bins = pack(data, 64, seed, epoch)
    assert sorted(i for b in bins for i in b) == list(range(len(lengths)))
    assert all(0 < sum(lengths[i] for i in b) <= 64 for b in bins)
    assert bins == pack(data, 64, seed, epoch)
    # Best fit opens a new micro-batch only if no other has room: no two can be at most half full.
    assert sum(sum(lengths[i] for i in b) <= 32 for b in bins) <= 1


def test_seed_and_epoch_change_the_order():
    data = random_dataset(np.random.default_rng(1).integers(1, 60, 200))
    orders = [pack(data, 64, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for k, a in enumerate(orders) for b in orders[:k])


def test_micro_batches_are_nearly_full():
    lengths = np.random.default_rng(2).integers(5, 200, 2000)
    bins = pack(random_dataset(lengths), 512, 3, 0)
    assert lengths.sum() / (len(bins) * 512) > 0.96


@settings(max_examples=60, deadline=None)
@given(lengths_lists, st.integers(0, 1000))
def test_batches_keep_tokens_positions_and_targets_inside_examples(lengths, seed):
    data = random_dataset(lengths, seed)
    for indexes in pack(data, 64, seed, 0):
        batch = make_batch(data, indexes)
        assert [batch.ids.dtype, batch.positions.dtype, batch.starts.dtype, batch.targets.dtype] == [np.int32] * 4
        assert batch.starts[0] == 0 and batch.starts[-1] == len(batch.ids) <= 64
        for k, i in enumerate(indexes):
            lo, hi = batch.starts[k], batch.starts[k + 1]
            ids, loss = data.example(i)
            assert batch.ids[lo:hi].tolist() == ids.tolist()
            assert batch.positions[lo:hi].tolist() == list(range(hi - lo))
            wanted = [int(t) if on else -1 for t, on in zip(ids[1:], loss[1:], strict=True)] + [-1]
            assert batch.targets[lo:hi].tolist() == wanted
        assert batch.loss_tokens == sum(int(data.example(i)[1][1:].sum()) for i in indexes)


def test_an_example_longer_than_the_micro_batch_is_named():
    data = random_dataset([3, 70, 4])
    with pytest.raises(UserError, match="line 2: this example has 70 tokens"):
        pack(data, 64, 0, 0)


def test_one_token_examples_have_no_target():
    batch = MicroBatch.of([([5], [True]), ([6], [True])])
    assert batch.loss_tokens == 0 and batch.starts.tolist() == [0, 1, 2]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=60), st.floats(0.05, 0.5), st.integers(0, 99))
def test_split_is_a_partition_by_line(lengths, fraction, seed):
    data = random_dataset(lengths, seed, line_of=lambda i: i // 2 + 1)
    train, val = data.split(fraction, seed)
    assert len(train) + len(val) == len(data) and len(train) and len(val)
    assert not set(train.lines.tolist()) & set(val.lines.tolist())
    assert train.tokens + val.tokens == data.tokens
    again = data.split(fraction, seed)
    assert again[1].fingerprint == val.fingerprint != train.fingerprint


def test_equal_lines_stay_on_one_side():
    builder = Builder()
    for i in range(20):
        builder.add([1, 2, 3, i % 3], [False] + [True] * 3, i + 1)
    train, val = builder.finish().split(0.2, 0)
    assert not {tuple(train.example(i)[0]) for i in range(len(train))} & {
        tuple(val.example(i)[0]) for i in range(len(val))
    }


def test_split_refuses_what_cannot_be_split():
    with pytest.raises(UserError, match="distinct"):
        random_dataset([5]).split(0.1, 0)
    with pytest.raises(UserError, match="between 0 and 1"):
        random_dataset([5, 6]).split(1.5, 0)


def test_fingerprint_sees_tokens_mask_and_boundaries():
    def of(*examples):
        builder = Builder()
        for ids, loss in examples:
            builder.add(ids, loss, 1)
        return builder.finish().fingerprint

    base = of(([1, 2, 3], [0, 1, 1]), ([4], [0]))
    assert base == of(([1, 2, 3], [1, 1, 1]), ([4], [0]))  # a first token never has loss
    assert (
        len(
            {
                base,
                of(([1, 2, 3], [0, 1, 0]), ([4], [0])),
                of(([1, 2], [0, 1]), ([3, 4], [0, 0])),
                of(([1, 2, 3, 4], [0, 1, 1, 0])),
            }
        )
        == 4
    )
