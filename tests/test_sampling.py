"""Choosing from the likeliest tokens alone is choosing from all."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anytune.engine.composed import largest
from anytune.errors import UserError
from anytune.generation.sampling import Sampling, reach, sample, sample_listed


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_k=st.integers(0, 60),
    top_p=st.sampled_from([1.0, 0.9, 0.4]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    penalty=st.sampled_from([1.0, 1.1, 3.0, 0.8]),
    last=st.integers(-1, 70),
)
def test_a_list_of_the_likeliest_gives_the_same_token(seed, temperature, top_k, top_p, min_p, penalty, last):
    random = np.random.default_rng(seed)
    how = Sampling(temperature, top_k, top_p, min_p, penalty, last, seed)
    logits = (3 * random.standard_normal(300)).astype(np.float32)
    recent, most = random.integers(0, 300, 80).tolist(), reach(how)
    recent += np.argsort(-logits)[: int(random.integers(0, 9))].tolist()  # likely ones too
    if most is None:
        assert (top_k == 0 and temperature > 0) or penalty < 1 or (penalty > 1 and last < 0)
        return
    ids, values = largest(logits[None], most)
    for stream in range(3):
        want = sample(logits, recent, how, how.generator(stream))
        assert sample_listed(ids[0], values[0], recent, how, how.generator(stream)) == want


@pytest.mark.parametrize("most", [1, 5])
def test_logits_that_are_no_numbers_are_told(most):
    logits = np.zeros((1, 50), np.float32)
    logits[0, 17] = np.nan
    ids, values = largest(logits, most)
    assert ids[0, 0] == 17
    with pytest.raises(UserError, match="damaged"):
        sample_listed(ids[0], values[0], [], Sampling(top_k=most), np.random.default_rng(0))
