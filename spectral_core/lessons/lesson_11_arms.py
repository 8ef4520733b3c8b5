"""Lesson 11, Jacobians at scale: the ways to κ that its signature result compares."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from spectral_core.jacobian import AttentionJacobian
from spectral_core.lessons.lesson_11 import Head, autodiff_jacobian, lanczos, products

__all__ = ["ENTRIES", "signature_arms"]

Arm = Callable[[Head], float]
STEPS = 40  # of Lanczos and of inverse iteration


def signature_arms(inverse: Callable[[Tensor, Tensor, int], Tensor]) -> dict[str, Arm]:
    """Name -> κ(J) of a head by that way, ∞ where the way says that it has no answer; `inverse` is exercise 4."""
    return {
        "dense SVD": _dense,
        "Gram": lambda head: _eigenvalues(AttentionJacobian(*head).gram()),
        "Gram, float32": lambda head: _eigenvalues(AttentionJacobian(*head).gram().float()),
        "Lanczos alone": lambda head: _lanczos(AttentionJacobian(*head)),
        "by hand": lambda head: _by_hand(AttentionJacobian(*head), inverse),
        "“cholesky”": lambda head: _package(AttentionJacobian(*head), "cholesky"),
        "“auto”": lambda head: _package(AttentionJacobian(*head), "auto"),
    }


def _dense(head: Head) -> float:
    values = torch.linalg.svdvals(autodiff_jacobian(*head))
    return float(values[0] / values[-1])


def _eigenvalues(gram: Tensor) -> float:
    values = torch.linalg.eigvalsh(gram)
    return float((values[-1] / values[0]).sqrt()) if float(values[0]) > 0 else math.inf


def _start(jac: AttentionJacobian, seed: int) -> Tensor:
    return torch.randn(jac.shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _lanczos(jac: AttentionJacobian) -> float:
    values = lanczos(*products(jac), _start(jac, 0), STEPS)[-1][0]
    return float(values[0] / values[-1])


def _by_hand(jac: AttentionJacobian, inverse: Callable[[Tensor, Tensor, int], Tensor]) -> float:
    factor, info = torch.linalg.cholesky_ex(jac.gram())
    if int(info):
        return math.inf
    forward, backward = products(jac)
    largest = lanczos(forward, backward, _start(jac, 0), STEPS)[-1][0][0]
    return float(largest / backward(inverse(factor, _start(jac, 1), STEPS)).norm())


def _package(jac: AttentionJacobian, method: str) -> float:
    found = jac.condition_number(method=method)
    return float(found) if bool(found.converged) else math.inf


ENTRIES = ()
