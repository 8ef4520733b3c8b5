"""Corrections W -> W + C that improve the conditioning of a projection.

A correction is a small `nn.Module` with one method, `correct(w)`, which returns W + C in float32 or better.
C is a constant in the backward pass, as in the paper, so d/dW f(W + C) = f'(W + C): gradients pass straight
through. `preserve` rescales the result to W's own norm; that factor too is a constant in the backward pass.
Corrections hold no tensors: nothing is added to the `state_dict`, nothing is broadcast by DDP.

>>> import torch
>>> w = torch.diag(torch.tensor([4.0, 1.0]))
>>> PolarCorrection()(w)          # σ + σ_max: (4, 1) -> (8, 5), κ 4 -> 1.6
tensor([[8., 0.],
        [0., 5.]])
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from spectral_core._checks import check_choice, check_number, check_tensor, to_float64

__all__ = ["Correction", "FixedCorrection", "IdentityCorrection", "PolarCorrection", "SpectrumTarget"]

PRESERVE = (None, "spectral", "frobenius")


class Correction(nn.Module):
    """Base class. Subclass it, store settings under the names of `__init__`'s arguments, write `correct`.

    Args:
        preserve: None, or "spectral" / "frobenius" to rescale W + C to W's own norm.
    """

    def __init__(self, *, preserve: str | None = None) -> None:
        super().__init__()
        check_choice(preserve, "preserve", PRESERVE)
        self.preserve = preserve

    def correct(self, w: Tensor) -> Tensor:
        """Return W + C for w (…, m, n) in float32 or float64; same shape and dtype."""
        raise NotImplementedError

    def forward(self, w: Tensor) -> Tensor:
        """(…, m, n) -> (…, m, n) in W's dtype; arithmetic in float32 or better, autocast off.

        Raises:
            ValueError: w not a non-empty floating matrix; on the CPU also when it has inf or nan entries.
        """
        # looking at the values would stall an accelerator's stream on every forward, and break torch.compile
        look = not torch.compiler.is_compiling() and isinstance(w, Tensor) and w.device.type == "cpu"
        check_tensor(w, "w", finite=look)
        with torch.autocast(device_type=w.device.type, enabled=False):
            work = w.to(torch.promote_types(w.dtype, torch.float32))
            out = self.correct(work)
            if self.preserve is not None:
                out = out * _norm_ratio(work, out, self.preserve)
            return out.to(w.dtype)

    def settings(self) -> dict:
        """The current settings, by the names of the constructor's arguments."""
        names = list(inspect.signature(type(self).__init__).parameters)[1:]
        return {name: getattr(self, name) for name in names}

    def update(self, **changes) -> None:
        """Change settings while a model trains; all are checked first, so a refused change alters nothing.

        Raises:
            ValueError: an unknown setting, or a value that the constructor refuses.
        """
        current = self.settings()
        unknown = sorted(set(changes) - set(current))
        if unknown:
            raise ValueError(f"{type(self).__name__}.update: expected settings among {sorted(current)}, got {unknown}")
        fresh = type(self)(**{**current, **changes})
        for name in current:
            setattr(self, name, getattr(fresh, name))

    def extra_repr(self) -> str:
        shown = {k: v for k, v in self.settings().items() if v is not None and not isinstance(v, Tensor)}
        return ", ".join(f"{k}={v!r}" for k, v in shown.items())


class IdentityCorrection(Correction):
    """C = λ I_k, ones on the main diagonal of a rectangle: the paper's cheap correction (Theorem 3.8, λ = 10).

    It lowers κ for certain only when λ > σ_max(W)·(κ + 1)/(κ − 1); below that it can raise it. On W_Q and W_K
    together a λ above about (log n / √d_k)^½ drives attention to the identity: look at `saturation`.

    Args:
        lam: λ, any finite number.
        relative: λ is in units of ‖W‖₂.
        preserve: see `Correction`.

    Raises:
        ValueError: λ not a finite number, or `preserve` unknown.
    """

    def __init__(self, lam: float = 10.0, relative: bool = False, *, preserve: str | None = None) -> None:
        super().__init__(preserve=preserve)
        self.lam = check_number(lam, "lam")
        self.relative = bool(relative)

    def correct(self, w: Tensor) -> Tensor:
        eye = torch.eye(w.shape[-2], w.shape[-1], dtype=w.dtype, device=w.device)
        if not self.relative:
            return w + self.lam * eye
        return w + self.lam * _top_singular_value(w) * eye


class FixedCorrection(Correction):
    """C given by the caller, for controls such as a random orthogonal matrix of the same norm.

    Args:
        c: (m, n) finite floating tensor; it must match the weight it is added to, as stored.
        preserve: see `Correction`.

    Raises:
        ValueError: `c` not a finite matrix; in use, when its shape does not match the weight.
    """

    c: Tensor

    def __init__(self, c: Tensor, *, preserve: str | None = None) -> None:
        super().__init__(preserve=preserve)
        if check_tensor(c, "c").ndim != 2:
            raise ValueError(f"c: expected a matrix, got shape {tuple(c.shape)}")
        self.register_buffer("c", c.detach().clone(), persistent=False)

    def correct(self, w: Tensor) -> Tensor:
        if w.shape[-2:] != self.c.shape[-2:]:
            raise ValueError(f"c: expected the weight's shape {tuple(w.shape)}, got {tuple(self.c.shape)}")
        return w + self.c.to(device=w.device, dtype=w.dtype)


class PolarCorrection(Correction):
    """C = strength · σ_max(W) · U Vᵀ, the paper's exact correction: κ(W + C) ≤ 2 at strength 1 (Theorem 3.5).

    The singular values become σ_i + strength · σ_max; U Vᵀ is the polar factor of W. By SVD.

    Args:
        strength: ≥ 0; κ(W + C) ≤ (1 + strength) / strength.
        preserve: see `Correction`; without it the spectral norm grows by 1 + strength.

    Raises:
        ValueError: strength negative or not a finite number, or `preserve` unknown.
    """

    def __init__(self, strength: float = 1.0, *, preserve: str | None = None) -> None:
        super().__init__(preserve=preserve)
        self.strength = check_number(strength, "strength", minimum=0.0)

    def correct(self, w: Tensor) -> Tensor:
        u, s, vh = _svd(w)
        return w + (self.strength * s[..., :1, None] * (u @ vh)).to(device=w.device, dtype=w.dtype)


class SpectrumTarget(Correction):
    """Clamp the singular values to [σ_min, σ_max], or raise them until σ_max / σ_min ≤ κ. By SVD.

    With a ceiling `sigma_max` first and then the floor max(`sigma_min`, ceiling value / `kappa`), the result has
    condition number at most `kappa`. A zero singular value is raised along the SVD's choice of direction.

    Args:
        sigma_min: floor, ≥ 0, or None.
        sigma_max: ceiling, > 0, or None.
        kappa: largest allowed condition number, ≥ 1, or None.
        preserve: see `Correction`; it changes the scale after clamping, so it keeps κ but not the two limits.

    Raises:
        ValueError: no target given, σ_min > σ_max, κ < 1, or a value that is not a finite number.
    """

    def __init__(
        self,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        kappa: float | None = None,
        *,
        preserve: str | None = None,
    ) -> None:
        super().__init__(preserve=preserve)
        if sigma_min is None and sigma_max is None and kappa is None:
            raise ValueError("SpectrumTarget: expected at least one of sigma_min, sigma_max and kappa, got none")
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
        u, s, vh = _svd(w)
        c = (u * (self.target(s) - s).unsqueeze(-2)) @ vh
        return w + c.to(device=w.device, dtype=w.dtype)


def _svd(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Thin SVD of the detached weight in float64 (a float32 factor of an ill-conditioned W is off by eps·κ)."""
    return torch.linalg.svd(to_float64(w.detach()), full_matrices=False)


def _top_singular_value(w: Tensor) -> Tensor:
    """σ_max of the detached weight, (…, 1, 1)."""
    top = torch.linalg.svdvals(to_float64(w.detach()))[..., :1, None]
    return top.to(device=w.device, dtype=w.dtype)


def _norm_ratio(w: Tensor, out: Tensor, kind: str) -> Tensor:
    """‖W‖ / ‖W + C‖, (…, 1, 1), detached; 1 where W + C is zero, so that zero stays zero."""
    norm = _top_singular_value if kind == "spectral" else _frobenius
    before, after = norm(w), norm(out)
    return torch.where(after > 0, before / after, torch.ones_like(after))


def _frobenius(w: Tensor) -> Tensor:
    # in float32 the squares overflow past 1e19 and vanish below 1e-19
    return torch.linalg.matrix_norm(to_float64(w.detach()), keepdim=True).to(device=w.device, dtype=w.dtype)
