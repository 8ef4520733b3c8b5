"""J as a scaled operator on its smaller side, with its Gram matrix, its products, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectral_core import closed_form as cf
from spectral_core._head import Head
from spectral_core.lanczos import EPS, KRYLOV


@dataclass(frozen=True)
class Operator:
    """J, or Jᵀ where that has fewer rows, divided by its Frobenius norm; from a compressed head."""

    head: Head
    roles: str
    unit: Tensor  # (…), ‖J‖_F, or 1 for J = 0

    @property
    def rows(self) -> int:
        n, c = self.head.rows
        return n * c

    @property
    def columns(self) -> int:
        return sum(h * a * b for h, a, b in (self.head.widths[role] for role in self.roles))

    @property
    def size(self) -> int:
        return min(self.rows, self.columns)

    @property
    def is_plain_v(self) -> bool:
        """J_V of one head is PY ⊗ I: no work at all."""
        return self.roles == "v" and self.head.w_o is None

    @property
    def lead(self) -> tuple[int, ...]:
        return tuple(self.head.p.shape[:-3])

    def select(self, index: Tensor) -> Operator:
        """Members of the batch by flat index, with one leading dimension."""
        return Operator(self.head.select(index), self.roles, self.unit.reshape(-1)[index])

    def forward(self, block: Tensor) -> Tensor:
        """(…, larger side, b) -> (…, smaller side, b)."""
        return self._multiply(block) if self.rows <= self.columns else self._multiply_transpose(block)

    def backward(self, block: Tensor) -> Tensor:
        """(…, smaller side, b) -> (…, larger side, b)."""
        return self._multiply_transpose(block) if self.rows <= self.columns else self._multiply(block)

    def gram(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The smaller Gram matrix, (…, size, size); its lower triangle may be left empty."""
        if self.rows <= self.columns:
            return cf.gram(self.head, self.roles, mirror=False, unit=self.unit, dtype=dtype)
        matrix = self.dense().to(dtype)
        return matrix.mT @ matrix

    def dense(self) -> Tensor:
        return cf.dense(self.head, self.roles) / self.unit[..., None, None]

    def rounding(self, sigma_max: Tensor) -> Tensor:
        """How far float64 may move a singular value, (…), in the units of J / `unit`: an estimate from above.

        Beside 4 eps √size σ_max for the linear algebra: p_ij carries a relative error eps · |logit|, u_j − a_i an
        absolute one of eps · |u|, and both are weighted by 1 − max_j p_ij, since the largest weight of a row is set
        from the others.
        """
        h = self.head
        lengths = {name: getattr(h, name).norm(dim=-1) for name in "xykqu"}
        key, token, value = (lengths[name].amax(-1, keepdim=True) for name in "kyu")
        loose = 1 - h.p.amax(-1)
        logit = abs(h.scale) * lengths["q"] * key
        factor = torch.zeros_like(logit)
        if "q" in self.roles:
            factor = factor + lengths["x"] * key
        if "k" in self.roles:
            factor = factor + lengths["q"] * token
        if "x" in self.roles:
            size_q, size_k = (w.norm(dim=(-2, -1)).unsqueeze(-1) for w in (h.w_q, h.w_k))
            factor = factor + size_q * key + size_k * lengths["q"]
        formed = abs(h.scale) * value * factor * (1 + logit)
        if "v" in self.roles:
            formed = formed + logit * token
        if "x" in self.roles:
            formed = formed + logit * h.w_u.norm(dim=(-2, -1)).unsqueeze(-1)
        formed = (loose * formed).amax((-2, -1)) / self.unit
        return EPS * (4 * self.size**0.5 * sigma_max + 2 * formed)

    def _multiply(self, block: Tensor) -> Tensor:
        out = cf.apply(self.head, cf.unpack(self.head, block, self.roles))
        return out.flatten(-2).mT / self.unit[..., None, None]

    def _multiply_transpose(self, block: Tensor) -> Tensor:
        g = block.mT.unflatten(-1, self.head.rows)
        return cf.pack(cf.apply_transpose(self.head, g, self.roles)) / self.unit[..., None, None]


def operator(head: Head, roles: str) -> Operator:
    """The scaled operator of `roles`, from a compressed head."""
    unit = torch.stack(list(cf.norms(head, roles).values())).norm(dim=0)
    return Operator(head, roles, torch.where(unit > 0, unit, torch.ones_like(unit)))


def bytes_needed(op: Operator, method: str) -> int:
    """Peak bytes of a method, batch included: its largest matrices, in float64."""
    n, c = op.head.rows
    heads, _, m = op.head.p.shape[-3:]
    pieces = heads * n * c * (2 * m + 2 * op.head.y.shape[-1] + op.head.k.shape[-1])
    if method != "svd":  # Krylov blocks, with their images and the weights in between
        pieces += 4 * (KRYLOV + 4) * (2 * op.rows + 2 * op.columns + 2 * heads * n * m)
    copies = {"gram": 3.2, "cholesky": 1.1, "svd": 1.0}[method]
    matrices = copies * op.size**2 + (4 * op.size * max(op.rows, op.columns) if method == "svd" else 0)
    if method == "svd" and op.is_plain_v:
        matrices = 4 * op.head.py[..., 0, :, :].numel() / max(1, op.unit.numel())
    return int(8 * max(1, op.unit.numel()) * (pieces + matrices)) + 16 * cf.CHUNK


def svd_flops(op: Operator) -> float:
    """QR of size × larger side, then singular values of size × size, for one member of the batch."""
    return 2 * max(op.rows, op.columns) * op.size**2 + 2 * op.size**3
