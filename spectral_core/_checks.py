"""Input checks shared by the package: every message says what was expected and what came."""

from __future__ import annotations

import math
import warnings
from functools import cache
from numbers import Real

import torch
from torch import Tensor


def check_tensor(value: object, name: str, *, ndim: int = 2, finite: bool = True) -> Tensor:
    """Return `value` if it is a non-empty, real floating tensor with at least `ndim` dimensions.

    Its entries are looked at only when `finite` is set.

    Raises:
        ValueError: not a tensor, wrong dtype, too few dimensions, empty, or with inf or nan entries.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if not value.is_floating_point():
        raise ValueError(
            f"{name}: expected a real floating-point tensor, got dtype {value.dtype}; convert it with .double()"
        )
    if value.ndim < ndim:
        raise ValueError(f"{name}: expected at least {ndim} dimensions, got shape {tuple(value.shape)}")
    if value.numel() == 0:
        raise ValueError(f"{name}: expected a non-empty tensor, got shape {tuple(value.shape)}")
    # one sum tells, at a sixth of the price of looking at every entry; it may also overflow, so those are looked at
    if finite and not math.isfinite(float(value.detach().sum())) and not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{name}: expected finite entries, got {bad} inf or nan of {value.numel()}")
    return value


def check_number(
    value: object, name: str, *, minimum: float | None = None, exclusive: bool = False, maximum: float = math.inf
) -> float:
    """Return `value` as a float if it is a finite real number inside the stated range.

    Raises:
        ValueError: not a number, not finite, or outside [minimum, maximum] (`exclusive`: minimum not allowed).
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}: expected a real number, got {value!r}")
    try:
        number = float(value)
    except OverflowError as error:
        raise ValueError(f"{name}: expected a finite number, got one beyond the range of float64") from error
    if not math.isfinite(number):
        raise ValueError(f"{name}: expected a finite number, got {number}")
    if minimum is not None and (number < minimum or (exclusive and number == minimum)):
        raise ValueError(f"{name}: expected a number {'>' if exclusive else '>='} {minimum:g}, got {number:g}")
    if number > maximum:
        raise ValueError(f"{name}: expected a number <= {maximum:g}, got {number:g}")
    return number


def check_choice(value: object, name: str, choices: tuple) -> None:
    """Raise ValueError when `value` is not one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


@cache
def _say_once(device: str) -> None:
    warnings.warn(f"{device} has no float64: spectra are computed on the CPU", stacklevel=3)


def to_float64(value: Tensor) -> Tensor:
    """Upcast to float64; backends without it (mps) are computed on the CPU, which is said once."""
    if value.device.type == "mps":
        _say_once("mps")
        value = value.cpu()
    return value.to(torch.float64)
