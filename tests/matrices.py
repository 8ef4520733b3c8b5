"""What tests of spectra share: matrices with prescribed singular values, and proof that no SVD is called."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch


def prescribed(values, m, n, seed=0):
    """U diag(values) Vᵀ with its factors, float64."""
    rng = np.random.default_rng(seed)
    u, v = (np.linalg.qr(rng.standard_normal((k, len(values))))[0] for k in (m, n))
    return torch.from_numpy(u * np.asarray(values) @ v.T), u, v


@contextmanager
def svd_forbidden(monkeypatch):
    """Inside, torch's SVDs raise; NumPy's is left to the test itself."""
    with monkeypatch.context() as patch:
        for owner, name in ((torch.linalg, "svd"), (torch.linalg, "svdvals"), (torch, "svd")):
            patch.setattr(owner, name, lambda *a, **k: pytest.fail("an SVD was called"))
        yield
