"""The quintics against what makes them best: equioscillation, and a linear program that knows nothing of Remez."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from spectral_core.minimax import TAYLOR, best_quintic


def errors(quintic, low, high, points=20001):
    x = np.linspace(low, high, points)
    return 1 - (quintic.a * x + quintic.b * x**3 + quintic.c * x**5)


@given(low=st.floats(1e-8, 0.99), ratio=st.floats(1.002, 50))
def test_the_error_alternates_four_times(low, ratio):
    high = low * ratio
    quintic = best_quintic(low, high)
    e = errors(quintic, low, high)
    assert np.abs(e).max() <= quintic.error * (1 + 1e-6) + 1e-13
    if ratio > 1.1:  # four extrema of the same size and alternating sign: the mark of the best (Chebyshev)
        peaks = e[np.abs(e) > quintic.error * (1 - 1e-4)]
        assert 1 + np.count_nonzero(np.diff(np.sign(peaks))) == 4


@pytest.mark.parametrize("low", [1e-3, 0.05, 0.3, 0.8])
def test_no_quintic_is_better(low):
    x = np.linspace(low, 1, 400)
    powers = np.stack([x, x**3, x**5], axis=1)
    one = np.ones((len(x), 1))
    a = np.block([[powers, -one], [-powers, -one]])
    b = np.concatenate([np.ones(len(x)), -np.ones(len(x))])
    best = linprog([0, 0, 0, 1], A_ub=a, b_ub=b, bounds=[(None, None)] * 3 + [(0, None)])
    assert best_quintic(low, 1.0).error == pytest.approx(best.fun, rel=1e-3)


def test_composed_they_reach_one_as_published():
    # arXiv 2505.16932: from 1e-3 six of them leave an error near 1e-3, and seven one below 1e-6
    low, high, left = 1e-3, 1.0, []
    for _ in range(7):
        quintic = best_quintic(low, high)
        low, high = 1 - quintic.error, 1 + quintic.error
        left.append(quintic.error)
    assert left == sorted(left, reverse=True)
    assert 5e-4 < left[5] < 2e-3
    assert left[6] < 1e-6


def test_next_to_one_it_is_the_taylor_polynomial():
    near = best_quintic(0.9999, 1.0001)
    assert near[:3] == pytest.approx(TAYLOR[:3], rel=1e-6)
    assert best_quintic(2.0, 2.0)(2.0) == pytest.approx(1, abs=1e-14)
    h = 1e-3  # 1 − p(1 − h) = (5/2) h³ + O(h⁴): no lower power is left
    assert 1 - TAYLOR(1 - h) == pytest.approx(2.5 * h**3, rel=1e-2)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_bad_intervals_are_refused(low, high):
    with pytest.raises(ValueError, match=r"best_quintic: expected 0 < low <= high, got"):
        best_quintic(low, high)
