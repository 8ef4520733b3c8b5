"""Paired gains, Holm and rank correlations against SciPy, formulas and numbers worked by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from spectral_core.experiments.statistics import fill, holm, paired_gain, rank_correlation, worst

NEW = {0: 0.91, 1: 0.93, 2: 0.90, 3: 0.95, 9: 0.1}
OLD = {3: 0.92, 0: 0.90, 1: 0.89, 2: 0.91, 7: 0.2}
GAINS = np.array([0.01, 0.04, -0.01, 0.03])  # seeds 0 to 3; seeds 7 and 9 have no partner


def test_gain_over_common_seeds_by_formula():
    found = paired_gain(NEW, OLD, higher_is_better=True)
    mean, half = GAINS.mean(), 3.182446305 * GAINS.std(ddof=1) / 2  # t of 3 degrees of freedom at 0.975
    assert found.count == 4
    assert found.mean == pytest.approx(mean)
    assert found.t == pytest.approx((mean - half, mean + half))
    assert found.p == pytest.approx(stats.ttest_rel([NEW[s] for s in range(4)], [OLD[s] for s in range(4)]).pvalue)


def test_bootstrap_equals_scipys_up_to_chance_and_is_seeded():
    found = paired_gain(NEW, OLD, higher_is_better=True, seed=3)
    expected = stats.bootstrap((GAINS,), np.mean, n_resamples=10_000, method="percentile", rng=1).confidence_interval
    assert found.bootstrap == pytest.approx((expected.low, expected.high), abs=0.003)
    assert found == paired_gain(NEW, OLD, higher_is_better=True, seed=3)


def test_positive_is_better_both_ways():
    high, low = (paired_gain(NEW, OLD, higher_is_better=h) for h in (True, False))
    assert high.mean == pytest.approx(-low.mean)
    assert high.t == pytest.approx((-low.t[1], -low.t[0]))
    sure = {s: v + 1 for s, v in NEW.items()}
    assert paired_gain(sure, OLD, higher_is_better=True).wins
    assert paired_gain(sure, OLD, higher_is_better=False).loses
    assert not high.wins
    assert not high.loses


def test_without_two_pairs_or_spread_there_is_no_interval():
    none, one = (paired_gain(NEW, old, higher_is_better=True) for old in ({5: 1.0}, {0: 0.5}))
    assert (none.count, one.count) == (0, 1)
    assert math.isnan(none.mean)
    assert one.mean == pytest.approx(0.41)
    assert none.t is one.t is none.bootstrap is one.p is None
    assert "no interval" in one.note
    equal = paired_gain({0: 0.3, 1: 0.5}, {0: 0.1, 1: 0.3}, higher_is_better=True)
    assert equal.t is equal.p is None
    assert not equal.wins
    assert paired_gain({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}, higher_is_better=True).p == 1.0


def test_diverged_runs_must_be_filled():
    with pytest.raises(ValueError, match="expected finite numbers, got NaN or infinity; fill"):
        paired_gain({0: math.nan, 1: 1.0}, {0: 1.0, 1: 1.0}, higher_is_better=True)
    values = {0: math.nan, 1: 0.4, 2: math.inf, 3: 0.9}
    assert worst(values.values(), higher_is_better=True) == 0.4
    assert worst(values.values(), higher_is_better=False) == 0.9
    assert fill(values, 0.4) == {0: 0.4, 1: 0.4, 2: 0.4, 3: 0.9}
    assert math.isnan(worst([math.nan], higher_is_better=True))


def test_holm_by_hand():
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04, and never falling
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "none": None, "d": 0.005})
    assert found.pop("none") is None
    assert found == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1.0, "b": 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize("ties", [False, True])
def test_spearman_equals_scipys(ties):
    random = np.random.default_rng(0)
    x, y = random.normal(size=40), random.normal(size=40)
    x, y = (np.round(v) if ties else v for v in (x + y, y))
    assert rank_correlation(x, y).rho == pytest.approx(stats.spearmanr(x, y).statistic)


def test_spearmans_interval_equals_a_bootstrap_that_ranks_every_resample():
    random = np.random.default_rng(1)
    x = random.normal(size=30)
    y = x + random.normal(size=30)
    picks = random.integers(30, size=(4000, 30))
    every = [np.corrcoef(stats.rankdata(x[i]), stats.rankdata(y[i]))[0, 1] for i in picks]
    found = rank_correlation(x, y)
    assert found.interval == pytest.approx(np.percentile(every, [2.5, 97.5]), abs=0.03)
    assert found == rank_correlation(x, y)


def test_seeds_of_one_arm_do_not_count_as_independent():
    random = np.random.default_rng(2)
    x = np.repeat(random.normal(size=8), 5)
    y = np.repeat(random.normal(size=8), 5) + 0.01 * random.normal(size=40)
    alone, grouped = rank_correlation(x, y), rank_correlation(x, y, [i // 5 for i in range(40)])
    assert (alone.rho, grouped.units) == (grouped.rho, 8)
    width = [c.interval[1] - c.interval[0] for c in (alone, grouped)]
    assert width[1] > 1.5 * width[0]


def test_infinity_is_the_highest_rank_and_constants_have_no_correlation():
    assert rank_correlation([1, 2, 3, math.inf], [1, 2, 3, 4]).rho == pytest.approx(1.0)
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]).rho is None
    assert rank_correlation([1, 2], [1, 2]).rho is None
    assert rank_correlation([], []).count == 0
    with pytest.raises(ValueError, match="expected numbers, got NaN; leave those points out"):
        rank_correlation([1, math.nan, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="of one length, got 2, 1, 2"):
        rank_correlation([1, 2], [1])
