"""Singular values moved to where they are wanted, as a differentiable function of W."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spectral_core._checks import check_choice, check_number, check_tensor, to_float64
from spectral_core.corrections import Correction
from spectral_core.spectrum import default_rtol

__all__ = ["SpectrumTarget"]

GRADIENTS = ("exact", "straight-through")


class SpectrumTarget(Correction):
    """Clamp the singular values to [σ_min, σ_max], or raise them until σ_max / σ_min ≤ κ. By an SVD in float64.

    With a ceiling `sigma_max` first and then the floor max(`sigma_min`, ceiling value / `kappa`), the result has
    condition number at most `kappa`. (`spectral_clip` does the same from matrix products, without a gradient.)

    Args:
        sigma_min: floor, ≥ 0, or None.
        sigma_max: ceiling, > 0, or None.
        kappa: largest allowed condition number, ≥ 1, or None.
        gradient: "exact", the derivative of the map (repeated singular values included); it turns the vectors of a
            singular value σ that was raised to α by a factor up to α/σ, without limit as σ → 0, and W must have full
            rank where values are to be raised. Or "straight-through": C is a constant in the backward pass, as in the
            paper, and zero singular values are raised along directions that the SVD happens to give.
        preserve: see `Correction`; it changes the scale after clamping, so it keeps κ but not the two limits.

    Raises:
        ValueError: no target given, σ_min > σ_max, κ < 1, a value that is not a finite number, or an unknown
            `gradient`; in use, a rank-deficient W with a floor above zero and the exact gradient.

    >>> SpectrumTarget(kappa=2)(torch.diag(torch.tensor([4.0, 1.0])))
    tensor([[4., 0.],
            [0., 2.]])
    """

    def __init__(
        self,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        kappa: float | None = None,
        *,
        gradient: str = "exact",
        preserve: str | None = None,
    ) -> None:
        super().__init__(preserve=preserve)
        if sigma_min is None and sigma_max is None and kappa is None:
            raise ValueError("SpectrumTarget: expected at least one of sigma_min, sigma_max and kappa, got none")
        check_choice(gradient, "gradient", GRADIENTS)
        self.gradient = gradient
        self.sigma_min = None if sigma_min is None else check_number(sigma_min, "sigma_min", minimum=0.0)
        self.sigma_max = (
            None if sigma_max is None else check_number(sigma_max, "sigma_max", minimum=0.0, exclusive=True)
        )
        self.kappa = None if kappa is None else check_number(kappa, "kappa", minimum=1.0)
        if self.sigma_min is not None and self.sigma_max is not None and self.sigma_min > self.sigma_max:
            raise ValueError(f"expected sigma_min <= sigma_max, got {self.sigma_min:g} > {self.sigma_max:g}")

    def target(self, s: Tensor) -> Tensor:
        """Singular values (…, k), descending -> their targets (…, k)."""
        out = s if self.sigma_max is None else s.clamp(max=self.sigma_max)
        if self.kappa is not None:
            out = torch.maximum(out, out[..., :1] / self.kappa)
        return out if self.sigma_min is None else out.clamp(min=self.sigma_min)

    def correct(self, w: Tensor) -> Tensor:
        check_tensor(w, "w")
        if self.gradient == "exact":
            return _SpectralMap.apply(w, self)
        u, s, vh = torch.linalg.svd(to_float64(w.detach()), full_matrices=False)
        c = (u * (self.target(s) - s).unsqueeze(-2)) @ vh
        return w + c.to(device=w.device, dtype=w.dtype)

    def check_rank(self, s: Tensor, shape: torch.Size, dtype: torch.dtype) -> None:
        """Refuse zero singular values that would have to be raised: the derivative does not exist there."""
        zero = default_rtol(shape[-2], shape[-1], dtype) * s[..., :1]
        rank = (s > zero).sum(-1).amin()
        if rank < s.shape[-1] and bool((self.target(s) > zero)[..., -1].any()):
            floor = {"sigma_min": self.sigma_min, "kappa": self.kappa}
            given = ", ".join(f"{name}={value:g}" for name, value in floor.items() if value)
            raise ValueError(
                f"SpectrumTarget({given}): expected W of full rank {s.shape[-1]}, got rank {int(rank)}: a zero "
                'singular value has no direction to be raised along; use gradient="straight-through", which takes '
                "any, or PolarCorrection"
            )


class _SpectralMap(torch.autograd.Function):
    """F(W) = U f(Σ) Vᵀ and its derivative by divided differences (Daleckii-Krein, for singular values).

    With K = Uᵀ dW V, split into a symmetric and a skew part,
    Uᵀ dF V = (f_i − f_j)/(σ_i − σ_j) ∘ sym K + (f_i + f_j)/(σ_i + σ_j) ∘ skew K, and f_i/σ_i outside the thin
    factors; f_i'(σ_i) takes the place of the first quotient where σ_i = σ_j. The map is its own adjoint, but for the
    dependence of the floor σ_1/κ on σ_1.
    """

    @staticmethod
    def forward(ctx, w: Tensor, target: SpectrumTarget) -> Tensor:
        u, s, vh = torch.linalg.svd(to_float64(w.detach()), full_matrices=False)
        target.check_rank(s, w.shape, w.dtype)
        f = target.target(s)
        slope = (f == s).to(s.dtype)  # f_i' at fixed floor: 1 inside the limits, 0 at them
        ctx.kappa = target.kappa
        ctx.raised = (f > s) & (f > (target.sigma_min or 0.0)) if target.kappa is not None else f < 0
        ceiling = torch.inf if target.sigma_max is None else target.sigma_max
        ctx.free = s[..., 0] <= ceiling  # whether σ_1 moves the floor σ_1/κ
        ctx.save_for_backward(u, s, vh, f, slope)
        return ((u * f.unsqueeze(-2)) @ vh).to(device=w.device, dtype=w.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        u, s, vh, f, slope = ctx.saved_tensors
        g = to_float64(grad).to(u.device)
        k = u.mT @ g @ vh.mT
        rows, columns = s.unsqueeze(-1), s.unsqueeze(-2)
        tiny = torch.finfo(s.dtype).eps * s[..., :1, None].clamp(min=torch.finfo(s.dtype).tiny)
        apart = (rows - columns).abs() > 1e6 * tiny
        differences = (f.unsqueeze(-1) - f.unsqueeze(-2)) / torch.where(apart, rows - columns, 1)
        differences = torch.where(apart, differences, (slope.unsqueeze(-1) + slope.unsqueeze(-2)) / 2)
        means = (f.unsqueeze(-1) + f.unsqueeze(-2)) / (rows + columns).clamp(min=tiny)
        inner = differences * (k + k.mT) / 2 + means * (k - k.mT) / 2
        if ctx.kappa is not None:
            floor = (k.diagonal(dim1=-2, dim2=-1) * ctx.raised).sum(-1) / ctx.kappa
            inner[..., 0, 0] += floor * ctx.free
        out = u @ inner @ vh
        ratio = f / s.clamp(min=tiny.squeeze(-1))
        if u.shape[-2] > u.shape[-1]:
            out = out + ((g - u @ (u.mT @ g)) @ vh.mT * ratio.unsqueeze(-2)) @ vh
        elif vh.shape[-1] > vh.shape[-2]:
            out = out + (u * ratio.unsqueeze(-2)) @ (u.mT @ (g - (g @ vh.mT) @ vh))
        return out.to(device=grad.device, dtype=grad.dtype), None
