"""Corrections W -> W + C that improve the conditioning of a projection: the base class and the two simplest.

A correction is a small `nn.Module` with one method, `correct(w)`, which returns W + C in float32 or better.
C is a constant in the backward pass, as in the paper, so d/dW f(W + C) = f'(W + C): gradients pass straight
through (`SpectrumTarget` can do otherwise). `preserve` rescales the result to W's own norm; that factor too is a
constant in the backward pass. Nothing is added to the `state_dict`, but for a λ that is learned.

A new correction is one class with one method. This one adds a share of their root mean square to all singular values:

>>> import torch
>>> from spectral_core import polar_factor
>>> class Lift(Correction):
...     def __init__(self, share=1.0, *, preserve=None):
...         super().__init__(preserve=preserve)
...         self.share = share
...     def correct(self, w):
...         mean = w.detach().norm() / min(w.shape) ** 0.5
...         return w + self.share * mean * polar_factor(w)
>>> Lift()(torch.diag(torch.tensor([7.0, 1.0])))                   # κ 7 -> 2
tensor([[12.,  0.],
        [ 0.,  6.]])
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor, nn

from spectral_core._checks import check_choice, check_number, check_tensor, to_float64
from spectral_core.polar import largest_singular_value

__all__ = ["Correction", "FixedCorrection", "IdentityCorrection"]

PRESERVE = (None, "spectral", "frobenius")
SMALL = 1 << 16  # entries of an identity matrix that is worth keeping
WORKING = (torch.float32, torch.float64)


class Correction(nn.Module):
    """Base class. Subclass it, store settings under the names of `__init__`'s arguments, write `correct`.

    Args:
        preserve: None, or "spectral" / "frobenius" to rescale W + C to W's own norm.
    """

    takes_any_matrix = False  # True: `condition` need not try it on every weight before it changes a model

    def __init__(self, *, preserve: str | None = None) -> None:
        super().__init__()
        check_choice(preserve, "preserve", PRESERVE)
        self.preserve = preserve

    def correct(self, w: Tensor) -> Tensor:
        """Return W + C for w (…, m, n) in float32 or float64; same shape and dtype."""
        raise NotImplementedError

    def forward(self, w: Tensor, part_of: tuple[Tensor, str] | None = None) -> Tensor:
        """(…, m, n) -> (…, m, n) in W's dtype; arithmetic in float32 or better, autocast off.

        Args:
            w: the weight.
            part_of: for a part of a stored parameter, that parameter and the name of the part, by which corrections
                with a memory know it again.

        Raises:
            ValueError: w not a non-empty floating matrix; on the CPU also when it has inf or nan entries, but for
                parameters: `condition` has looked at those, and once more at every step would double the cost of λI.
        """
        source = (w, "") if part_of is None else part_of
        if not isinstance(source[0], nn.Parameter) or w.ndim < 2 or not w.is_floating_point():
            # elsewhere it would stall an accelerator's stream, and break torch.compile
            look = isinstance(w, Tensor) and w.device.type == "cpu" and not torch.compiler.is_compiling()
            check_tensor(w, "w", finite=look)
        if torch.is_autocast_enabled(w.device.type):
            with torch.autocast(device_type=w.device.type, enabled=False):
                return self._rescaled(w, source)
        # the usual case by the shortest way: λI costs little more than the calls that lead to it
        return self._corrected(w, source) if self.preserve is None and w.dtype in WORKING else self._rescaled(w, source)

    def _rescaled(self, w: Tensor, source: tuple[Tensor, str]) -> Tensor:
        work = w if w.dtype in WORKING else w.float()
        out = self._corrected(work, source)
        if self.preserve is not None:
            out = out * _norm_ratio(work, out, self.preserve)
        return out if work is w else out.to(w.dtype)

    def _corrected(self, work: Tensor, source: tuple[Tensor, str]) -> Tensor:
        """`correct(work)`; `source`, the parameter and the part of it, is for corrections that remember something."""
        return self.correct(work)

    def advance(self, step: int | None = None) -> None:
        """Go to training step `step`, or one step on: a schedule hears of it here. Nothing else depends on it."""

    def settings(self) -> dict:
        """The current settings, by the names of the constructor's arguments."""
        return {name: getattr(self, name) for name in _arguments(self)}

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
        shown = []
        for name, value in self.settings().items():
            argument = _arguments(self)[name]
            named = argument.kind is inspect.Parameter.KEYWORD_ONLY  # options are shown where they were chosen
            if not isinstance(value, Tensor) and value is not None and not (named and value == argument.default):
                shown.append(f"{name}={getattr(value, '__name__', None) or repr(value)}")
        return ", ".join(shown)


class IdentityCorrection(Correction):
    """C = λ I_k, ones on the main diagonal of a rectangle: the paper's cheap correction (Theorem 3.8, λ = 10).

    It lowers κ for certain only when λ > σ_max(W)·(κ + 1)/(κ − 1); below that it can raise it. On W_Q and W_K
    together a λ above about (log n / √d_k)^½ drives attention to the identity: look at `saturation`, and see
    `suggest_lambda` and `calibrate`.

    Args:
        lam: λ, any finite number.
        relative: λ is in units of ‖W‖₂.
        schedule: a callable, λ = schedule(step); the step is 0 until `advance` moves it (`lam` is then ignored, and
            holds the current value).
        learnable: λ is a parameter, one for all weights that share this correction. Make the optimizer afterwards.
        preserve: see `Correction`.

    Raises:
        ValueError: λ not a finite number, `schedule` not a callable or returning no such number, both `schedule` and
            `learnable`, or `preserve` unknown.
    """

    lam: float | nn.Parameter
    takes_any_matrix = True

    def __init__(
        self,
        lam: float = 10.0,
        relative: bool = False,
        *,
        schedule: Callable[[int], float] | None = None,
        learnable: bool = False,
        preserve: str | None = None,
    ) -> None:
        super().__init__(preserve=preserve)
        if schedule is not None and not callable(schedule):
            raise ValueError(f"schedule: expected a callable of the step, got {schedule!r}")
        if schedule is not None and learnable:
            raise ValueError("expected a schedule or a learnable λ, got both")
        value = check_number(lam, "lam")
        self.lam = nn.Parameter(torch.tensor(value)) if learnable else value
        self.relative, self.schedule, self.learnable = bool(relative), schedule, bool(learnable)
        self.step = 0
        self._follow_schedule()

    def correct(self, w: Tensor) -> Tensor:
        m, n = w.shape[-2:]
        if m * n > SMALL and not torch.compiler.is_compiling():  # there, making I would take longer than adding it
            out = w.clone()
            scale = largest_singular_value(w)[..., None] if self.relative else 1.0
            out.diagonal(dim1=-2, dim2=-1).add_(self.lam * scale)
            return out
        eye = _eye(m, n, w.dtype, w.device)
        if self.relative:
            eye = eye * largest_singular_value(w)[..., None, None]
        return w + self.lam.to(w.dtype) * eye if isinstance(self.lam, Tensor) else torch.add(w, eye, alpha=self.lam)

    def advance(self, step: int | None = None) -> None:
        """Set λ = schedule(step), for the step after the current one when None.

        Raises:
            ValueError: `step` not an integer ≥ 0, or the schedule did not return a finite number.
        """
        if step is not None and (isinstance(step, bool) or not isinstance(step, int) or step < 0):
            raise ValueError(f"step: expected an integer >= 0 or None, got {step!r}")
        self.step = self.step + 1 if step is None else step
        self._follow_schedule()

    def settings(self) -> dict:
        lam = self.lam.detach() if isinstance(self.lam, Tensor) else self.lam
        return {**super().settings(), "lam": float(lam)}

    def update(self, **changes) -> None:
        """As `Correction.update`; whether λ is learnable stays as it is, since optimizers hold the parameter.

        Raises:
            ValueError: as there, and for a change of `learnable`.
        """
        if changes.get("learnable", self.learnable) != self.learnable:
            raise ValueError(f"learnable: expected {self.learnable} as at the start, make a new correction instead")
        if callable(schedule := changes.get("schedule", self.schedule)):
            check_number(schedule(self.step), f"schedule({self.step})")
        parameter = self.lam
        super().update(**changes)
        if isinstance(parameter, nn.Parameter):
            with torch.no_grad():
                parameter.fill_(self.lam)
            self.lam = parameter
        self._follow_schedule()

    def _follow_schedule(self) -> None:
        if self.schedule is not None:
            self.lam = check_number(self.schedule(self.step), f"schedule({self.step})")


class FixedCorrection(Correction):
    """C given by the caller, for controls such as a random orthogonal matrix of the same norm.

    Args:
        c: (m, n) finite floating tensor; it must match the (out, in) matrix that it is added to, however that is
            stored, or one head of it.
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


def _arguments(correction: Correction) -> dict[str, inspect.Parameter]:
    arguments = inspect.signature(type(correction).__init__).parameters
    return {name: argument for name, argument in list(arguments.items())[1:]}


def _eye(m: int, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """I, m × n; a small one is kept, since making it would take as long as adding it. Not to be written to."""
    if torch.compiler.is_compiling():
        return torch.eye(m, n, dtype=dtype, device=device)
    return _kept_eye(m, n, dtype, device)


@lru_cache(maxsize=16)
def _kept_eye(m: int, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # or no later training could use it
        return torch.eye(m, n, dtype=dtype, device=device)


def _norm_ratio(w: Tensor, out: Tensor, kind: str) -> Tensor:
    """‖W‖ / ‖W + C‖, (…, 1, 1), detached; 1 where W + C is zero, so that zero stays zero."""
    norm = largest_singular_value if kind == "spectral" else _frobenius
    before, after = norm(w), norm(out)
    return torch.where(after > 0, before / after, torch.ones_like(after))[..., None, None]


def _frobenius(w: Tensor) -> Tensor:
    # in float32 the squares overflow past 1e19 and vanish below 1e-19
    return torch.linalg.matrix_norm(to_float64(w.detach())).to(device=w.device, dtype=w.dtype)
