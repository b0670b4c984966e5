"""Figures of answers: by hand, by definition, and what must hold of any answers."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anytune.evaluation.statistics import _large, classification, mcnemar

LABELS = ("yes", "no", "maybe")


def test_figures_by_hand():
    facts = classification([0, 0, 0, 0, 1, 1, 2], [0, 0, 1, -1, 1, 0, 0], LABELS)
    assert facts["confusion"] == [[2, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 0]]
    assert facts["accuracy"] == pytest.approx(3 / 7) and facts["right"] == 3 and facts["unanswered"] == 1
    assert facts["classes"]["yes"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 4}
    assert facts["classes"]["no"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert facts["classes"]["maybe"] == {"precision": 0, "recall": 0, "f1": 0, "support": 1}
    assert facts["macro_f1"] == pytest.approx(1 / 3)


answers = st.lists(st.tuples(st.integers(0, 2), st.integers(-1, 2)), min_size=1, max_size=60)


@given(answers)
def test_what_holds_of_any_answers(pairs):
    truth, said = zip(*pairs, strict=True)
    facts = classification(truth, said, LABELS)
    low, high = facts["interval"]
    assert 0 <= low <= facts["accuracy"] + 1e-12 and facts["accuracy"] <= high + 1e-12 and high <= 1 + 1e-12
    assert np.sum(facts["confusion"]) == len(pairs)
    for number, label in enumerate(LABELS):
        c = facts["classes"][label]
        p, r = c["precision"], c["recall"]
        assert c["f1"] == pytest.approx(2 * p * r / (p + r) if p + r else 0)
        assert c["support"] == truth.count(number)
    assert classification(truth, truth, LABELS)["accuracy"] == 1


@pytest.mark.parametrize(("truth", "said"), [([], []), ([0], [0, 1])])
def test_no_figures_of_nothing(truth, said):
    with pytest.raises(ValueError):
        classification(truth, said, LABELS)


def test_mcnemar_by_hand():
    """5 against 15 of 20: 2 P(X <= 5) = 0.0414 (Binomial(20, 1/2), as textbooks print it)."""
    first = [True] * 5 + [False] * 15 + [True] * 30
    second = [False] * 5 + [True] * 15 + [True] * 30
    facts = mcnemar(first, second)
    assert (facts["only_first"], facts["only_second"]) == (5, 15)
    assert facts["p_value"] == pytest.approx(0.0414, abs=5e-5)
    assert facts["difference"] == pytest.approx(0.2)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_mcnemar_is_exact_and_symmetric(pairs):
    first, second = zip(*pairs, strict=True)
    facts, back = mcnemar(first, second), mcnemar(second, first)
    assert facts["p_value"] == back["p_value"] and facts["difference"] == -back["difference"]
    n, k = facts["only_first"] + facts["only_second"], min(facts["only_first"], facts["only_second"])
    exact = min(Fraction(1), 2 * sum(Fraction(comb(n, i), 2**n) for i in range(k + 1)))
    assert facts["p_value"] == pytest.approx(float(exact))
    assert _large(facts["only_first"], facts["only_second"]) == pytest.approx(float(exact))


def test_mcnemar_of_very_many():
    first, second = [True] * 1900 + [False] * 2100, [False] * 1900 + [True] * 2100
    assert mcnemar(first, second)["p_value"] == pytest.approx(0.00165, rel=0.02)  # z = 199/sqrt(4000), with continuity
