"""Lanczos and Davidson on operators with prescribed singular values, against those values."""

import numpy as np
import pytest
import torch

from spectral_core.lanczos import largest, orthonormalize, random_block, smallest

F64 = torch.float64
EPS = np.finfo(float).eps
SPECTRA = {
    "gaussian": None,
    "geometric 1e2": np.geomspace(1, 1e-2, 60),
    "geometric 1e6": np.geomspace(1, 1e-6, 60),
    "repeated ends": np.r_[np.full(7, 3.0), np.linspace(2, 1, 46), np.full(7, 0.5)],
    "all equal": np.ones(60),
    "one far below": np.r_[np.linspace(2, 1, 59), 1e-6],
    "one far above": np.r_[1e6, np.linspace(2, 1, 59)],
    "tiny": 1e-120 * np.geomspace(1, 1e-3, 60),
    "huge": 1e120 * np.geomspace(1, 1e-3, 60),
}


def matrix(spectrum, n=90, seed=0):
    rng = np.random.default_rng(seed)
    if spectrum is None:
        return torch.from_numpy(rng.standard_normal((60, n)))
    u, v = (np.linalg.qr(rng.standard_normal((k, 60)))[0] for k in (60, n))
    return torch.from_numpy(u * spectrum @ v.T)


def products(a):
    return (lambda v: a @ v), (lambda u: a.mT @ u)


def factor(a):
    gram = a @ a.mT
    shift = 64 * EPS * gram.diagonal(dim1=-2, dim2=-1).sum(-1)
    return torch.linalg.cholesky(gram + shift[..., None, None] * torch.eye(len(a), dtype=F64))


@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("name", SPECTRA)
def test_prescribed_spectra(name, k):
    a = matrix(SPECTRA[name])
    true = np.linalg.svd(a.numpy(), compute_uv=False)
    start = random_block((), 60, k + 3, a.device)
    high = largest(*products(a), start, k)
    np.testing.assert_allclose(high.values.numpy(), true[:k], rtol=1e-9)
    assert (high.residual <= 1e-9).all()
    if name in ("tiny", "huge"):  # their Gram matrix leaves float64: callers scale first
        return
    low = smallest(*products(a), factor(a), start, k, top=high.values[0])
    np.testing.assert_allclose(low.values.numpy(), true[::-1][:k], rtol=1e-8)
    # the residual promises a singular value this near
    for value, residual in zip(low.values.tolist(), low.residual.tolist(), strict=True):
        assert np.abs(true / value - 1).min() <= residual + 1e-9


@pytest.mark.parametrize("rank", [0, 1, 5, 30])
def test_rank_deficient_operators(rank):
    spectrum = np.r_[np.linspace(2, 1, rank), np.zeros(60 - rank)] if rank else np.zeros(60)
    a = matrix(spectrum)
    high = largest(*products(a), random_block((), 60, 4, a.device), 3)
    np.testing.assert_allclose(high.values.numpy(), np.r_[spectrum[:3]], atol=1e-13, rtol=1e-12)
    low = smallest(*products(a), torch.linalg.cholesky(a @ a.mT + 1e-13 * torch.eye(60, dtype=F64)),
                   random_block((), 60, 4, a.device), 2, top=high.values[0])
    assert (low.values < 1e-12).all()


@pytest.mark.parametrize("m", [1, 2, 3, 5, 7])
def test_operators_smaller_than_a_block(m):
    a = torch.from_numpy(np.random.default_rng(m).standard_normal((m, m + 2)))
    true = np.linalg.svd(a.numpy(), compute_uv=False)
    start = random_block((), m, 4, a.device)
    high = largest(*products(a), start, 1)
    low = smallest(*products(a), factor(a), start, 1, top=high.values[0])
    assert high.values.item() == pytest.approx(true[0], rel=1e-12)
    assert low.values.item() == pytest.approx(true[-1], rel=1e-10)


def test_a_batch_is_its_members():
    a = torch.stack([matrix(SPECTRA[name]) for name in ("gaussian", "geometric 1e2", "repeated ends")])
    start = random_block((3,), 60, 4, a.device)
    high = largest(*products(a), start, 2)
    factors = torch.stack([factor(member) for member in a])
    low = smallest(*products(a), factors, start, 2, top=high.values[..., 0])
    for i in range(3):
        true = np.linalg.svd(a[i].numpy(), compute_uv=False)
        np.testing.assert_allclose(high.values[i].numpy(), true[:2], rtol=1e-9)
        np.testing.assert_allclose(low.values[i].numpy(), true[::-1][:2], rtol=1e-8)


def test_a_bad_factor_costs_steps_and_is_admitted_not_hidden():
    a = matrix(SPECTRA["geometric 1e2"])
    true = np.linalg.svd(a.numpy(), compute_uv=False)
    rough = torch.linalg.cholesky(a @ a.mT + 1e-4 * torch.eye(60, dtype=F64))  # λ_min itself
    start = random_block((), 60, 4, a.device)
    good = smallest(*products(a), rough, start, 1, top=torch.tensor(true[0]))
    assert good.values.item() == pytest.approx(true[-1], rel=1e-8)
    stopped = smallest(*products(a), torch.eye(60, dtype=F64), start, 1, top=torch.tensor(true[0]), max_steps=1)
    assert stopped.values.item() > true[-1]  # a Rayleigh quotient is an upper bound
    assert stopped.residual.item() > 1e-2


@pytest.mark.parametrize("kind", ["full", "dependent", "zero", "inside"])
def test_orthonormalize_completes_exhausted_blocks(kind):
    rng = np.random.default_rng(0)
    basis = torch.linalg.qr(torch.from_numpy(rng.standard_normal((20, 6)))).Q
    block = torch.from_numpy(rng.standard_normal((20, 4)))
    if kind == "dependent":
        block[:, 2:] = block[:, :2]
    elif kind == "zero":
        block.zero_()
    elif kind == "inside":
        block = basis[:, :4].clone()
    new = orthonormalize(block, basis, 4)
    torch.testing.assert_close(new.mT @ new, torch.eye(4, dtype=F64), atol=1e-13, rtol=0)
    assert (basis.mT @ new).abs().max() < 1e-13
    rest = block - basis @ (basis.mT @ block)
    torch.testing.assert_close(new @ (new.mT @ rest), rest, atol=1e-12, rtol=0)
