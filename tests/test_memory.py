"""Amounts of memory: what people write, and what this process holds."""

import sys

import pytest

from anytune import memory
from anytune.errors import UserError


@pytest.mark.parametrize(
    "text, value",
    [("300MiB", 300 << 20), ("2GiB", 2 << 30), ("1.5GB", 1_500_000_000), ("500000000", 500_000_000), (" 8 ki ", 8192)],
)
def test_amounts(text, value):
    assert memory.parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "MiB", "1 potato", "-3GiB", "1e9", "1..5G"])
def test_what_is_no_amount(text):
    with pytest.raises(UserError, match="--memory"):
        memory.parse_bytes(text)


def test_the_process_is_as_large_as_what_it_touches():
    before = memory.process_bytes()
    block = bytearray(b"x") * (64 << 20)
    assert memory.process_bytes() - before > 48 << 20
    assert memory.peak_bytes() >= memory.process_bytes() > 0
    assert memory.available_bytes() > 0
    del block


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and takes such pages")
def test_code_that_was_let_go_still_runs():
    import numpy as np

    ranges = memory._clean_code()
    assert ranges and all(low < high for low, high in ranges)
    memory.page_out_code()
    a = np.random.default_rng(0).random((50, 50))
    np.testing.assert_allclose(np.linalg.inv(a) @ a, np.eye(50), atol=1e-8)
