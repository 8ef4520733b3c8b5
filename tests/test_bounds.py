"""Both sides of Theorem 3.4 and saturation, each factor recomputed with NumPy and explicit loops."""

import math

import numpy as np
import pytest
import torch

from spectral_core import AttentionJacobian, jacobian_bound, saturation, suggest_lambda

FACTORS = ("kappa_x", "kappa_lambda", "kappa_wq", "kappa_wk", "kappa_wv", "kappa_softmax")


def problem(n, dim, d_k, d_v, *, seed=0, lead=()):
    g = torch.Generator().manual_seed(seed)
    shapes = ((n, dim), (dim, d_k), (dim, d_k), (dim, d_v))
    x, *weights = (torch.randn(*lead, *shape, dtype=torch.float64, generator=g) for shape in shapes)
    return [x, *(w / dim**0.5 for w in weights)]  # not saturated: Λ keeps a gap above its zero values


def attention_map(x, w_q, w_k, scale):
    """P by loops."""
    q, k, n = x @ w_q, x @ w_k, len(x)
    p = np.zeros((n, n))
    for i in range(n):
        e = np.exp([scale * float(q[i] @ k[j]) for j in range(n)])
        p[i] = e / e.sum()
    return p


def effective(m, tolerance=1e-11):
    """κ⁺ and rank."""
    s = np.linalg.svd(m, compute_uv=False)
    kept = s[s > tolerance * s[0]]
    return kept[0] / kept[-1], len(kept)


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("sizes", [(5, 8, 3, 4), (7, 4, 2, 3), (6, 6, 6, 6)])
def test_every_factor_and_both_sides(sizes, scale):
    head = problem(*sizes)
    x, w_q, w_k, w_v = (w.numpy() for w in head)
    bound = jacobian_bound(*head, scale=scale)
    n, _, d_k, _ = sizes
    p = attention_map(x, w_q, w_k, d_k**-0.5 if scale is None else scale)
    blocks = np.zeros((n * n, n * n))  # Λ whole: n blocks diag(p_i) − p_i p_iᵀ
    for i in range(n):
        blocks[i * n : (i + 1) * n, i * n : (i + 1) * n] = np.diag(p[i]) - np.outer(p[i], p[i])
    kappa = dict(zip(FACTORS, (effective(m)[0] for m in (x, blocks, w_q, w_k, w_v, p)), strict=True))
    for name, value in kappa.items():
        assert getattr(bound, name).item() == pytest.approx(value, rel=1e-8), name
    left, rank = effective(AttentionJacobian(*head, scale=scale).dense().numpy())
    k_x, k_lambda, k_q, k_k, k_v, k_p = (kappa[name] for name in FACTORS)
    right = k_x**3 * k_lambda * k_v * (k_q + k_k) + k_x * k_p
    assert bound.left.item() == pytest.approx(left, rel=1e-8)
    assert bound.right.item() == pytest.approx(right, rel=1e-8)
    assert bound.rank.item() == rank
    assert bound.holds.item() == (left <= right)
    assert bound.holds
    assert "effective" in bound.convention


def test_the_literal_inequality_fails_for_perfectly_conditioned_factors():
    """Theory sheet, part 4: X with orthonormal rows, W with orthonormal columns, n=8, D=16, d=8, s=1/√8."""
    verdicts = []
    for seed in range(15):
        x, *weights = problem(8, 16, 8, 8, seed=seed)
        x = torch.linalg.qr(x.mT).Q.mT
        weights = [torch.linalg.qr(w).Q for w in weights]
        bound = jacobian_bound(x, *weights)
        for name in ("kappa_x", "kappa_wq", "kappa_wk", "kappa_wv"):
            assert getattr(bound, name).item() == pytest.approx(1, rel=1e-12)
        verdicts.append(bound.holds.item())
        assert verdicts[-1] == (bound.left.item() <= bound.right.item())
        values = np.linalg.svd(AttentionJacobian(x, *weights).dense().numpy(), compute_uv=False)
        assert bound.left.item() == pytest.approx(values[0] / values[-1], rel=1e-8)
    assert 0 < sum(verdicts) < 15


def test_leading_dimensions_are_slices():
    head = problem(4, 6, 2, 3, lead=(2, 3))
    bound = jacobian_bound(*head)
    for index in np.ndindex(2, 3):
        single = jacobian_bound(*(w[index] for w in head))
        for name in (*FACTORS, "left", "right", "holds", "rank"):
            torch.testing.assert_close(getattr(bound, name)[index], getattr(single, name), rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [None, 0.3, 2.0])
def test_saturation_is_the_mean_of_the_row_maxima(scale):
    x, w_q, w_k, _ = problem(6, 5, 3, 2)
    p = attention_map(x.numpy(), w_q.numpy(), w_k.numpy(), 3**-0.5 if scale is None else scale)
    expected = sum(max(row) for row in p) / 6
    assert saturation(x, w_q, w_k, scale=scale).item() == pytest.approx(expected, rel=1e-12)
    batched = saturation(x.expand(2, 6, 5), w_q.expand(3, 1, 5, 3), w_k, scale=scale)
    np.testing.assert_allclose(batched.numpy(), np.full((3, 2), expected), rtol=1e-12)


def test_saturation_runs_from_one_over_n_to_one():
    x, w_q, w_k, _ = problem(7, 5, 3, 2)
    assert saturation(x, 0 * w_q, w_k).item() == pytest.approx(1 / 7)
    assert saturation(x, w_q, w_k, scale=0.0).item() == pytest.approx(1 / 7)
    assert saturation(x, 1e6 * w_q, w_k).item() == pytest.approx(1)
    rising = [saturation(x, lam * torch.eye(5), lam * torch.eye(5)).item() for lam in (0.1, 0.5, 1, 2, 10)]
    assert rising == sorted(rising)
    assert rising[-1] > 0.99


def test_a_saturated_map_makes_the_bound_infinite_and_so_empty():
    x, _, _, w_v = problem(4, 6, 6, 3)
    bound = jacobian_bound(x, 1e4 * torch.eye(6), 1e4 * torch.eye(6), w_v)
    assert bound.kappa_lambda.item() == math.inf
    assert bound.right.item() == math.inf
    assert bound.holds
    assert math.isfinite(bound.left.item())
    assert saturation(x, 1e4 * torch.eye(6), 1e4 * torch.eye(6)).item() == 1


@pytest.mark.parametrize("function", [jacobian_bound, lambda x, q, k, v, **kw: saturation(x, q, k, **kw)])
@pytest.mark.parametrize(("index", "bad", "message"), [
    (0, torch.ones(4), r"x: expected at least 2 dimensions, got shape \(4,\)"),
    (0, torch.full((4, 6), math.nan), r"x: expected finite entries, got 24 inf or nan of 24"),
    (1, torch.ones(6, 2).long(), r"w_q: expected a real floating-point tensor, got dtype torch.int64"),
    (1, torch.ones(2, 6), r"w_q: expected 6 rows \(the width D of x\), got shape \(2, 6\)"),
    (2, torch.ones(6, 5), r"expected w_q and w_k of the same width d_k, got 2 and 5"),
    (2, None, r"w_k: expected a torch.Tensor, got NoneType"),
])
def test_bad_arguments_are_refused(function, index, bad, message):
    head = problem(4, 6, 2, 3)
    head[index] = bad
    with pytest.raises(ValueError, match=message):
        function(*head)


@pytest.mark.parametrize("function", [jacobian_bound, lambda x, q, k, v, **kw: saturation(x, q, k, **kw)])
def test_bad_scale_and_leading_dimensions_are_refused(function):
    head = problem(4, 6, 2, 3)
    with pytest.raises(ValueError, match=r"scale: expected a finite number, got inf"):
        function(*head, scale=math.inf)
    head[0], head[1] = head[0].expand(2, 4, 6), head[1].expand(3, 6, 2)
    with pytest.raises(ValueError, match=r"leading dimensions that broadcast, got \{'x': \(2, 4, 6\)"):
        function(*head)


@pytest.mark.parametrize("kind", ["causal", "mask"])
def test_causal_and_masked_heads(kind):
    head, n = problem(5, 8, 3, 4), 5
    allowed = torch.ones(n, n).tril() > 0
    settings = {"is_causal": True}
    if kind == "mask":
        allowed = (torch.rand(n, n, generator=torch.Generator().manual_seed(1)) > 0.4) | torch.eye(n, dtype=torch.bool)
        settings = {"mask": allowed}
    bound = jacobian_bound(*head, **settings)
    x, w_q, w_k, _ = head
    logits = (3**-0.5 * (x @ w_q) @ (x @ w_k).T).masked_fill(~allowed, -math.inf)
    p = torch.softmax(logits, -1).numpy()
    assert bound.kappa_softmax.item() == pytest.approx(effective(p)[0], rel=1e-8)
    left, rank = effective(AttentionJacobian(*head, **settings).dense().numpy())
    assert bound.left.item() == pytest.approx(left, rel=1e-8)
    assert bound.rank.item() == rank
    assert bound.left.item() != pytest.approx(jacobian_bound(*head).left.item(), rel=1e-3)


def test_by_the_full_convention_the_bound_is_always_infinite():
    for sizes in ((5, 8, 3, 4), (12, 3, 2, 2)):
        head = problem(*sizes)
        bound, plain = jacobian_bound(*head, convention="full"), jacobian_bound(*head)
        assert bound.kappa_lambda.item() == math.inf  # each block of Λ sends the constant vector to zero
        assert bound.right.item() == math.inf
        assert bound.holds
        assert "full" in bound.convention
        values = np.linalg.svd(AttentionJacobian(*head).dense().numpy(), compute_uv=False)
        if sizes[0] > sizes[1]:  # the gauge: rank deficient
            assert bound.left.item() == math.inf
            assert bound.kappa_x.item() == pytest.approx(plain.kappa_x.item())
        else:
            assert bound.left.item() == pytest.approx(values[0] / values[-1], rel=1e-8)
        assert bound.rank.item() == plain.rank.item()


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match=r"convention: expected one of \('effective', 'full'\), got 'both'"):
        jacobian_bound(*problem(4, 6, 2, 3), convention="both")


@pytest.mark.parametrize(("n", "d_k", "expected"), [(197, 64, 0.8127), (50, 16, 0.9889), (2, 1, 0.8326)])
def test_the_closed_form_limit_of_lambda(n, d_k, expected):
    assert suggest_lambda(n, d_k) == pytest.approx(expected, abs=1e-4)
    assert suggest_lambda(n, d_k) ** 2 * d_k**0.5 == pytest.approx(math.log(n), rel=1e-12)


@pytest.mark.parametrize(("n", "dim", "d"), [(50, 64, 16), (197, 384, 64), (32, 256, 32)])
def test_the_limit_is_where_saturation_sets_in(n, dim, d):
    g = torch.Generator().manual_seed(0)
    x = torch.nn.functional.layer_norm(torch.randn(n, dim, generator=g, dtype=torch.float64), (dim,))
    w_q, w_k = (0.02 * torch.randn(dim, d, generator=g, dtype=torch.float64) for _ in range(2))
    eye = torch.eye(dim, d, dtype=torch.float64)


    def at(share):
        shift = share * suggest_lambda(n, d) * eye
        return float(saturation(x, w_q + shift, w_k + shift))

    assert at(0.4) < 0.15
    assert 0.1 < at(1.0) < 0.8
    assert at(1.6) > 0.85


@pytest.mark.parametrize(("n", "d_k", "message"), [
    (1, 16, r"n: expected a number >= 2, got 1"), (50, 0, r"d_k: expected a number >= 1, got 0"),
    (50.5, 16, r"n: expected a whole number, got 50.5"), ("50", 16, r"n: expected a real number, got '50'"),
    (50, math.inf, r"d_k: expected a finite number, got inf"),
])
def test_sizes_that_are_none_are_refused(n, d_k, message):
    with pytest.raises(ValueError, match=message):
        suggest_lambda(n, d_k)
