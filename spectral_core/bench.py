"""What this package's operations cost on this machine, each beside the usual way to the same number, turn by turn.

A minute's look, the same everywhere; the full tables with their statistics are made by `make bench`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_core._checks import check_number
from spectral_core.attention import SpectralConditionedAttention
from spectral_core.conditioning import condition
from spectral_core.corrections import IdentityCorrection
from spectral_core.jacobian import AttentionJacobian
from spectral_core.monitor import SpectralMonitor
from spectral_core.polar import polar_factor
from spectral_core.polar_correction import PolarCorrection

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """Median seconds of ours and of the usual way.

    Attributes:
        what: is compared; ours, usual: names of the two ways.
        ours_s, usual_s: median seconds.
    """

    what: str
    ours: str
    usual: str
    ours_s: float
    usual_s: float

    @property
    def ratio(self) -> float:
        """Ours in units of the usual way; below 1 is faster."""
        return self.ours_s / self.usual_s


def compare(*, repeats: int = 5, device: str | torch.device = "cpu", seed: int = 0) -> Iterator[Comparison]:
    """Time each pair `repeats` times in turn on `device`, and give the medians as they come.

    Raises:
        ValueError: `repeats` below 1.
    """
    check_number(repeats, "repeats", minimum=1)
    place = torch.device(device)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype).to(place)

    def pair(what: str, ours: tuple[str, Callable], usual: tuple[str, Callable]) -> Comparison:
        seconds = _in_turns([ours[1], usual[1]], int(repeats), place)
        return Comparison(what, ours[0], usual[0], *seconds)

    x, *weights = draw(24, 96, dtype=torch.float64), *(draw(96, 24, dtype=torch.float64) / 10 for _ in range(3))
    yield pair(
        "exact κ(J) of a head, n = 24, D = 96, d = 24",
        ("closed form", lambda: AttentionJacobian(x, *weights).condition_number()),
        ("autodiff and SVD", lambda: torch.linalg.svdvals(_autodiff(x, *weights))),
    )
    w = draw(512, 512)
    yield pair(
        "polar factor, 512 × 512, float32",
        ("matrix products", lambda: polar_factor(w)), ("SVD", lambda: _by_svd(w)),
    )
    tokens = draw(8, 64, 256)
    for name, fix in {"λI": IdentityCorrection(1.0), "polar": PolarCorrection()}.items():
        torch.manual_seed(seed)
        plain = SpectralConditionedAttention(256, 8).to(place)
        corrected = SpectralConditionedAttention(256, 8).to(place)
        condition(corrected, fix)
        yield pair(
            f"training step of attention, 8 × 64 tokens of 256, {name}",
            ("conditioned", lambda m=corrected: _step(m, tokens)), ("plain", lambda m=plain: _step(m, tokens)),
        )
    model = SpectralConditionedAttention(768, 12).to(place)
    monitor = SpectralMonitor(model, every=1)
    rows = [layer.weight.detach() for layer in (model.query, model.key, model.value)]
    yield pair(
        "spectra of all heads of one layer, D = 768, 12 heads",
        ("monitor", lambda: monitor.step(0)),
        ("whole-matrix SVD", lambda: [torch.linalg.svdvals(r.double()) for r in rows]),
    )


def _in_turns(ways: list[Callable], repeats: int, device: torch.device) -> list[float]:
    taken: list[list[float]] = [[] for _ in ways]
    for turn in range(repeats + 1):
        for way, seconds in zip(ways, taken, strict=True):
            _wait(device)
            began = time.perf_counter()
            way()
            _wait(device)
            if turn:  # the first turn warms up
                seconds.append(time.perf_counter() - began)
    return [statistics.median(seconds) for seconds in taken]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _step(model: torch.nn.Module, tokens: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model(tokens).square().mean().backward()


def _by_svd(w: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(w, full_matrices=False)
    return u @ vh


def _autodiff(x: Tensor, *weights: Tensor) -> Tensor:
    """J by reverse mode, (n d, 3 D d)."""

    def head(w_q: Tensor, w_k: Tensor, w_v: Tensor) -> Tensor:
        logits = (x @ w_q) @ (x @ w_k).mT / w_q.shape[-1] ** 0.5
        return (logits.softmax(-1) @ (x @ w_v)).flatten()

    blocks = torch.func.jacrev(head, argnums=(0, 1, 2))(*weights)
    return torch.cat([block.flatten(1) for block in blocks], 1)
